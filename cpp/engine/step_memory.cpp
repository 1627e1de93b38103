// Layouts and the dry run; see step_memory.h.
#include "engine/step_memory.h"

#include <algorithm>

#include "engine/placer.h"
#include "model/rope_table.h"

namespace quire {
namespace {

int64_t blocks_of(const SchedulerOptions& options) {
  return (options.max_model_len + options.block_size - 1) / options.block_size;
}

}  // namespace

size_t place_batch_buffers(const SchedulerOptions& options, std::byte* base, BatchBuffers& buffers) {
  Placer placer(base);
  buffers.token_ids = placer.take<int32_t>(options.max_num_batched_tokens);
  buffers.positions = placer.take<int32_t>(options.max_num_batched_tokens);
  buffers.slot_mapping = placer.take<int32_t>(options.max_num_batched_tokens);
  buffers.query_start = placer.take<int32_t>(options.max_num_seqs + 1);
  buffers.kv_lens = placer.take<int32_t>(options.max_num_seqs);
  buffers.block_tables = placer.take<int32_t>(options.max_num_seqs * blocks_of(options));
  buffers.sample_token_rows = placer.take<int32_t>(std::max(options.max_num_seqs, options.max_samples()));
  return placer.used();
}

size_t place_copy_buffers(int64_t num_layers, const SchedulerOptions& options, std::byte* base, CopyBuffers& buffers) {
  Placer placer(base);
  buffers.arrays = placer.take<PageArray>(2 * num_layers);
  buffers.copies = placer.take<BlockCopy>(options.max_num_seqs);
  return placer.used();
}

size_t place_rope_tables(const ModelConfig& model, std::byte* base, RopePlacement& rope) {
  Placer placer(base);
  rope = {};
  for (const LayerSpec& layer : model.arch.layers) {
    const RopeSpec& spec = layer.attn.rope;
    const float* data = nullptr;
    if (spec.rotary_dim > 0) {
      auto found = std::ranges::find_if(rope.tables, [&](const auto& table) { return *table.spec == spec; });
      if (found == rope.tables.end()) {
        rope.tables.push_back({&spec, placer.take<float>(model.max_model_len * spec.rotary_dim)});
        found = rope.tables.end() - 1;
      }
      data = found->data;
    }
    rope.layers.layers.push_back(data);
  }
  return placer.used();
}

size_t gemm_scratch_bytes(const Weights& weights, const KernelTable& kernels, bool batch_invariant) {
  Placer placer(nullptr);
  placer.take<std::byte>(static_cast<int64_t>(gemm_workspace_bytes(weights, kernels, batch_invariant)));
  return placer.used();
}

void fill_rope_tables(const ModelConfig& model, const RopePlacement& rope, Device& device) {
  for (const RopePlacement::Table& table : rope.tables) {
    const std::vector<float> values = rope_cos_sin(*table.spec, model.max_model_len, model.max_model_len);
    device.copy_to_device(table.data, values.data(), values.size() * sizeof(float));
  }
}

void bind_gemm_scratch(const Weights& weights, bool batch_invariant, std::byte* base, Device& device, Ops& ops) {
  const size_t num_bytes = gemm_workspace_bytes(weights, device.kernels(), batch_invariant);
  if (num_bytes == 0) return;
  const std::vector<std::byte> zeros(num_bytes);
  device.copy_to_device(base, zeros.data(), num_bytes);
  ops.set_gemm_workspace(base, num_bytes);
}

size_t measure_arena(const ModelConfig& model, const SchedulerOptions& options, const KernelTable& kernels,
                     int num_threads) {
  Weights weights;
  place_weights(model.arch, model.weight_format(), kernels, nullptr, weights);
  RopePlacement rope;
  place_rope_tables(model, nullptr, rope);
  const KvCache cache = place_kv_cache(model.arch, model.dtype, options.block_size, 0, nullptr);
  Arena arena;
  const Ops ops(kernels, Stream{}, arena);
  const Decoder decoder(model.arch, model.dtype, weights, rope.layers, num_threads);
  DeviceBatch batch;
  batch.num_tokens = options.max_num_batched_tokens;
  batch.num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);
  batch.num_samples = options.max_samples();
  batch.max_kv_len = options.max_model_len;
  {
    const Arena::Scope scope(arena);
    const Tensor hidden = decoder.forward(batch, cache, ops);
    decoder.logits(hidden, nullptr, batch.num_samples, ops);
    arena.allocate_bytes(kernels.sampling_workspace_bytes(batch.num_samples, model.arch.vocab_size, num_threads));
  }
  return arena.high_water_bytes();
}

}  // namespace quire
