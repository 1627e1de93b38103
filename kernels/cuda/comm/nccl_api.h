// What quire will call of NCCL: the functions as pointers, and the types and values they take.
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

struct UniqueId {  // ncclUniqueId, passed by value
  char bytes[128];
};

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
constexpr DataType kInt8 = 0;
constexpr DataType kUint8 = 1;
constexpr DataType kInt32 = 2;
constexpr DataType kFloat16 = 6;
constexpr DataType kFloat32 = 7;
constexpr DataType kBfloat16 = 9;

using Reduction = int;  // ncclRedOp_t
constexpr Reduction kSum = 0;
constexpr Reduction kProd = 1;
constexpr Reduction kMax = 2;
constexpr Reduction kMin = 3;
constexpr Reduction kAvg = 4;

// Counts are elements: of one rank's part where parts are gathered or scattered.
struct Functions {
  Result (*get_version)(int* version);  // 22703 is 2.27.3
  const char* (*get_error_string)(Result);
  const char* (*get_last_error)(Communicator*);  // null: of this thread's calls
  Result (*get_unique_id)(UniqueId*);
  Result (*comm_init_all)(Communicator**, int num_devices, const int* devices);
  Result (*comm_init_rank)(Communicator**, int num_ranks, UniqueId, int rank);
  Result (*comm_destroy)(Communicator*);
  Result (*comm_abort)(Communicator*);
  Result (*comm_get_async_error)(Communicator*, Result*);
  Result (*all_reduce)(const void* in, void* out, size_t count, DataType, Reduction, Communicator*, CudaStream);
  Result (*all_gather)(const void* in, void* out, size_t count, DataType, Communicator*, CudaStream);
  Result (*broadcast)(const void* in, void* out, size_t count, DataType, int root, Communicator*, CudaStream);
  Result (*reduce_scatter)(const void* in, void* out, size_t count, DataType, Reduction, Communicator*, CudaStream);
  Result (*group_start)();
  Result (*group_end)();
};

}  // namespace quire::nccl
