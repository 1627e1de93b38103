// The workspace of a pooling worker: rope tables, the device's copy of a batch, one layer's keys and values, scratch.
//
// Attention without a KV cache: the keys and values of a step lie in pages of the workspace, which every layer fills
// anew. A text begins on a page of its own, so the pages of a step are 0, 1, 2, ... Decides: what lies where.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/pooling_config.h"
#include "engine/region_copy.h"
#include "engine/step_memory.h"

namespace quire {

struct PoolingBuffers {
  RopePlacement rope;
  BatchBuffers batch;
  int32_t* token_type_ids = nullptr;
  int32_t* rows = nullptr;  // the token of each sequence that is pooled
  KvCache scratch;          // all layers see the same pages
};

// Both return the bytes they take from `base` on (nullptr: only measure).
size_t place_pooling_buffers(const PoolingConfig& config, std::byte* base, PoolingBuffers& buffers);
// Of the workspace, what outlives a step: all but the pages and the arena. `num_buffer_bytes`: of
// place_pooling_buffers.
std::vector<RegionSpan> kept_pooling_spans(const PoolingConfig& config, size_t num_buffer_bytes, const Weights& weights,
                                           const KernelTable& kernels);
// Scratch of the worst-case step, found by dry runs of forward and pool.
size_t measure_pooling_arena(const PoolingConfig& config, const KernelTable& kernels, int num_threads);

}  // namespace quire
