// The verbs of a pooling step; see pooling_worker.h.
#include "engine/pooling_worker.h"

#include <algorithm>

#include "base/log.h"

namespace quire {

void PoolingBatch::clear() {
  for (std::vector<int32_t>* array :
       {&token_ids, &token_type_ids, &positions, &slot_mapping, &query_start, &kv_lens, &block_tables, &rows}) {
    array->clear();
  }
  num_skipped.clear();
  query_start.push_back(0);
  block_table_stride = 0;
  num_blocks_ = 0;
}

void PoolingBatch::add(const PoolingInput& text, PoolingType type, int32_t block_size,
                       std::optional<int32_t> uncounted_token, int64_t num_skipped_tokens) {
  const auto num_new = static_cast<int32_t>(text.token_ids.size());
  const int32_t first_token = query_start.back(), first_slot = num_blocks_ * block_size;
  token_ids.insert(token_ids.end(), text.token_ids.begin(), text.token_ids.end());
  if (text.token_type_ids.empty()) {
    token_type_ids.resize(token_ids.size(), 0);
  } else {
    token_type_ids.insert(token_type_ids.end(), text.token_type_ids.begin(), text.token_type_ids.end());
  }
  int32_t next_position = 0;
  for (int32_t i = 0; i < num_new; ++i) {
    positions.push_back(text.token_ids[static_cast<size_t>(i)] == uncounted_token ? -1 : next_position++);
    slot_mapping.push_back(first_slot + i);
  }
  query_start.push_back(first_token + num_new);
  kv_lens.push_back(num_new);
  num_skipped.push_back(num_skipped_tokens);
  rows.push_back(type == PoolingType::last ? first_token + num_new - 1 : first_token);
  num_blocks_ += (num_new + block_size - 1) / block_size;
}

void PoolingBatch::fill_block_tables(int32_t block_size) {
  const auto blocks_of = [&](int32_t length) { return (length + block_size - 1) / block_size; };
  block_table_stride = blocks_of(*std::ranges::max_element(kv_lens));
  int32_t next = 0;
  for (const int32_t length : kv_lens) {
    const int32_t num_blocks = blocks_of(length);
    for (int32_t i = 0; i < block_table_stride; ++i) block_tables.push_back(i < num_blocks ? next + i : -1);
    next += num_blocks;
  }
}

PoolingWorker::PoolingWorker(const PoolingConfig& config, std::unique_ptr<Device> device, Communicator* communicator)
    : config_(config),
      device_(std::move(device)),
      ops_(device_->kernels(), device_->stream(), arena_),
      decoder_(config.model.arch, config.model.dtype, weights_, buffers_.rope.layers, device_->num_threads()),
      pooler_(config.model.arch, weights_, decoder_) {
  const ModelConfig& model = config.model;
  const KernelTable& kernels = device_->kernels();
  ops_.set_batch_invariant(config.options.batch_invariant);
  ops_.set_communicator(communicator);
  weight_region_ = device_->allocate(RegionTag::weights, static_cast<size_t>(config.memory.weight_bytes));
  packed_ = packed_copy_in(config.options.weight_cache, *device_, *weight_region_);
  workspace_region_ = device_->allocate(RegionTag::workspace, static_cast<size_t>(config.memory.workspace_bytes));
  place_weights(model.arch, model.weight_format(), kernels, weight_region_->data(), weights_);
  std::byte* base = workspace_region_->data();
  const size_t num_buffer_bytes = place_pooling_buffers(config, base, buffers_);
  base += num_buffer_bytes;
  memory_ = std::make_unique<ModelMemory>(
      *device_, ModelMemory::Parts{.weights = weight_region_.get(),
                                   .workspace = workspace_region_.get(),
                                   .kept = kept_pooling_spans(config, num_buffer_bytes, weights_, kernels)});
  bind_gemm_scratch(weights_, config.options.batch_invariant, base, *device_, ops_);
  base += gemm_scratch_bytes(weights_, kernels, config.options.batch_invariant);
  const auto arena_bytes = static_cast<size_t>(config.memory.arena_bytes);
  QUIRE_CHECK(base + arena_bytes <= workspace_region_->data() + workspace_region_->num_bytes(),
              "the workspace plan does not add up");
  arena_.bind(base, arena_bytes);
  fill_rope_tables(model, buffers_.rope, *device_);
}

void PoolingWorker::load(const Checkpoint* checkpoint) {
  load_weights_or_dummy(config_.model.arch, checkpoint, *device_, weights_, {.packed = packed_.get()});
  std::optional<ModelMemory::Source> source;
  if (checkpoint == nullptr) {
    source = ModelMemory::Source::of_dummy([this] { load_dummy_weights(config_.model.arch, *device_, weights_); });
  }
  memory_->set_source(std::move(source));
}

void PoolingWorker::adopt_checkpoint(std::shared_ptr<const Checkpoint> checkpoint) {
  if (checkpoint == nullptr || device_->is_asynchronous()) return;
  const auto pack = [this](const Checkpoint& again) {
    load_weights(config_.model.arch, again, *device_, weights_, {.packed = packed_.get()});
  };
  memory_->set_source(ModelMemory::Source::of_files(std::move(checkpoint), pack));
}

void PoolingWorker::sleep(bool weights, bool workspace, bool keep_weights) {
  step_scope_.reset();
  if (weights && !(keep_weights && memory_->has_weights())) weight_state_.forget();
  memory_->sleep({.weights = weights, .workspace = workspace}, keep_weights);
}

void PoolingWorker::wake(bool weights, bool workspace) {
  const ModelMemory::Which which = {.weights = weights, .workspace = workspace};
  try {
    memory_->claim(which);
    memory_->wake(which);
  } catch (...) {
    memory_->release_claimed();
    throw;
  }
}

void PoolingWorker::upload(const PoolingBatch& batch) {
  const auto copy = [&](int32_t* destination, const std::vector<int32_t>& source) {
    device_->copy_to_device(destination, source.data(), source.size() * sizeof(int32_t));
  };
  const BatchBuffers& arrays = buffers_.batch;
  copy(arrays.token_ids, batch.token_ids);
  copy(arrays.positions, batch.positions);
  copy(arrays.slot_mapping, batch.slot_mapping);
  copy(arrays.query_start, batch.query_start);
  copy(arrays.kv_lens, batch.kv_lens);
  copy(arrays.block_tables, batch.block_tables);
  copy(buffers_.token_type_ids, batch.token_type_ids);
  copy(buffers_.rows, batch.rows);
  batch_ = {.num_tokens = batch.num_tokens(),
            .num_seqs = batch.num_seqs(),
            .max_kv_len = *std::ranges::max_element(batch.kv_lens),
            .token_ids = arrays.token_ids,
            .positions = arrays.positions,
            .token_type_ids = buffers_.token_type_ids,
            .slot_mapping = arrays.slot_mapping,
            .query_start = arrays.query_start,
            .kv_lens = arrays.kv_lens,
            .block_tables = arrays.block_tables,
            .block_table_stride = batch.block_table_stride};
}

void PoolingWorker::set_recorder(Recorder* recorder) {
  device_->set_recorder(recorder);
  recorder_ = recorder;
  recorded_pass_.reset();
  if (recorder != nullptr) recorded_pass_.emplace(*recorder, *device_);
  ops_.set_observer(recorder != nullptr ? &*recorded_pass_ : nullptr);
}

int64_t PoolingWorker::run(const PoolingBatch& batch, PoolingType type, bool with_head) {
  const bool has_stream = recorder_ != nullptr && device_->is_asynchronous();
  const DeviceStepScope step(has_stream ? device_.get() : nullptr, batch_.num_tokens, batch_.num_seqs, 0);
  step_scope_.reset();
  step_scope_.emplace(arena_);
  const Tensor hidden = [&] {
    const SpanScope span(recorder_, "step", "forward");
    return decoder_.forward(batch_, buffers_.scratch, ops_);
  }();
  pooled_ = {};
  if (!is_first_rank()) return 0;
  const SpanScope span(recorder_, "step", "pool");
  pooled_ = pooler_.pool(hidden, batch_, type, buffers_.rows, ops_);
  if (is_pooled_on_host(type)) pooled_ = pool_on_host(batch, pooled_);
  if (with_head) pooled_ = pooler_.head(pooled_, ops_);
  return pooled_.size(1);
}

// The rows go back to the device, so that what is behind them is the same for every way of pooling.
Tensor PoolingWorker::pool_on_host(const PoolingBatch& batch, const Tensor& states) {
  const int64_t hidden = states.size(1);
  fetched_.resize(static_cast<size_t>(states.num_elements()));
  device_->copy_to_host(fetched_.data(), states.data, fetched_.size() * sizeof(float));
  const std::vector<PoolingMode> modes = modes_of(config_.model.arch.pooler);
  const auto columns = static_cast<int64_t>(modes.size()) * hidden;
  pooled_on_host_.resize(static_cast<size_t>(batch.num_seqs() * columns));
  const std::span<const float> all = fetched_;
  const std::span<float> pooled = pooled_on_host_;
  for (size_t i = 0; i < batch.num_skipped.size(); ++i) {
    const auto begin = static_cast<size_t>(batch.query_start[i] * hidden);
    const auto end = static_cast<size_t>(batch.query_start[i + 1] * hidden);
    pool_by_modes(all.subspan(begin, end - begin), hidden, batch.num_skipped[i], modes,
                  pooled.subspan(i * static_cast<size_t>(columns), static_cast<size_t>(columns)));
  }
  const Tensor rows = ops_.scratch(DType::f32, batch.num_seqs(), columns);
  device_->copy_to_device(rows.data, pooled_on_host_.data(), pooled_on_host_.size() * sizeof(float));
  return rows;
}

std::span<const float> PoolingWorker::fetch() {
  if (!is_first_rank()) {
    device_->synchronize();
    return {};
  }
  fetched_.resize(static_cast<size_t>(pooled_.num_elements()));
  device_->copy_to_host(fetched_.data(), pooled_.data, fetched_.size() * sizeof(float));
  if (recorder_ != nullptr) device_->collect_spans();
  return fetched_;
}

void PoolingWorker::abandon() {
  try {
    device_->synchronize();
  } catch (const std::exception& error) {
    log_warning("a step under way was lost: ", error.what());
  }
}

}  // namespace quire
