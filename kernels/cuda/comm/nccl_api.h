// What quire calls of NCCL: the functions as pointers, and the types and values they take.
//
// Declared here, so that no header and no library of NCCL is needed to build or to link;
// tests/cpp/kernels_simt/nccl_header_test.cpp holds this file against NVIDIA's nccl.h where that is found. Names are
// NVIDIA's without the prefix nccl. Values have not changed from NCCL 2.13, the first that has all the functions,
// to 2.32.
#pragma once

#include <cstddef>

namespace quire::nccl {

struct Communicator;  // opaque to us
using CudaStream = void*;

using Result = int;  // ncclResult_t
constexpr Result kSuccess = 0;
constexpr Result kUnhandledCudaError = 1;
constexpr Result kSystemError = 2;
constexpr Result kInternalError = 3;
constexpr Result kInvalidArgument = 4;
constexpr Result kInvalidUsage = 5;
constexpr Result kRemoteError = 6;
constexpr Result kInProgress = 7;  // from 2.14

using DataType = int;  // ncclDataType_t
constexpr DataType kUint8 = 1;
constexpr DataType kFloat32 = 7;

using Reduction = int;  // ncclRedOp_t
constexpr Reduction kSum = 0;

// Counts are elements.
struct Functions {
  Result (*get_version)(int* version);  // 22703 is 2.27.3
  const char* (*get_error_string)(Result);
  const char* (*get_last_error)(Communicator*);  // null: of this thread's calls
  Result (*comm_init_all)(Communicator**, int num_devices, const int* devices);
  Result (*comm_destroy)(Communicator*);
  Result (*comm_abort)(Communicator*);
  Result (*comm_get_async_error)(Communicator*, Result*);
  Result (*all_reduce)(const void* in, void* out, size_t count, DataType, Reduction, Communicator*, CudaStream);
  Result (*broadcast)(const void* in, void* out, size_t count, DataType, int root, Communicator*, CudaStream);
  Result (*send)(const void* in, size_t count, DataType, int peer, Communicator*, CudaStream);
  Result (*receive)(void* out, size_t count, DataType, int peer, Communicator*, CudaStream);  // ncclRecv
  Result (*group_start)();
  Result (*group_end)();
};

}  // namespace quire::nccl
