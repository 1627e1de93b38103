// The emulated machine from the inside: memory, streams and errors of the process behind one lock.
//
// Shared by memory.cpp (what may be touched) and stream.cpp (what happens when). Nothing else includes it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/simt/cudart_emu/cudart_emu.h"

namespace quire::cudart_emu {

struct Lane;

// A point in the work of a lane; `lane` is null where nothing was recorded.
struct Marker {
  std::shared_ptr<Lane> lane;
  uint64_t position = 0;
};

// When the work before a record of an event was done; 0: it is not yet. Of the clock of the host.
using Stamp = std::shared_ptr<int64_t>;

// Work, a wait for another lane, or a look at the clock. Lanes of a finished capture name each other by number, since
// they may wait for each other in turn and would keep each other alive.
struct Op {
  std::shared_ptr<const std::function<void()>> work;
  Marker wait;
  int64_t lane_of_capture = -1;
  Stamp stamp;
};

// Work that is done in order: of a stream, or of one stream's part in a graph.
struct Lane {
  std::deque<Op> ops;
  uint64_t done = 0;
  uint64_t end() const { return done + ops.size(); }
};

struct Capture {
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  std::vector<cudaStream_t> streams;
  std::vector<std::shared_ptr<Lane>> lanes;  // the origin's first
  bool is_invalid = false, is_over = false;
};

struct Block {  // of memory that copies and kernels may touch
  size_t num_bytes = 0, used_bytes = 0;
  bool is_host = false;
};
struct Reservation {
  size_t num_bytes = 0;
};
struct Physical {
  size_t num_bytes = 0;
  bool is_released = false;
  int64_t mappings = 0;
};
struct Mapping {
  size_t num_bytes = 0;
  CUmemGenericAllocationHandle handle = 0;
};

struct State {
  std::recursive_mutex mutex;
  Machine machine;
  int64_t allocations_to_fault = 0, launches_to_fault = 0, kernels_to_fault = 0;
  cudaError_t kernel_fault = cudaErrorIllegalAddress;
  cudaError_t sticky = cudaSuccess;  // what every call says from now on
  std::string report;                // of the kernel that broke the device
  std::string refusal;               // why the last call was refused, where the emulation can tell more than a code

  std::map<uintptr_t, Block> blocks;
  std::map<uintptr_t, Reservation> reservations;
  std::map<uintptr_t, Mapping> mappings;
  std::map<CUmemGenericAllocationHandle, Physical> handles;
  CUmemGenericAllocationHandle next_handle = 1;
  size_t device_bytes = 0;
  int unlocked = 0;  // how many pieces of work run, one within the other

  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> execs;
};
State& state();

// Does the work of the lane up to `position`; of others what it waits for. Without `does_work` it only counts.
void advance(Lane& lane, uint64_t position, bool does_work = true);
bool is_known(cudaStream_t stream);
// Puts work on a stream, or into what it captures; the stream null does it at once.
cudaError_t push(cudaStream_t stream, Op op);
cudaError_t push(cudaStream_t stream, std::function<void()> work);
void join(cudaStream_t stream, const std::shared_ptr<Capture>& capture);
cudaError_t invalidate(Capture& capture, cudaError_t error);

// What calls of a device say that is not there or broken.
cudaError_t check_device();
// Keeps `error` for cudaGetLastError and returns it.
cudaError_t set_error(cudaError_t error);
cudaError_t refuse(cudaError_t error, std::string why);
// Whether this allocating call is the one that was told to fail.
bool allocation_fails();
// Whether the calling thread captures in a mode that forbids calls like cudaHostAlloc.
bool capture_forbids();

// "" or why [address, address + num_bytes) is not memory that the device reaches.
std::string out_of_reach(const void* address, size_t num_bytes);
// While one lives, device memory can be touched.
class Unlocked {
 public:
  Unlocked();
  ~Unlocked();
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
};

}  // namespace quire::cudart_emu

struct CUstream_st {
  std::shared_ptr<quire::cudart_emu::Lane> lane = std::make_shared<quire::cudart_emu::Lane>();
  std::shared_ptr<quire::cudart_emu::Capture> capture;
  std::shared_ptr<quire::cudart_emu::Lane> captured;  // what the capture records of this stream
};
struct CUevent_st {
  bool has_timing = false;
  quire::cudart_emu::Marker marker;
  quire::cudart_emu::Stamp stamp;  // with timing, of the last record; null: none outside of a capture
  std::shared_ptr<quire::cudart_emu::Capture> capture;  // the last record was part of it
};
struct CUgraph_st {
  std::vector<std::shared_ptr<quire::cudart_emu::Lane>> lanes;
};
struct CUgraphExec_st {
  std::shared_ptr<const CUgraph_st> graph;
};
