// What a test may ask of the emulated CUDA runtime: which machine it plays, what fails when, what is still alive.
//
// The runtime is late on purpose. A stream is a queue whose work is done when somebody waits for it (synchronising a
// stream, an event or the device; a query does one piece), so host memory that is reused too early, or a missing wait
// between two streams, shows as a wrong result. Streams are ordered by events alone. Device memory holds 0xFF (NaN)
// until it is written, ends in an unmapped page, and cannot be touched by the host: it is out of reach unless work
// runs. A kernel that breaks a rule of the emulation fails the device for good, as an illegal address does on a GPU.
// All calls may come from any thread; one lock orders them. State belongs to the program, not to a test: reset().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include <cuda_runtime_api.h>

namespace quire::cudart_emu {

struct Machine {
  int num_devices = 1;  // 0: cudaErrorNoDevice
  int compute_major = 9, compute_minor = 0;
  int driver_version = CUDART_VERSION;  // 0: no driver; less than CUDART_VERSION's major: cudaErrorInsufficientDriver
  size_t memory_bytes = size_t{4} << 30;
  bool host_may_touch = false;  // device memory
};
// A fresh machine: no faults to come, no error that stays. What lives goes on living.
void reset(const Machine& machine = {});

// The n-th such call from now fails with "out of memory" (1: the next; 0: none). Allocating calls are those that make
// memory, address ranges, mappings, streams, events and graphs.
void fail_allocation_after(int64_t n);
// The n-th launch from now is refused; the device lives on.
void fail_launch_after(int64_t n);
// The n-th kernel from now to run breaks the device with `error`, when it runs.
void fail_kernel_after(int64_t n, cudaError_t error = cudaErrorIllegalAddress);
bool faults_pending();

struct Live {
  int64_t address_ranges = 0, memory_handles = 0, mappings = 0, host_buffers = 0;
  int64_t streams = 0, events = 0, graphs = 0, graph_execs = 0;
  size_t device_bytes = 0;
  bool operator==(const Live&) const = default;
};
Live live();

// Kernels, copies and fills queued on streams that nobody has waited for.
int64_t num_queued();

// Work of a library that a test plays, which may touch device memory: a kernel that emulates nothing.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

// Device memory is given out in pages; the bytes between the end of what was asked for and the end of the page are
// refused to copies, and to kernels under AddressSanitizer.
void set_used_bytes(const void* mapping, size_t num_bytes);

}  // namespace quire::cudart_emu
