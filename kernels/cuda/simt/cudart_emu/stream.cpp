// Streams and events of the emulated device, copies, and the launches that simt::launch hands over.
//
// Decides when queued work is done: when it is waited for, in the order of its stream, other streams no further than
// their events ask. A kernel's KernelError breaks the device for good.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include "base/check.h"
#include "cuda/simt/cudart_emu/state.h"
#include "cuda/simt/engine.h"
#include "cuda/simt/kernel_name.h"

namespace quire::cudart_emu {
namespace {

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

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void advance(Lane& lane, uint64_t position, bool does_work) {
  if (lane.done >= position) return;
  const Unlocked unlocked;  // once for all work, because it asks the system for each piece of memory
  while (lane.done < position) {
    const Op op = std::move(lane.ops.front());
    lane.ops.pop_front();
    if (op.wait.lane) advance(*op.wait.lane, op.wait.position, does_work);
    if (op.work && does_work) run(*op.work);
    if (op.stamp && does_work && state().sticky == cudaSuccess) *op.stamp = now_ns();
    ++lane.done;
  }
}

bool is_known(cudaStream_t stream) { return stream == nullptr || state().streams.count(stream) > 0; }

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

namespace {

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

}  // namespace

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(state().mutex);
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (stream == nullptr || !is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  return push(stream, std::move(work));
}

}  // namespace quire::cudart_emu

using namespace quire::cudart_emu;

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
  if (stream->capture) {  // which can no longer end
    stream->capture->is_invalid = true;
    for (const auto& lane : stream->capture->lanes) lane->ops.clear();
  }
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

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const std::lock_guard lock(state().mutex);
  *event = nullptr;
  if (const cudaError_t error = check_device(); error != cudaSuccess) return set_error(error);
  if (allocation_fails()) return set_error(cudaErrorMemoryAllocation);
  *event = *state().events.insert(new CUevent_st).first;
  (*event)->has_timing = (flags & cudaEventDisableTiming) == 0;
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
  event->stamp = event->has_timing && !event->capture ? std::make_shared<int64_t>(0) : nullptr;
  if (stream == nullptr) {
    if (event->stamp) *event->stamp = now_ns();
    return cudaSuccess;
  }
  if (event->stamp) push(stream, Op{.work = nullptr, .wait = {}, .stamp = event->stamp});
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
// What lies between two looks at the clock of the host, as exact as that is; a GPU's are about half a microsecond
// exact.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const std::lock_guard lock(state().mutex);
  if (!state().events.count(start) || !state().events.count(end)) return set_error(cudaErrorInvalidResourceHandle);
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (!start->stamp || !end->stamp) return set_error(cudaErrorInvalidResourceHandle);
  if (*start->stamp == 0 || *end->stamp == 0) return set_error(cudaErrorNotReady);
  *milliseconds = static_cast<float>(static_cast<double>(*end->stamp - *start->stamp) * 1e-6);
  return cudaSuccess;
}
