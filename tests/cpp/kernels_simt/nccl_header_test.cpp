// nccl_api.h against NVIDIA's nccl.h, at compile time, where CMake has found that (QUIRE_NCCL_INCLUDE).
#include <gtest/gtest.h>

#include "cuda/comm/nccl_api.h"
#include "kernels_simt/same_call.h"

#if defined(QUIRE_HAS_NCCL_HEADER)
#include <nccl.h>

namespace quire::nccl {
namespace {

#define QUIRE_SAME_CALL(member, name) static_assert(SameCall<decltype(Functions::member), decltype(&name)>::value)
QUIRE_SAME_CALL(get_version, ncclGetVersion);
QUIRE_SAME_CALL(get_error_string, ncclGetErrorString);
QUIRE_SAME_CALL(get_last_error, ncclGetLastError);
QUIRE_SAME_CALL(comm_init_all, ncclCommInitAll);
QUIRE_SAME_CALL(comm_destroy, ncclCommDestroy);
QUIRE_SAME_CALL(comm_abort, ncclCommAbort);
QUIRE_SAME_CALL(comm_get_async_error, ncclCommGetAsyncError);
QUIRE_SAME_CALL(all_reduce, ncclAllReduce);
QUIRE_SAME_CALL(broadcast, ncclBroadcast);
QUIRE_SAME_CALL(send, ncclSend);
QUIRE_SAME_CALL(receive, ncclRecv);
QUIRE_SAME_CALL(group_start, ncclGroupStart);
QUIRE_SAME_CALL(group_end, ncclGroupEnd);
#undef QUIRE_SAME_CALL

static_assert(kSuccess == ncclSuccess && kUnhandledCudaError == ncclUnhandledCudaError);
static_assert(kSystemError == ncclSystemError && kInternalError == ncclInternalError);
static_assert(kInvalidArgument == ncclInvalidArgument && kInvalidUsage == ncclInvalidUsage);
static_assert(kRemoteError == ncclRemoteError && kInProgress == ncclInProgress);
static_assert(kUint8 == ncclUint8 && kFloat32 == ncclFloat32 && kSum == ncclSum);

}  // namespace
}  // namespace quire::nccl

TEST(NcclHeader, MatchesOurDeclarations) { SUCCEED() << "at compile time"; }
#else
TEST(NcclHeader, MatchesOurDeclarations) { GTEST_SKIP() << "no nccl.h on this machine"; }
#endif
