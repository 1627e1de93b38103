// Attention of prefill chunks by Hopper's wgmma and TMA: the fast path of paged_attention on sm_90a.
#pragma once

#include "params/attention.h"
#include "params/stream.h"

namespace quire::cuda {

// Whether prefill_sm90 can run this: head_dim 64, 128 or 256 in bf16 or f16, groups of at most 64 heads, rows of q and
// out at multiples of 16 bytes, num_tokens given, no soft cap, no ALiBi, no relative bias, and a device of compute
// capability 9.0.
// Whether it should is the caller's choice: its bits are not those of the mma.sync kernels. Within it a row's bits
// depend on its own position, query and keys alone, so a choice by sequence or by launch option keeps results
// reproducible; a choice by the batch at hand does not.
bool prefill_sm90_takes(const PagedAttentionParams& params);
void prefill_sm90(const PagedAttentionParams& params, Stream stream);

}  // namespace quire::cuda
