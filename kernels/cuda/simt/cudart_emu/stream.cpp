// Streams, events and graphs of the emulated device, its errors, and the launches that simt::launch hands over.
//
// Decides when queued work is done: when it is waited for, in the order of its stream, other streams no further than
// their events ask. A kernel's KernelError breaks the device for good.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include "base/check.h"
#include "cuda/simt/cudart_emu/state.h"
#include "cuda/simt/engine.h"
#include "cuda/simt/kernel_name.h"

struct CUstream_st {
  std::shared_ptr<quire::cudart_emu::Lane> lane = std::make_shared<quire::cudart_emu::Lane>();
  std::shared_ptr<quire::cudart_emu::Capture> capture;
  std::shared_ptr<quire::cudart_emu::Lane> captured;  // what the capture records of this stream
};
struct CUevent_st {
  quire::cudart_emu::Marker marker;
  std::shared_ptr<quire::cudart_emu::Capture> capture;  // the last record was part of it
};
struct CUgraph_st {
  std::vector<std::shared_ptr<quire::cudart_emu::Lane>> lanes;
};
struct CUgraphExec_st {
  std::shared_ptr<const CUgraph_st> graph;
};

namespace quire::cudart_emu {
namespace {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

void run(const std::function<void()>& work) {
  State& s = state();
  if (s.sticky != cudaSuccess) return;
  const Unlocked unlocked;
  try {
    work();
  } catch (const std::exception& error) {
    s.report = error.what();
    if (s.sticky == cudaSuccess) s.sticky = cudaErrorLaunchFailure;
  }
}

// Does the work of the lane up to `position`; of others what it waits for. Without `does_work` it only counts.
void advance(Lane& lane, uint64_t position, bool does_work = true) {
  while (lane.done < position) {
    const Op op = std::move(lane.ops.front());
    lane.ops.pop_front();
    if (op.wait.lane) advance(*op.wait.lane, op.wait.position, does_work);
    if (op.work && does_work) run(*op.work);
    ++lane.done;
  }
}

// Fresh lanes with the work of a graph: its waits point from one to the other.
std::vector<std::shared_ptr<Lane>> unrolled(const std::vector<std::shared_ptr<Lane>>& lanes) {
  std::vector<std::shared_ptr<Lane>> fresh;
  for (const auto& lane : lanes) fresh.push_back(std::make_shared<Lane>(*lane));
  for (const auto& lane : fresh) {
    for (Op& op : lane->ops) {
      if (!op.wait.lane) continue;
      const auto it = std::find(lanes.begin(), lanes.end(), op.wait.lane);
      op.wait.lane = fresh[static_cast<size_t>(it - lanes.begin())];
    }
  }
  return fresh;
}

bool is_known(cudaStream_t stream) { return stream == nullptr || state().streams.count(stream) > 0; }

// Puts work on a stream, or into what it captures; the stream null does it at once.
cudaError_t push(cudaStream_t stream, Op op) {
  if (stream == nullptr) {
    if (op.work) run(*op.work);
    return set_error(state().sticky);
  }
  Lane& lane = stream->capture ? *stream->captured : *stream->lane;
  lane.ops.push_back(std::move(op));
  return cudaSuccess;
}
cudaError_t push(cudaStream_t stream, std::function<void()> work) {
  return push(stream, Op{std::make_shared<const std::function<void()>>(std::move(work)), {}});
}

cudaError_t invalidate(Capture& capture, cudaError_t error) {
  capture.is_invalid = true;
  return set_error(error);
}

void join(cudaStream_t stream, const std::shared_ptr<Capture>& capture) {
  stream->capture = capture;
  stream->captured = std::make_shared<Lane>();
  capture->streams.push_back(stream);
  capture->lanes.push_back(stream->captured);
}

// A copy or a fill: its memory is looked at when it is queued and again when it is done.
cudaError_t push_access(cudaStream_t stream, const char* call, std::vector<std::pair<const void*, size_t>> memory,
                        std::function<void()> access) {
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (!is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  for (const auto& [address, num_bytes] : memory) {
    const std::string why = out_of_reach(address, num_bytes);
    if (!why.empty()) return refuse(cudaErrorInvalidValue, str_cat(call, ": ", why));
  }
  return push(stream, [call, memory = std::move(memory), access = std::move(access)] {
    for (const auto& [address, num_bytes] : memory) {
      const std::string why = out_of_reach(address, num_bytes);
      if (why.empty()) continue;
      state().sticky = cudaErrorIllegalAddress;
      throw DeviceError(str_cat(call, " ran after its memory was freed: ", why));
    }
    access();
  });
}

bool is_blocking() {
  const auto is_set = [](const char* name) {
    const char* const value = std::getenv(name);
    return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
  };
  return is_set("QUIRE_LAUNCH_BLOCKING") || is_set("CUDA_LAUNCH_BLOCKING");
}

// The launch with its own copy of the arguments.
struct StoredLaunch {
  explicit StoredLaunch(const simt::Launch& other) : launch(other) {
    const std::align_val_t alignment{other.args_alignment};
    launch.args = std::memcpy(::operator new(other.args_bytes, alignment), other.args, other.args_bytes);
  }
  ~StoredLaunch() { ::operator delete(const_cast<void*>(launch.args), std::align_val_t{launch.args_alignment}); }
  StoredLaunch(const StoredLaunch&) = delete;
  StoredLaunch& operator=(const StoredLaunch&) = delete;
  simt::Launch launch;
};

void run_kernel(const simt::Launch& launch) {
  State& s = state();
  if (s.kernels_to_fault > 0 && --s.kernels_to_fault == 0) {
    s.sticky = s.kernel_fault;
    throw DeviceError(str_cat("kernel ", simt::kernel_name(launch.launcher), ": a fault that a test asked for"));
  }
  try {
    simt::run_grid(launch.grid, launch.block, launch.shared_bytes, launch.body, launch.args);
  } catch (const std::exception& error) {
    throw DeviceError(str_cat("kernel ", simt::kernel_name(launch.launcher), ": ", error.what()));
  }
}

void check_launch(cudaError_t error, const char* launcher) {
  if (error == cudaSuccess) return;
  const std::string text = cudaGetErrorString(error);
  static_cast<void>(cudaGetLastError());
  throw DeviceError(str_cat("launch of ", simt::kernel_name(launcher), ": ", text, " (", cudaGetErrorName(error), ")"));
}

void take_launch(void* handle, const simt::Launch& launch) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  const auto stream = static_cast<cudaStream_t>(handle);
  check_launch(s.sticky, launch.launcher);
  if (!is_known(stream)) check_launch(cudaErrorInvalidResourceHandle, launch.launcher);
  if (s.launches_to_fault > 0 && --s.launches_to_fault == 0) {
    check_launch(set_error(cudaErrorLaunchOutOfResources), launch.launcher);
  }
  const auto stored = std::make_shared<const StoredLaunch>(launch);
  push(stream, [stored] { run_kernel(stored->launch); });
  if (is_blocking() && !stream->capture) check_launch(cudaStreamSynchronize(stream), launch.launcher);
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge", "operation would result in a merge of captures"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not initiated in this stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work from another stream"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
};

const ErrorText* find_error(cudaError_t error) {
  const auto* const it =
      std::find_if(std::begin(kErrors), std::end(kErrors), [&](auto& e) { return e.error == error; });
  return it == std::end(kErrors) ? nullptr : it;
}

// Calls of a device that is not there say so.
cudaError_t check_device() {
  const Machine& machine = state().machine;
  if (machine.driver_version / 1000 < CUDART_VERSION / 1000) return cudaErrorInsufficientDriver;
  return machine.num_devices == 0 ? cudaErrorNoDevice : state().sticky;
}

}  // namespace

State& state() {
  static State* const it = new State;  // never destroyed: streams of statics may be given back at the very end
  return *it;
}

cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  if (error != cudaSuccess) state().refusal.clear();
  return error;
}
cudaError_t refuse(cudaError_t error, std::string why) {
  set_error(error);
  state().refusal = std::move(why);
  return error;
}
bool allocation_fails() { return state().allocations_to_fault > 0 && --state().allocations_to_fault == 0; }
bool capture_forbids() {
  for (const cudaStream_t stream : state().streams) {
    const Capture* const capture = stream->capture.get();
    if (capture == nullptr || capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread != std::this_thread::get_id()) continue;
    stream->capture->is_invalid = true;
    return true;
  }
  return false;
}

void reset(const Machine& machine) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  s.machine = machine;
  s.allocations_to_fault = s.launches_to_fault = s.kernels_to_fault = 0;
  s.sticky = cudaSuccess;
  s.report.clear();
  s.refusal.clear();
  last_error = cudaSuccess;
  current_device = 0;
  const Unlocked protects_anew;
}
void fail_allocation_after(int64_t n) {
  const std::lock_guard lock(state().mutex);
  state().allocations_to_fault = n;
}
void fail_launch_after(int64_t n) {
  const std::lock_guard lock(state().mutex);
  state().launches_to_fault = n;
}
void fail_kernel_after(int64_t n, cudaError_t error) {
  const std::lock_guard lock(state().mutex);
  state().kernels_to_fault = n;
  state().kernel_fault = error;
}
bool faults_pending() {
  const std::lock_guard lock(state().mutex);
  return state().allocations_to_fault + state().launches_to_fault + state().kernels_to_fault > 0;
}

Live live() {
  const std::lock_guard lock(state().mutex);
  const State& s = state();
  const auto count = [](const auto& things) { return static_cast<int64_t>(things.size()); };
  const auto host = std::count_if(s.blocks.begin(), s.blocks.end(), [](auto& block) { return block.second.is_host; });
  return {.address_ranges = count(s.reservations),
          .memory_handles = count(s.handles),
          .mappings = count(s.mappings),
          .host_buffers = static_cast<int64_t>(host),
          .streams = count(s.streams),
          .events = count(s.events),
          .graphs = count(s.graphs),
          .graph_execs = count(s.execs),
          .device_bytes = s.device_bytes};
}

int64_t num_queued() {
  const std::lock_guard lock(state().mutex);
  int64_t count = 0;
  for (const cudaStream_t stream : state().streams) {
    count +=
        std::count_if(stream->lane->ops.begin(), stream->lane->ops.end(), [](auto& op) { return op.work != nullptr; });
  }
  return count;
}

}  // namespace quire::cudart_emu

using namespace quire::cudart_emu;

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* const found = find_error(error);
  return found ? found->name : "cudaErrorUnknown";
}
// With what the emulation knows besides: the report of the kernel that broke the device, the reason of a refusal.
const char* cudaGetErrorString(cudaError_t error) {
  const std::lock_guard lock(state().mutex);
  const ErrorText* const found = find_error(error);
  const char* const text = found ? found->text : "unknown error";
  const std::string& more = error == state().sticky ? state().report : state().refusal;
  if (error == cudaSuccess || more.empty() || (error != state().sticky && error != last_error)) return text;
  static thread_local std::string whole;
  whole = quire::str_cat(text, ": ", more);
  return whole.c_str();
}
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = state().machine.driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  const std::lock_guard lock(state().mutex);
  *count = 0;
  const cudaError_t error = check_device();
  if (error == cudaSuccess) *count = state().machine.num_devices;
  return set_error(error);
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  const std::lock_guard lock(state().mutex);
  if (const cudaError_t error = check_device(); error != cudaSuccess) return set_error(error);
  if (device < 0 || device >= state().machine.num_devices) return set_error(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const std::lock_guard lock(state().mutex);
  const Machine& machine = state().machine;
  if (device < 0 || device >= machine.num_devices) return set_error(cudaErrorInvalidDevice);
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? machine.compute_major : machine.compute_minor;
  return set_error(state().sticky);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const std::lock_guard lock(state().mutex);
  const Machine& machine = state().machine;
  if (device < 0 || device >= machine.num_devices) return set_error(cudaErrorInvalidDevice);
  *properties = {"emulated GPU", machine.memory_bytes, machine.compute_major, machine.compute_minor};
  return set_error(state().sticky);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  return push_access(stream, "cudaMemcpyAsync", {{to, num_bytes}, {from, num_bytes}},
                     [=] { std::memmove(to, from, num_bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t num_bytes, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  return push_access(stream, "cudaMemsetAsync", {{to, num_bytes}}, [=] { std::memset(to, value, num_bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const std::lock_guard lock(state().mutex);
  *stream = nullptr;
  if (const cudaError_t error = check_device(); error != cudaSuccess) return set_error(error);
  if (allocation_fails()) return set_error(cudaErrorMemoryAllocation);
  quire::simt::launch_hook = take_launch;
  *stream = *state().streams.insert(new CUstream_st).first;
  return cudaSuccess;
}
// What is queued is done first, as on a GPU, where it would go on behind the caller's back.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  if (stream == nullptr || !is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  advance(*stream->lane, stream->lane->end());
  state().streams.erase(stream);
  delete stream;
  return set_error(state().sticky);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  if (!is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  if (stream == nullptr) return set_error(state().sticky);
  if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  advance(*stream->lane, stream->lane->end());
  return set_error(state().sticky);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  if (!is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  if (stream == nullptr || stream->lane->ops.empty() || state().sticky != cudaSuccess) return set_error(state().sticky);
  advance(*stream->lane, stream->lane->done + 1);
  return set_error(cudaErrorNotReady);
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(state().mutex);
  for (const cudaStream_t stream : state().streams) {
    if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  }
  for (const cudaStream_t stream : state().streams) advance(*stream->lane, stream->lane->end());
  return set_error(state().sticky);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(state().mutex);
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (stream == nullptr || !is_known(stream) || !state().events.count(event)) {
    return set_error(cudaErrorInvalidResourceHandle);
  }
  if (event->capture) {
    if (event->capture->is_over) return set_error(cudaErrorCapturedEvent);
    if (!stream->capture) join(stream, event->capture);
    if (stream->capture != event->capture) {
      event->capture->is_invalid = true;
      return invalidate(*stream->capture, cudaErrorStreamCaptureMerge);
    }
  } else if (stream->capture) {
    return invalidate(*stream->capture, cudaErrorStreamCaptureIsolation);
  }
  return event->marker.lane ? push(stream, Op{nullptr, event->marker}) : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const std::lock_guard lock(state().mutex);
  *event = nullptr;
  if (const cudaError_t error = check_device(); error != cudaSuccess) return set_error(error);
  if (allocation_fails()) return set_error(cudaErrorMemoryAllocation);
  *event = *state().events.insert(new CUevent_st).first;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(state().mutex);
  if (!state().events.erase(event)) return set_error(cudaErrorInvalidResourceHandle);
  delete event;
  return set_error(state().sticky);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (!is_known(stream) || !state().events.count(event)) return set_error(cudaErrorInvalidResourceHandle);
  event->capture = stream ? stream->capture : nullptr;
  event->marker = {};
  if (stream == nullptr) return cudaSuccess;
  event->marker.lane = stream->capture ? stream->captured : stream->lane;
  event->marker.position = event->marker.lane->end();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(state().mutex);
  if (!state().events.count(event)) return set_error(cudaErrorInvalidResourceHandle);
  if (event->capture) return set_error(cudaErrorCapturedEvent);
  if (event->marker.lane) advance(*event->marker.lane, event->marker.position);
  return set_error(state().sticky);
}
// Makes one step towards the event, so that asking again and again comes to an end.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(state().mutex);
  if (!state().events.count(event)) return set_error(cudaErrorInvalidResourceHandle);
  if (event->capture) return set_error(cudaErrorCapturedEvent);
  Lane* const lane = event->marker.lane.get();
  if (state().sticky != cudaSuccess || lane == nullptr || lane->done >= event->marker.position) {
    return set_error(state().sticky);
  }
  advance(*lane, lane->done + 1);
  return set_error(cudaErrorNotReady);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const std::lock_guard lock(state().mutex);
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (stream == nullptr || !is_known(stream)) return set_error(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  const auto capture = std::make_shared<Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  join(stream, capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(state().mutex);
  *graph = nullptr;
  if (stream == nullptr || !is_known(stream) || !stream->capture) return set_error(cudaErrorInvalidValue);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream) return invalidate(*capture, cudaErrorStreamCaptureUnmatched);
  capture->is_over = true;
  for (const cudaStream_t member : capture->streams) {
    if (!is_known(member)) continue;
    member->capture = nullptr;
    member->captured = nullptr;
  }
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (capture->is_invalid) return set_error(cudaErrorStreamCaptureInvalidated);
  const std::vector<std::shared_ptr<Lane>> trial = unrolled(capture->lanes);
  advance(*trial[0], trial[0]->end(), false);
  for (const auto& lane : trial) {
    if (!lane->ops.empty()) return set_error(cudaErrorStreamCaptureUnjoined);
  }
  *graph = *state().graphs.insert(new CUgraph_st{capture->lanes}).first;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(state().mutex);
  if (!is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  const Capture* const capture = stream ? stream->capture.get() : nullptr;
  *status = !capture              ? cudaStreamCaptureStatusNone
            : capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const std::lock_guard lock(state().mutex);
  *exec = nullptr;
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (!state().graphs.count(graph)) return set_error(cudaErrorInvalidValue);
  if (allocation_fails()) return set_error(cudaErrorMemoryAllocation);
  *exec = *state().execs.insert(new CUgraphExec_st{std::make_shared<CUgraph_st>(*graph)}).first;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  if (s.sticky != cudaSuccess) return set_error(s.sticky);
  if (!is_known(stream) || !s.execs.count(exec)) return set_error(cudaErrorInvalidResourceHandle);
  if (stream && stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  if (s.launches_to_fault > 0 && --s.launches_to_fault == 0) return set_error(cudaErrorLaunchOutOfResources);
  return push(stream, [graph = exec->graph] {
    const std::vector<std::shared_ptr<Lane>> lanes = unrolled(graph->lanes);
    advance(*lanes[0], lanes[0]->end());
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard lock(state().mutex);
  if (!state().graphs.erase(graph)) return set_error(cudaErrorInvalidValue);
  delete graph;
  return set_error(state().sticky);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const std::lock_guard lock(state().mutex);
  if (!state().execs.erase(exec)) return set_error(cudaErrorInvalidValue);
  delete exec;
  return set_error(state().sticky);
}
