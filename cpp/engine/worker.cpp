// The verbs of one rank; see worker.h.
#include "engine/worker.h"

#include <algorithm>

#include "model/rope_table.h"

namespace quire {

Worker::Worker(const EngineConfig& config, std::unique_ptr<Device> device)
    : config_(config),
      device_(std::move(device)),
      ops_(device_->kernels(), device_->stream(), arena_),
      decoder_(config.model.arch, config.model.dtype, weights_, rope_.layers, device_->num_threads()) {
  const ModelConfig& model = config.model;
  const MemoryPlan& memory = config.memory;
  weight_region_ = device_->allocate(RegionTag::weights, static_cast<size_t>(memory.weight_bytes));
  kv_region_ = device_->allocate(RegionTag::kv_cache, static_cast<size_t>(memory.kv_bytes()));
  workspace_region_ = device_->allocate(RegionTag::workspace, static_cast<size_t>(memory.workspace_bytes));

  place_weights(model.arch, model.dtype, device_->kernels(), weight_region_->data(), weights_, memory.offload);
  kv_cache_ =
      place_kv_cache(model.arch, model.dtype, config.scheduler.block_size, memory.num_blocks, kv_region_->data());
  std::byte* base = workspace_region_->data();
  base += place_rope_tables(model, base, rope_);
  base += place_batch_buffers(config.scheduler, base, buffers_);
  place_gemm_scratch(base);
  base += gemm_scratch_bytes(weights_, device_->kernels());
  QUIRE_CHECK(base + memory.arena_bytes <= workspace_region_->data() + workspace_region_->num_bytes(),
              "the workspace plan does not add up");
  arena_.bind(base, static_cast<size_t>(memory.arena_bytes));
  for (const RopePlacement::Table& table : rope_.tables) {
    const std::vector<float> values = rope_cos_sin(*table.spec, model.max_model_len, model.max_model_len);
    device_->copy_to_device(table.data, values.data(), values.size() * sizeof(float));
  }
}

void Worker::place_gemm_scratch(std::byte* base) {
  const size_t num_bytes = gemm_workspace_bytes(weights_, device_->kernels());
  if (num_bytes == 0) return;
  const std::vector<std::byte> zeros(num_bytes);
  device_->copy_to_device(base, zeros.data(), num_bytes);
  ops_.set_gemm_workspace(base, num_bytes);
}

void Worker::load(const Checkpoint* checkpoint) {
  if (const OffloadPlan& plan = config_.memory.offload; !plan.empty()) {
    offloaded_ = std::make_unique<OffloadedLayers>(*device_, plan, weight_region_->data());
    decoder_.set_layer_source(offloaded_.get());
  }
  const LoadOptions options = {.offload = offloaded_.get()};
  if (checkpoint == nullptr) {
    load_dummy_weights(config_.model.arch, *device_, weights_, options);
  } else {
    load_weights(config_.model.arch, *checkpoint, *device_, weights_, options);
  }
}

void Worker::upload(const Batch& batch) {
  const auto copy = [&](int32_t* destination, const std::vector<int32_t>& source) {
    device_->copy_to_device(destination, source.data(), source.size() * sizeof(int32_t));
  };
  copy(buffers_.token_ids, batch.token_ids);
  copy(buffers_.positions, batch.positions);
  copy(buffers_.slot_mapping, batch.slot_mapping);
  copy(buffers_.query_start, batch.query_start);
  copy(buffers_.kv_lens, batch.kv_lens);
  copy(buffers_.block_tables, batch.block_tables);
  copy(buffers_.sample_token_rows, batch.sample_token_rows);
  batch_ = {.num_tokens = batch.num_tokens(),
            .num_seqs = batch.num_seqs(),
            .num_samples = batch.num_samples(),
            .max_kv_len = *std::ranges::max_element(batch.kv_lens),
            .token_ids = buffers_.token_ids,
            .positions = buffers_.positions,
            .slot_mapping = buffers_.slot_mapping,
            .query_start = buffers_.query_start,
            .kv_lens = buffers_.kv_lens,
            .block_tables = buffers_.block_tables,
            .block_table_stride = batch.block_table_stride,
            .sample_token_rows = buffers_.sample_token_rows};
}

void Worker::forward() {
  step_scope_.reset();
  step_scope_.emplace(arena_);
  hidden_ = decoder_.forward(batch_, kv_cache_, ops_);
  if (batch_.num_samples > 0) logits_ = decoder_.logits(hidden_, batch_.sample_token_rows, batch_.num_samples, ops_);
}

void Worker::sample(const SamplingBatch& sampling) {
  const size_t num_rows = sampling.rows().size();
  QUIRE_CHECK(static_cast<int64_t>(num_rows) == batch_.num_samples, "rows ", num_rows, " != ", batch_.num_samples);
  sampled_.token_ids.resize(num_rows);
  if (num_rows == 0) return;
  sampled_.logprobs_stride = sampling.max_logprobs() + 1;
  sampled_.logprob_ids.resize(num_rows * static_cast<size_t>(sampled_.logprobs_stride));
  sampled_.logprobs.resize(sampled_.logprob_ids.size());
  sampled_.sampled_ranks.resize(num_rows);
  const KernelTable& kernels = device_->kernels();
  const size_t workspace_bytes =
      kernels.sampling_workspace_bytes(batch_.num_samples, logits_.size(1), device_->num_threads());
  kernels.sample({.logits = logits_.as<float>(),
                  .logits_stride = logits_.row_stride(),
                  .vocab_size = static_cast<int32_t>(logits_.size(1)),
                  .num_rows = static_cast<int32_t>(num_rows),
                  .rows = sampling.rows().data(),
                  .token_ids = sampled_.token_ids.data(),
                  .logprobs_stride = sampled_.logprobs_stride,
                  .logprob_ids = sampled_.logprob_ids.data(),
                  .logprobs = sampled_.logprobs.data(),
                  .sampled_rank = sampled_.sampled_ranks.data(),
                  .workspace = arena_.allocate_bytes(workspace_bytes),
                  .workspace_bytes = workspace_bytes},
                 device_->stream());
}

const SampledTokens& Worker::fetch() {
  device_->synchronize();
  step_scope_.reset();
  return sampled_;
}

std::vector<float> Worker::all_logits() {
  const int64_t vocab_size = config_.model.arch.vocab_size;
  std::vector<float> all(static_cast<size_t>(batch_.num_tokens * vocab_size));
  // Row by row: the arena has room for max_num_seqs rows of logits, not for a whole prompt.
  for (int32_t row = 0; row < batch_.num_tokens; ++row) {
    const Arena::Scope scope(arena_);
    const Tensor logits = decoder_.logits(hidden_, &row, 1, ops_);
    device_->copy_to_host(all.data() + row * vocab_size, logits.data, static_cast<size_t>(vocab_size) * sizeof(float));
  }
  return all;
}

}  // namespace quire
