// One GPU, or the host: memory regions, copies, a stream and the table of kernels.
//
// Decides: what a worker may ask of a device. Does not know: models, batches, requests. Owned by a Worker and called
// from the engine's thread. The host implementation lies in host/; others are plugins behind the same interface.
//
// An asynchronous device does what it is told later, in the order of its stream; memory named in a call must stay as it
// is until then (an Event tells when). On the host everything is done on return.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/check.h"
#include "base/recorder.h"
#include "device/collective_library.h"
#include "device/region.h"
#include "params/kernel_table.h"

namespace quire {

struct DeviceMemory {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;  // what this process may still take without pushing others out
};

// Host memory that copies to and from the device read and write without a detour (pinned, where there is a GPU).
class HostBuffer {
 public:
  virtual ~HostBuffer() = default;
  virtual std::byte* data() const = 0;
  virtual size_t num_bytes() const = 0;
};

// A point in the work of a stream.
class Event {
 public:
  virtual ~Event() = default;
  virtual void record(Stream stream) = 0;
  // Returns when the work before the last record() is done, at once when there was none. Throws what went wrong in it.
  virtual void wait() = 0;
};

// Launches that were recorded once and are put on the device's stream again as one.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch() = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // "cpu", "cuda", "simt"
  virtual const KernelTable& kernels() const = 0;
  virtual Stream stream() const = 0;
  virtual int num_threads() const = 0;
  virtual DeviceMemory memory() const = 0;
  // Kernels run behind the caller's back, read device memory alone, and a step's state lives in device rows.
  virtual bool is_asynchronous() const { return false; }

  // false: a kernel or a call broke it, and whatever it is asked from now on fails.
  virtual bool usable() const { return true; }

  // A library of the device's maker: which one it is, or what was tried to find one.
  struct Library {
    bool is_found = false;
    std::string status;
  };
  // For large products that need not be batch invariant.
  virtual Library product_library() const { return {}; }
  // For sums between devices.
  virtual Library collective_library() const { return {}; }
  // That library between these devices, one a rank, not open yet. Throws NotSupported where there is none.
  virtual std::unique_ptr<CollectiveLibrary> open_collectives(std::span<Device* const>) {
    throw NotSupported(str_cat("the device \"", name(), "\" has no library for sums between devices"));
  }

  // What is allocated from now on these devices reach too, itself or others of its kind.
  virtual void share_memory_with(std::span<Device* const>) {}
  // Reserves addresses and backs them with memory. Throws DeviceError naming the region and its size.
  virtual std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) = 0;
  virtual std::unique_ptr<HostBuffer> allocate_host(size_t num_bytes) = 0;
  // Return when the bytes are there, after everything put on the stream before.
  virtual void copy_to_device(void* destination, const void* source, size_t num_bytes) = 0;
  virtual void copy_to_host(void* destination, const void* source, size_t num_bytes) = 0;
  // Put a copy, in whichever direction the addresses say, or a fill on a stream; host memory must be a HostBuffer's.
  virtual void copy_async(void* destination, const void* source, size_t num_bytes, Stream stream) = 0;
  virtual void fill_async(void* destination, std::byte value, size_t num_bytes, Stream stream) = 0;
  // A second stream, for copies beside the kernels; the same one where there is no other.
  virtual Stream copy_stream() const { return stream(); }
  virtual std::unique_ptr<Event> make_event() = 0;
  // What is put on `stream` from now on waits for the work before the last event.record(); the event may be another
  // device's of this kind.
  virtual void wait_for(Stream stream, const Event& event) = 0;
  // Records what `body` puts on stream() instead of doing it. Null where the device has no graphs.
  virtual std::unique_ptr<Graph> capture(const std::function<void()>& body) = 0;
  // Returns when everything put on the streams so far is done. Throws what went wrong in it.
  virtual void synchronize() = 0;

  // Every launch from now on becomes a span of category "kernel"; null: none any more, and what is under way is waited
  // for. kernels() stays the same object. Begins with an idle stream. Throws NotSupported where this device cannot.
  virtual void set_recorder(Recorder* recorder) {
    if (recorder == nullptr) return;
    throw NotSupported(str_cat("the kernels of device \"", name(), "\" cannot be recorded"));
  }
  // On an asynchronous device, while a recorder is set: what is put on stream() between the two becomes a span as well,
  // timed there. Such spans lie in one another.
  virtual void begin_span(const Span& /*span*/) noexcept {}
  virtual void end_span() noexcept {}
  // Gives the recorder the spans whose end is past; waits for nothing.
  virtual void collect_spans() noexcept {}
};

struct HostDeviceOptions {
  int num_threads = 0;  // 0: OMP_NUM_THREADS, else the physical cores
  std::string isa;      // "", portable, avx2, avx512, amx
};

std::unique_ptr<Device> make_host_device(const HostDeviceOptions& options);

}  // namespace quire
