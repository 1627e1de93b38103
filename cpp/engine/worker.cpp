// The verbs of one rank; see worker.h.
#include "engine/worker.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "base/log.h"

namespace quire {

Worker::Worker(const EngineConfig& config, std::unique_ptr<Device> device, Communicator* communicator)
    : config_(config),
      device_(std::move(device)),
      ops_(device_->kernels(), device_->stream(), arena_),
      decoder_(config.model.arch, config.model.dtype, weights_, rope_.layers, device_->num_threads()),
      output_(*device_, std::max(config.scheduler.max_num_seqs, config.scheduler.max_samples())),
      prompt_logprobs_(*device_, std::min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens),
                       config.model.arch.vocab_size, config.logprobs_mode),
      returned_states_(*device_, std::min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens),
                       config.model.arch.vocab_size),
      graphs_(config.graph_sizes, config.scheduler.max_num_seqs, config.graph_max_kv_len) {
  const ModelConfig& model = config.model;
  const MemoryPlan& memory = config.memory;
  ops_.set_batch_invariant(config.options.batch_invariant);
  ops_.set_communicator(communicator);
  if (!config.options.batch_invariant && device_->is_asynchronous()) {
    const Device::Library library = device_->product_library();
    if (!library.is_found) {
      log_warning("batch_invariant=false gains nothing for matrix products without cuBLASLt: ", library.status,
                  ". pip install nvidia-cublas, or set QUIRE_CUBLASLT to the folder of libcublasLt.so.");
    }
  }
  weight_region_ = device_->allocate(RegionTag::weights, static_cast<size_t>(memory.weight_bytes));
  packed_ = packed_copy_in(config.options.weight_cache, *device_, *weight_region_);
  const auto place_pages = [&](std::byte* base) {
    return place_pages_on(*device_, model, config.scheduler.block_size, memory.num_blocks, base);
  };
  kv_region_ = device_->allocate(RegionTag::kv_cache, place_pages(nullptr).num_bytes);
  workspace_region_ = device_->allocate(RegionTag::workspace, static_cast<size_t>(memory.workspace_bytes));
  place_weights(model.arch, model.weight_format(), device_->kernels(), weight_region_->data(), weights_,
                memory.offload);
  kv_cache_ = place_pages(kv_region_->data());
  if (config.speculation.has_draft_model()) draft_model_ = std::make_unique<DraftModel>(config, *device_, arena_);
  place_workspace();
}

void Worker::place_workspace() {
  const ModelConfig& model = config_.model;
  const auto arena_bytes = static_cast<size_t>(config_.memory.arena_bytes);
  std::byte* base = workspace_region_->data();
  base += place_rope_tables(model, base, rope_);
  base += place_batch_buffers(config_.scheduler, base, buffers_);
  base += place_copy_buffers(std::ssize(model.arch.layers) + std::ssize(config_.speculation.draft.arch.layers),
                             config_.scheduler, base, copy_buffers_);
  describe_pages();
  if (config_.scheduler.device_rows) {
    RowBuffers row_buffers;
    base += place_row_buffers(config_.scheduler, base, row_buffers);
    rows_.emplace(*device_, config_.scheduler, row_buffers);
  } else if (device_->is_asynchronous()) {
    sampling_upload_.emplace(*device_);
    batch_staging_.emplace(*device_, size_t{64} << 10);
  }
  bind_gemm_scratch(weights_, config_.options.batch_invariant, base, *device_, ops_);
  base += gemm_scratch_bytes(weights_, device_->kernels(), config_.options.batch_invariant);
  QUIRE_CHECK(base + arena_bytes <= workspace_region_->data() + workspace_region_->num_bytes(),
              "the workspace plan does not add up");
  const auto num_kept = static_cast<size_t>(base - workspace_region_->data());
  memory_ = std::make_unique<ModelMemory>(*device_, ModelMemory::Parts{.weights = weight_region_.get(),
                                                                       .kv_cache = kv_region_.get(),
                                                                       .workspace = workspace_region_.get(),
                                                                       .kept = {{0, num_kept}},
                                                                       .offloaded = &offloaded_});
  arena_.bind(base, arena_bytes);
  fill_rope_tables(model, rope_, *device_);
}

void Worker::describe_pages() {
  std::vector<PageArray> arrays;
  const auto add_layers = [&](const KvCache& cache) {
    for (const KvCacheView& layer : cache.layers) {
      const int64_t page_bytes = layer.page_elements() * static_cast<int64_t>(dtype_bytes(layer.dtype));
      arrays.push_back({layer.k, page_bytes});
      arrays.push_back({layer.v, page_bytes});
    }
  };
  add_layers(kv_cache_);
  if (draft_model_ != nullptr) add_layers(draft_model_->kv_cache());
  num_page_arrays_ = static_cast<int32_t>(arrays.size());
  device_->copy_to_device(copy_buffers_.arrays, arrays.data(), arrays.size() * sizeof(PageArray));
  copies_ = device_->allocate_host(static_cast<size_t>(config_.scheduler.max_num_seqs) * sizeof(BlockCopy));
}

void Worker::load(const Checkpoint* checkpoint, const Checkpoint* draft_checkpoint) {
  if (draft_model_ != nullptr) draft_model_->load(draft_checkpoint);
  if (const OffloadPlan& plan = config_.memory.offload; !plan.empty() && offloaded_ == nullptr) {
    offloaded_ = std::make_unique<OffloadedLayers>(*device_, plan, weight_region_->data());
    decoder_.set_layer_source(offloaded_.get());
  }
  const LoadOptions options = {.offload = offloaded_.get(), .packed = packed_.get()};
  load_weights_or_dummy(config_.model.arch, checkpoint, *device_, weights_, options);
  std::optional<ModelMemory::Source> source;
  if (checkpoint == nullptr) {
    source = ModelMemory::Source::of_dummy([this] { load_dummy_weights(config_.model.arch, *device_, weights_); });
  }
  memory_->set_source(std::move(source));
}

void Worker::upload(const Batch& batch) {
  const std::array<const std::vector<int32_t>*, 7> arrays = {
      &batch.token_ids, &batch.positions,    &batch.slot_mapping,     &batch.query_start,
      &batch.kv_lens,   &batch.block_tables, &batch.sample_token_rows};
  if (batch_staging_.has_value()) {
    size_t num_bytes = 0;
    for (const auto* array : arrays) num_bytes += Staging::bytes<int32_t>(std::ssize(*array));
    batch_staging_->begin(num_bytes);
  }
  const auto bring = [&](int32_t* destination, const std::vector<int32_t>& source) {
    if (batch_staging_.has_value()) return batch_staging_->put(source.data(), source.size());
    device_->copy_to_device(destination, source.data(), source.size() * sizeof(int32_t));
    return destination;
  };
  batch_ = {.num_tokens = batch.num_tokens(),
            .num_seqs = batch.num_seqs(),
            .num_samples = batch.num_samples(),
            .max_kv_len = *std::ranges::max_element(batch.kv_lens),
            .token_ids = bring(buffers_.token_ids, batch.token_ids),
            .positions = bring(buffers_.positions, batch.positions),
            .slot_mapping = bring(buffers_.slot_mapping, batch.slot_mapping),
            .query_start = bring(buffers_.query_start, batch.query_start),
            .kv_lens = bring(buffers_.kv_lens, batch.kv_lens),
            .block_tables = bring(buffers_.block_tables, batch.block_tables),
            .block_table_stride = batch.block_table_stride,
            .sample_token_rows = bring(buffers_.sample_token_rows, batch.sample_token_rows)};
  if (batch_staging_.has_value()) batch_staging_->send();
}

void Worker::upload(const Batch& batch, const SamplingBatch& sampling, std::span<const PromptRow> prompt_rows,
                    const WantedStates& wanted) {
  shape_ = {.feeds_itself = batch.feeds_itself(),
            .num_tokens = batch.num_tokens(),
            .num_seqs = batch.num_seqs(),
            .num_samples = batch.num_samples(),
            .max_kv_len = *std::ranges::max_element(batch.kv_lens),
            .logprobs_stride = SampleOutput::stride_for(sampling.max_logprobs())};
  if (output_.reserve(shape_.logprobs_stride)) graphs_.clear();
  prompt_logprobs_.upload(prompt_rows);
  returned_states_.upload(wanted, decoder_);
  has_rows_ = rows_.has_value() && !batch.rows.empty();
  if (has_rows_) {
    rows_->upload(batch, sampling);
    return;
  }
  QUIRE_CHECK(std::ssize(sampling.rows()) == shape_.num_samples, "rows ", sampling.rows().size(),
              " != ", shape_.num_samples);
  sampling_ = &sampling;
  sampling_rows_ = sampling.rows().data();
  if (sampling_upload_.has_value()) sampling_upload_->reserve(sampling);
  upload(batch);
}

void Worker::copy_blocks(std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  QUIRE_CHECK(copies.size_bytes() <= copies_->num_bytes(), copies.size(), " copies in a step");
  std::memcpy(copies_->data(), copies.data(), copies.size_bytes());
  device_->copy_async(copy_buffers_.copies, copies_->data(), copies.size_bytes(), device_->stream());
  device_->kernels().copy_blocks({.arrays = copy_buffers_.arrays,
                                  .num_arrays = num_page_arrays_,
                                  .copies = copy_buffers_.copies,
                                  .num_copies = static_cast<int32_t>(copies.size())},
                                 device_->stream());
}

void Worker::guess(Batch& batch, const SamplingBatch& sampling) {
  if (draft_model_ == nullptr) return;
  step_scope_.reset();
  draft_model_->run(batch, sampling);
}

// Behind the masks, which come while the forward pass runs.
void Worker::upload_sampling() {
  if (!has_rows_ && sampling_upload_.has_value()) sampling_rows_ = sampling_upload_->send(*sampling_);
}

void Worker::run() {
  upload_sampling();
  const StepShape bucket = graphs_.bucket(shape_);
  // A graph is one launch, which hides its parts from a recording.
  if (has_rows_ && graphs_.takes(shape_) && returned_states_.empty() && recorder_ == nullptr) {
    replay(bucket);
  } else {
    launch(shape_);
  }
  start_fetch();
}

void Worker::start_fetch() {
  prompt_logprobs_.start_fetch();
  returned_states_.start_fetch();
  output_.start_fetch(shape_.num_samples, shape_.logprobs_stride);
}

void Worker::run_forward() {
  if (has_rows_) batch_ = rows_->prepare(shape_);
  forward();
}

void Worker::run_sample(const SamplingBatch& sampling) {
  if (has_rows_) rows_->upload_masks(sampling);
  upload_sampling();
  sample(shape_);
  store_sampled(shape_.num_samples);
  start_fetch();
}

std::span<float> Worker::read_logits(int64_t sample, std::vector<float>& copy) {
  float* const row = logits_.as<float>() + sample * logits_.row_stride();
  const auto num_logits = static_cast<size_t>(vocab_size());
  if (!device_->is_asynchronous()) return {row, num_logits};
  copy.resize(num_logits);
  device_->copy_to_host(copy.data(), row, num_logits * sizeof(float));
  return copy;
}

void Worker::write_logits(int64_t sample, std::span<const float> logits) {
  float* const row = logits_.as<float>() + sample * logits_.row_stride();
  if (row != logits.data()) device_->copy_to_device(row, logits.data(), logits.size_bytes());
}

// A bucket's first step runs launch by launch, which loads its kernels, and is captured while it runs.
void Worker::replay(const StepShape& bucket) {
  if (Graph* graph = graphs_.find(bucket)) return graph->launch();
  launch(bucket);
  try {
    const auto start = std::chrono::steady_clock::now();
    graphs_.insert(bucket, device_->capture([&] { launch(bucket); }));
    capture_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  } catch (const OutOfMemory& error) {
    log_warning("steps are no longer replayed from graphs, which costs speed and nothing else: ", error.what(),
                ". Lower gpu_memory_utilization to leave room for them.");
    graphs_.disable();
  }
}

void Worker::launch(const StepShape& shape) {
  if (has_rows_) batch_ = rows_->prepare(shape);
  forward();
  if (shape.num_samples == 0) return;
  sample(shape);
  store_sampled(shape.num_samples);
}

// The rows get their tokens: of every rank those that the first one sampled.
void Worker::store_sampled(int64_t num_samples) {
  if (!has_rows_) return;
  ops_.broadcast(output_.token_ids(), static_cast<size_t>(num_samples) * sizeof(int32_t));
  rows_->store_sampled(output_.token_ids(), num_samples);
}

DeviceStepScope Worker::recorded_step(const Batch& batch) const {
  const bool has_stream = recorder_ != nullptr && device_->is_asynchronous();
  return {has_stream ? device_.get() : nullptr, batch.num_tokens(), batch.num_seqs(), batch.num_samples()};
}

void Worker::set_recorder(Recorder* recorder) {
  device_->set_recorder(recorder);
  recorder_ = recorder;
  recorded_pass_.reset();
  if (recorder != nullptr) recorded_pass_.emplace(*recorder, *device_);
  PassObserver* const observer = recorder != nullptr ? &*recorded_pass_ : nullptr;
  ops_.set_observer(observer);
  if (draft_model_ != nullptr) draft_model_->set_observer(observer);
}

void Worker::forward() {
  const SpanScope span(recorder_, "step", "forward");
  step_scope_.reset();
  step_scope_.emplace(arena_);
  hidden_ = decoder_.forward(batch_, kv_cache_, ops_);
  prompt_logprobs_.run(decoder_, hidden_, ops_);  // its logits lie where those of the samples will
  returned_states_.copy_hidden(decoder_, hidden_, ops_);
  if (batch_.num_samples == 0) return;
  logits_ = decoder_.logits(hidden_, batch_.sample_token_rows, batch_.num_samples, ops_);
  returned_states_.copy_logits(logits_);
}

void Worker::sample(const StepShape& shape) {
  if (!is_first_rank()) return;
  const SpanScope span(recorder_, "step", "sample");
  const KernelTable& kernels = device_->kernels();
  const size_t workspace_bytes =
      kernels.sampling_workspace_bytes(shape.num_samples, logits_.size(1), device_->num_threads());
  SamplingParamsBlock block = {.logits = logits_.as<float>(),
                               .logits_stride = logits_.row_stride(),
                               .vocab_size = static_cast<int32_t>(logits_.size(1)),
                               .num_rows = static_cast<int32_t>(shape.num_samples),
                               .rows = has_rows_ ? rows_->sampling_rows() : sampling_rows_,
                               .logprobs_mode = config_.logprobs_mode,
                               .workspace = arena_.allocate_bytes(workspace_bytes),
                               .workspace_bytes = workspace_bytes};
  output_.write_to(shape.logprobs_stride, block);
  kernels.sample(block, device_->stream());
}

const SampledTokens& Worker::fetch() {
  const SampledTokens& sampled = output_.fetch();
  prompt_scores_ = &prompt_logprobs_.fetch();
  state_rows_ = &returned_states_.fetch();
  if (recorder_ != nullptr) device_->collect_spans();
  return sampled;
}

void Worker::abandon() {
  try {
    device_->synchronize();
    if (recorder_ != nullptr) device_->collect_spans();
  } catch (const std::exception& error) {
    log_warning("steps under way were lost: ", error.what());
  }
  output_.abandon();
  prompt_logprobs_.abandon();
  returned_states_.abandon();
}

std::vector<float> Worker::all_logits() {
  const int64_t vocab_size = config_.model.arch.vocab_size;
  std::vector<float> all(static_cast<size_t>(batch_.num_tokens * vocab_size));
  // Row by row: the arena has room for max_num_seqs rows of logits, not for a whole prompt.
  for (int32_t row = 0; row < batch_.num_tokens; ++row) {
    const Arena::Scope scope(arena_);
    device_->copy_to_device(buffers_.sample_token_rows, &row, sizeof(row));
    const Tensor logits = decoder_.logits(hidden_, buffers_.sample_token_rows, 1, ops_);
    device_->copy_to_host(all.data() + row * vocab_size, logits.data, static_cast<size_t>(vocab_size) * sizeof(float));
  }
  return all;
}

}  // namespace quire
