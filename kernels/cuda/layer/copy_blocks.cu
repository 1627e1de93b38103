// Copies whole pages of the KV cache, the keys and values of all layers in one launch.
//
// Mapping: grid (pair, array of pages), a block of 256 a page; a thread has four 16-byte loads in flight, 16 KB a
// block, so four blocks an SM keep the memory busy. Nothing is shared. A page that is written is in no other pair, so
// blocks are independent. Limit: bytes. Each page is read once and written once: 8 pages of Llama-3.1-8B (16 tokens, 64
// arrays of 32 KB) are 34 MB of traffic.
#include "base/check.h"
#include "cuda/layer/layer.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {

constexpr int kCopyThreads = 256;
constexpr int kCopyLoads = 4;  // in flight a thread

__global__ void __launch_bounds__(kCopyThreads) copy_blocks_kernel(const __grid_constant__ CopyBlocksParams p) {
  simt::grid_dependency_wait();
  simt::grid_dependency_launch();
  const BlockCopy copy = p.copies[blockIdx.x];
  const PageArray array = p.arrays[blockIdx.y];
  char* pages = static_cast<char*>(array.pages);
  const uint4* source = reinterpret_cast<const uint4*>(pages + copy.source * array.page_bytes);
  uint4* destination = reinterpret_cast<uint4*>(pages + copy.destination * array.page_bytes);
  const int64_t count = array.page_bytes / 16;
  for (int64_t first = threadIdx.x; first < count; first += kCopyLoads * kCopyThreads) {
    uint4 loaded[kCopyLoads];
#pragma unroll
    for (int i = 0; i < kCopyLoads; ++i) {
      const int64_t at = first + i * kCopyThreads;
      if (at < count) loaded[i] = source[at];
    }
#pragma unroll
    for (int i = 0; i < kCopyLoads; ++i) {
      const int64_t at = first + i * kCopyThreads;
      if (at < count) destination[at] = loaded[i];
    }
  }
}

void copy_blocks(const CopyBlocksParams& p, Stream stream) {
  QUIRE_CHECK(p.num_copies >= 0 && p.num_arrays >= 0 && p.num_arrays <= 65535, p.num_copies, " copies in ",
              p.num_arrays, " arrays");
  if (p.num_copies == 0 || p.num_arrays == 0) return;
  simt::launch<copy_blocks_kernel>(
      {.grid = dim3(static_cast<unsigned>(p.num_copies), static_cast<unsigned>(p.num_arrays)),
       .block = dim3(kCopyThreads),
       .stream = stream,
       .pdl = true},
      p);
}

}  // namespace quire::cuda
