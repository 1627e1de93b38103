// The CUDA backend: one table, whose kernels are compiled by nvcc (name "cuda") or, from the same sources, by g++ for
// the emulation of kernels/cuda/simt (name "simt").
//
// Stream.handle is a cudaStream_t; every launcher is asynchronous on it. The emulation runs a kernel to its end within
// the launch and takes no notice of the stream.
//
// Launches of one layer of a dense decoder, norms before (Llama, Qwen), in order; each may start while the previous one
// drains (programmatic dependent launch) and waits before its first read of what that one wrote:
//   1 norm             residual, float32 -> 16 bits
//   2 gemm             q, k, v and their bias
//   3 rope_kv_write    head norms, rotation in place, keys and values into their pages
//   4 paged_attention  with the combination of its splits
//   5 gemm             output projection, bias, added to the residual
//   6 norm
//   7 gemm             gate and up, activation and product
//   8 gemm             down, bias, added to the residual
// Norms on both sides (Gemma 2) add two that add to the residual, so 10. Around the layers of a step: prepare_batch
// (decode only), plan_attention, embedding, then norm (a gather of the sampled rows), gemm (the head) and sample.
#pragma once

#include "params/kernel_table.h"

namespace quire::cuda {

const KernelTable& kernels();

}  // namespace quire::cuda
