// Streams, the driver's functions and the telling of errors; see context.h.
//
// An error of an asynchronous call is told by whichever call comes next, so messages name both that call and the way to
// learn which kernel it was.
#include "device/cuda/context.h"

#include <cstdlib>
#include <cstring>

#include "cuda/cuda_kernels.h"
#include "device/cuda/machine.h"

namespace quire {
namespace {

// Errors after which no call of this process succeeds on the device.
bool ends_device(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return true;
    default:
      return false;
  }
}

constexpr const char* kHowToName =
    ". Kernels run behind the caller's back, so the call that tells is seldom the one that failed: "
    "QUIRE_LAUNCH_BLOCKING=1 waits for each kernel and names it";

constexpr unsigned kDriverVersion = 12000;  // the version of the functions' signatures

}  // namespace

CudaContext::CudaContext(int index) : index_(index), label_(str_cat(cuda::kernels().name, ":", index)) {
  check_cuda_machine(index);
  use();
  find_driver();
  try {
    make_streams();
  } catch (...) {
    destroy_streams();
    throw;
  }
}

CudaContext::~CudaContext() {
  quiesce();
  destroy_streams();
}

void CudaContext::find_driver() {
  const auto find = [this](auto& function, const char* name) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion(name, &address, kDriverVersion, cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (address == nullptr || found != cudaDriverEntryPointSuccess) {
      throw NotSupported(str_cat("the NVIDIA driver has no function ", name, "; update the driver"));
    }
    std::memcpy(&function, &address, sizeof(address));
  };
  find(driver_.get_error_name, "cuGetErrorName");
  find(driver_.get_error_string, "cuGetErrorString");
  find(driver_.get_granularity, "cuMemGetAllocationGranularity");
  find(driver_.reserve, "cuMemAddressReserve");
  find(driver_.free_addresses, "cuMemAddressFree");
  find(driver_.create, "cuMemCreate");
  find(driver_.release, "cuMemRelease");
  find(driver_.map, "cuMemMap");
  find(driver_.unmap, "cuMemUnmap");
  find(driver_.set_access, "cuMemSetAccess");
}

// Without order against the legacy stream, which belongs to whoever else uses CUDA in this process.
void CudaContext::make_streams() {
  const auto* const purpose = "a stream";
  check_memory(cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags", purpose);
  check_memory(cudaStreamCreateWithFlags(&copy_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags", purpose);
}

void CudaContext::destroy_streams() noexcept {
  for (const cudaStream_t stream : {compute_, copy_}) {
    if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
  }
  static_cast<void>(cudaGetLastError());
}

void CudaContext::use() {
  if (!failure_.empty()) tell(cudaErrorUnknown, "", "");
  check(cudaSetDevice(index_), "cudaSetDevice");
}

void CudaContext::synchronize() {
  use();
  check(cudaStreamSynchronize(compute_), "cudaStreamSynchronize");
  check(cudaStreamSynchronize(copy_), "cudaStreamSynchronize");
}

void CudaContext::quiesce() noexcept {
  static_cast<void>(cudaSetDevice(index_));
  if (compute_ != nullptr) static_cast<void>(cudaStreamSynchronize(compute_));
  if (copy_ != nullptr) static_cast<void>(cudaStreamSynchronize(copy_));
  static_cast<void>(cudaGetLastError());
}

void CudaContext::fail(cudaError_t error, const char* call, const std::string& purpose) {
  const std::string text = cudaGetErrorString(error);
  static_cast<void>(cudaGetLastError());
  tell(error, str_cat(call, " failed on ", label_, ": ", text, " (", cudaGetErrorName(error), ")"), purpose);
}

void CudaContext::check_driver(CUresult result, const char* call, const std::string& purpose) {
  if (result == CUDA_SUCCESS) return;
  const char* name = "unknown error";
  const char* text = "";
  static_cast<void>(driver_.get_error_name(result, &name));
  static_cast<void>(driver_.get_error_string(result, &text));
  tell(static_cast<cudaError_t>(result), str_cat(call, " failed on ", label_, ": ", text, " (", name, ")"), purpose);
}

void CudaContext::tell(cudaError_t error, const std::string& said, const std::string& purpose) {
  if (!failure_.empty()) {
    throw DeviceError(
        str_cat("the device failed earlier: ", failure_, ". This process cannot use it any more; start a new one"));
  }
  if (ends_device(error)) {
    failure_ = said;
    const char* const blocking = std::getenv("QUIRE_LAUNCH_BLOCKING");
    const bool is_named = blocking != nullptr && std::strcmp(blocking, "1") == 0;
    throw DeviceError(
        str_cat(said, is_named ? "" : kHowToName, ". The device is lost to this process; start a new one"));
  }
  if (error != cudaErrorMemoryAllocation) {
    throw DeviceError(purpose.empty() ? said : str_cat(said, ", for ", purpose));
  }
  size_t free_bytes = 0, total_bytes = 0;
  static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
  static_cast<void>(cudaGetLastError());
  throw OutOfMemory(
      str_cat("out of memory", purpose.empty() ? "" : " for ", purpose, ": ", gib_text(free_bytes), " of ",
              gib_text(total_bytes), " are free on ", label_, " (", said,
              "). Reduce gpu_memory_utilization, kv_cache_memory_bytes, max_model_len or max_num_seqs, or "
              "free what other processes hold (nvidia-smi lists them)"));
}

}  // namespace quire
