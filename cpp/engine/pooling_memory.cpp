// Layouts and the dry run; see pooling_memory.h.
#include "engine/pooling_memory.h"

#include <algorithm>

#include "engine/placer.h"
#include "model/pooler.h"

namespace quire {
namespace {

// Of the widest layer: its keys, then its values.
KvCache place_scratch_pages(const PoolingConfig& config, Placer& placer) {
  const int64_t num_blocks = num_scratch_blocks(config.capacity);
  KvCache cache;
  int64_t most = 0;
  for (const LayerSpec& layer : config.model.arch.layers) {
    cache.layers.push_back({.dtype = config.model.dtype,
                            .block_size = config.capacity.block_size,
                            .num_kv_heads = layer.attn.num_kv_heads,
                            .head_dim = layer.attn.head_dim});
    most = std::max(most, num_blocks * cache.layers.back().page_elements());
  }
  const auto num_bytes = most * static_cast<int64_t>(dtype_bytes(config.model.dtype));
  std::byte* const keys = placer.take<std::byte>(num_bytes);
  std::byte* const values = placer.take<std::byte>(num_bytes);
  for (KvCacheView& layer : cache.layers) {
    layer.k = keys;
    layer.v = values;
  }
  return cache;
}

}  // namespace

size_t place_pooling_buffers(const PoolingConfig& config, std::byte* base, PoolingBuffers& buffers) {
  const SchedulerOptions& capacity = config.capacity;
  const size_t rope_bytes = place_rope_tables(config.model, base, buffers.rope);
  std::byte* const after_rope = base == nullptr ? nullptr : base + rope_bytes;
  const size_t batch_bytes = place_batch_buffers(capacity, after_rope, buffers.batch);
  Placer placer(base == nullptr ? nullptr : after_rope + batch_bytes);
  buffers.token_type_ids = placer.take<int32_t>(capacity.max_num_batched_tokens);
  buffers.rows = placer.take<int32_t>(capacity.max_num_seqs);
  buffers.scratch = place_scratch_pages(config, placer);
  return rope_bytes + batch_bytes + placer.used();
}

std::vector<RegionSpan> kept_pooling_spans(const PoolingConfig& config, size_t num_buffer_bytes, const Weights& weights,
                                           const KernelTable& kernels) {
  Placer pages(nullptr);
  place_scratch_pages(config, pages);
  return {{0, num_buffer_bytes - pages.used()},
          {num_buffer_bytes, gemm_scratch_bytes(weights, kernels, config.options.batch_invariant)}};
}

size_t measure_pooling_arena(const PoolingConfig& config, const KernelTable& kernels, int num_threads) {
  const ModelConfig& model = config.model;
  Weights weights;
  place_weights(model.arch, model.weight_format(), kernels, nullptr, weights);
  PoolingBuffers buffers;
  place_pooling_buffers(config, nullptr, buffers);
  Arena arena;
  const Ops ops(kernels, Stream{}, arena);
  const Decoder decoder(model.arch, model.dtype, weights, buffers.rope.layers, num_threads);
  const Pooler pooler(model.arch, weights, decoder);
  DeviceBatch batch;
  batch.num_tokens = config.capacity.max_num_batched_tokens;
  batch.num_seqs = std::min(config.capacity.max_num_seqs, batch.num_tokens);
  batch.max_kv_len = config.capacity.max_model_len;
  for (const PoolingType type : {PoolingType::mean, PoolingType::all, PoolingType::cls, PoolingType::modes}) {
    const Arena::Scope scope(arena);
    const Tensor hidden = decoder.forward(batch, buffers.scratch, ops);
    if (!model.arch.is_first_rank()) break;  // it alone pools
    Tensor pooled = pooler.pool(hidden, batch, type, nullptr, ops);
    if (is_pooled_on_host(type)) pooled = ops.scratch(DType::f32, batch.num_seqs, state_columns(model.arch, type));
    const std::vector<HeadLayer>& head = model.arch.pooler.head;
    if (!head.empty() && pooled.size(1) == head.front().inputs) pooler.head(pooled, ops);
  }
  return arena.high_water_bytes();
}

}  // namespace quire
