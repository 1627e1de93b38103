// Which machine is played, what was told to fail, and what errors are called.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "cuda/simt/cudart_emu/state.h"

namespace quire::cudart_emu {
namespace {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

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

}  // namespace

// Calls of a device that is not there say so.
cudaError_t check_device() {
  const Machine& machine = state().machine;
  if (machine.driver_version / 1000 < CUDART_VERSION / 1000) return cudaErrorInsufficientDriver;
  return machine.num_devices == 0 ? cudaErrorNoDevice : state().sticky;
}

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
