// The workspace of a worker: rope tables, the device's copy of a Batch, and the size of a step's scratch.
//
// Decides: what lies where in the `workspace` region. All sizes follow from the architecture and the scheduler's
// budgets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/huge_pages.h"
#include "device/device.h"
#include "engine/scheduler.h"
#include "model/decoder.h"
#include "model/kv_cache.h"
#include "model/model_config.h"

namespace quire {

// Room for the flat arrays of the largest Batch.
struct BatchBuffers {
  int32_t* token_ids = nullptr;
  int32_t* positions = nullptr;
  int32_t* slot_mapping = nullptr;
  int32_t* query_start = nullptr;
  int32_t* kv_lens = nullptr;
  int32_t* block_tables = nullptr;
  int32_t* sample_token_rows = nullptr;
};

// The KV cache as KernelTable::copy_blocks reads it, and the copies of a step.
struct CopyBuffers {
  PageArray* arrays = nullptr;  // two a layer
  BlockCopy* copies = nullptr;  // [max_num_seqs]
};

// Where the rope tables lie: one for each different RopeSpec.
struct RopePlacement {
  struct Table {
    const RopeSpec* spec = nullptr;
    float* data = nullptr;  // [max_model_len, rotary_dim]
  };
  std::vector<Table> tables;
  RopeTables layers;
};

// All return the bytes they take from `base` on (nullptr: only measure).
size_t place_batch_buffers(const SchedulerOptions& options, std::byte* base, BatchBuffers& buffers);
size_t place_copy_buffers(int64_t num_layers, const SchedulerOptions& options, std::byte* base, CopyBuffers& buffers);
size_t place_rope_tables(const ModelConfig& model, std::byte* base, RopePlacement& rope);

// What products share sums through (KernelTable::gemm_workspace_bytes), in whole lines.
size_t gemm_scratch_bytes(const Weights& weights, const KernelTable& kernels, bool batch_invariant);

// Once the places are there: the values of the tables, and the scratch, zeroed, as that of `ops`.
void fill_rope_tables(const ModelConfig& model, const RopePlacement& rope, Device& device);
void bind_gemm_scratch(const Weights& weights, bool batch_invariant, std::byte* base, Device& device, Ops& ops);

// Scratch of the worst-case step, found by a dry run of forward, logits and sampling.
size_t measure_arena(const ModelConfig& model, const SchedulerOptions& options, const KernelTable& kernels,
                     int num_threads);

// The KV cache of `model` from `base` on (null: to measure it), as suits the device's memory.
inline KvCache place_pages_on(const Device& device, const ModelConfig& model, int32_t block_size, int64_t num_blocks,
                              std::byte* base) {
  const size_t alignment = device.is_asynchronous() ? 1 : kHugePageBytes;
  return place_kv_cache(model.arch, model.dtype, block_size, num_blocks, base, alignment);
}

}  // namespace quire
