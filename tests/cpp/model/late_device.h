// An asynchronous device without a GPU: the kernels of another table on two streams that do nothing until somebody
// waits, and then in an order chosen to hurt.
//
// What it catches: host memory that changes before its copy ran (copies run late); kernels given host memory, copies
// from memory that is no HostBuffer (checked); host code that touches device memory (its pages are protected except
// while work runs); a missing wait between the streams (Prefer decides which one runs ahead); in a capture, work that
// was not forked or not joined, and waits for what lies outside.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "device/device.h"

namespace quire::test {

// Which stream goes first where both could.
enum class Prefer : uint8_t { compute, copies, random };

class LateDevice final : public Device {
 public:
  // `host` runs the work; `table` is what runs on it (null: its own).
  explicit LateDevice(Prefer prefer, const KernelTable* table = nullptr);
  ~LateDevice() override;

  std::string name() const override { return "late"; }
  const KernelTable& kernels() const override { return late_table_; }
  Stream stream() const override;
  int num_threads() const override { return 1; }
  DeviceMemory memory() const override { return host_->memory(); }
  bool is_asynchronous() const override { return true; }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) override;
  std::unique_ptr<HostBuffer> allocate_host(size_t num_bytes) override;
  void copy_to_device(void* destination, const void* source, size_t num_bytes) override;
  void copy_to_host(void* destination, const void* source, size_t num_bytes) override;
  void copy_async(void* destination, const void* source, size_t num_bytes, Stream stream) override;
  void fill_async(void* destination, std::byte value, size_t num_bytes, Stream stream) override;
  Stream copy_stream() const override;
  std::unique_ptr<Event> make_event() override;
  void wait_for(Stream stream, const Event& event) override;
  std::unique_ptr<Graph> capture(const std::function<void()>& body) override;
  void synchronize() override;

  // Bytes of the regions that exist now, and of host buffers: what has not been given back.
  size_t region_bytes() const;
  size_t host_bytes() const;
  int64_t num_copies() const { return num_copies_; }

  struct EventState;
  struct Op {
    std::function<void()> run;          // null: a record or a wait
    std::shared_ptr<EventState> event;  // of these
    bool is_record = false;
    uint64_t ticket = 0;
  };
  struct Queue {
    LateDevice* device = nullptr;
    std::deque<Op> ops;
    // During a capture.
    bool captured = false;
    size_t num_work = 0, num_joined = 0;  // work captured, and how much of it the main stream has waited for
  };
  struct Span {
    const std::byte* data = nullptr;
    size_t num_bytes = 0;
  };

  // For launchers, events and graphs.
  const KernelTable& table() const { return *table_; }
  Stream host_stream() const { return host_->stream(); }
  void push(Queue& queue, std::function<void()> work);
  void record(Queue& queue, const std::shared_ptr<EventState>& event);
  void wait_on_host(const EventState& event);
  bool is_device_memory(const void* data, size_t num_bytes) const;
  void launch(const std::vector<std::pair<int, Op>>& ops);

 private:
  friend class LateRegion;
  friend class LateBuffer;
  class Unprotected;

  Queue& queue_of(Stream stream) const { return *static_cast<Queue*>(stream.handle); }
  bool runnable(const Queue& queue) const;
  void run_head(Queue& queue);
  void run_until(const std::function<bool()>& done);
  void require_no_capture(const char* what) const;

  std::unique_ptr<Device> host_;
  const KernelTable* table_;
  KernelTable late_table_;
  mutable Queue queues_[2];  // compute, copies
  Prefer prefer_;
  std::mt19937 random_{7};
  std::vector<Span> regions_, buffers_;
  std::vector<std::pair<int, Op>>* graph_ = nullptr;  // being captured
  uint64_t num_captures_ = 0;
  int64_t num_copies_ = 0;
};

}  // namespace quire::test
