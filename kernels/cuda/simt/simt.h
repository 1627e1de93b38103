// What every kernel source includes: CUDA under nvcc (the wrappers of kernels/cuda/nvcc), its emulation under any other
// C++20 compiler (this folder).
//
// Kernels are written in CUDA's own names, with these rules: no inline assembly and no __CUDA_ARCH__ outside
// kernels/cuda/nvcc, no <<<>>>, no cooperative_groups, shared memory by block_shared, warp functions with explicit
// masks, no assumption that the lanes of a warp run in step, no waiting for another block.
//   template <typename T> __global__ void __launch_bounds__(128) decode_kernel(const __grid_constant__ DecodeArgs p);
//   simt::launch<decode_kernel<T>>({.grid = dim3(n), .block = dim3(128), .shared_bytes = sizeof(Smem), .stream = s},
//   p);
#pragma once

#if defined(__CUDACC__)
#include "cuda/nvcc/simt_cuda.h"
#else
#include "cuda/simt/simt_emulation.h"
#endif
