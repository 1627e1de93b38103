// Memory and passes; see draft_model.h.
#include "engine/draft_model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "engine/placer.h"

namespace quire {
namespace {

// Of a step with the largest batch, without lists of sampling parameters.
size_t staging_capacity(const SchedulerOptions& step, int32_t num_drafts) {
  const int64_t seqs = step.max_num_seqs, blocks = (step.max_model_len + step.block_size - 1) / step.block_size;
  return 3 * Staging::bytes<int32_t>(step.max_num_batched_tokens) + 4 * Staging::bytes<int32_t>(seqs + 1) +
         Staging::bytes<int32_t>(seqs * blocks) + static_cast<size_t>(num_drafts) * 3 * Staging::bytes<int32_t>(seqs) +
         Staging::bytes<SamplingRow>(seqs * num_drafts);
}

struct Workspace {
  int32_t* drafts = nullptr;
  std::byte* gemm = nullptr;
};

size_t place(const ModelConfig& model, int32_t num_drafts, const SchedulerOptions& scheduler, const Weights& weights,
             const KernelTable& kernels, bool batch_invariant, std::byte* base, RopePlacement& rope,
             Workspace& places) {
  const size_t rope_bytes = place_rope_tables(model, base, rope);
  Placer placer(base != nullptr ? base + rope_bytes : nullptr);
  places.drafts = placer.take<int32_t>(num_drafts * scheduler.max_num_seqs);
  places.gemm = placer.take<std::byte>(static_cast<int64_t>(gemm_workspace_bytes(weights, kernels, batch_invariant)));
  return rope_bytes + placer.used();
}

}  // namespace

SchedulerOptions DraftModel::step_options(const SchedulerOptions& scheduler) {
  SchedulerOptions step = scheduler;
  step.max_num_batched_tokens += step.max_num_seqs;
  step.max_num_samples = 0;
  return step;
}

size_t DraftModel::workspace_bytes(const ModelConfig& model, int32_t num_drafts, const SchedulerOptions& scheduler,
                                   const KernelTable& kernels, bool batch_invariant) {
  Weights weights;
  place_weights(model.arch, model.weight_format(), kernels, nullptr, weights);
  RopePlacement rope;
  Workspace places;
  return place(model, num_drafts, scheduler, weights, kernels, batch_invariant, nullptr, rope, places) +
         staging_capacity(step_options(scheduler), num_drafts);
}

DraftModel::DraftModel(const EngineConfig& config, Device& device, Arena& arena)
    : config_(config),
      model_(config.speculation.draft),
      device_(device),
      ops_(device.kernels(), device.stream(), arena),
      decoder_(model_.arch, model_.dtype, weights_, rope_.layers, device.num_threads()),
      staging_(device, staging_capacity(step_options(config.scheduler), config.speculation.num_tokens)) {
  const MemoryPlan& memory = config.memory;
  const bool batch_invariant = config.options.batch_invariant;
  ops_.set_batch_invariant(batch_invariant);
  weight_region_ = device.allocate(RegionTag::weights, static_cast<size_t>(memory.draft.weight_bytes));
  packed_ = packed_copy_in(config.options.weight_cache, device, *weight_region_);
  const auto place_pages = [&](std::byte* base) {
    return place_pages_on(device, model_, config.scheduler.block_size, memory.num_blocks, base);
  };
  kv_region_ = device.allocate(RegionTag::kv_cache, place_pages(nullptr).num_bytes);
  place_weights(model_.arch, model_.weight_format(), device.kernels(), weight_region_->data(), weights_);
  kv_cache_ = place_pages(kv_region_->data());
  Workspace places;
  const auto place_all = [&](std::byte* base) {
    return place(model_, config.speculation.num_tokens, config.scheduler, weights_, device.kernels(), batch_invariant,
                 base, rope_, places);
  };
  workspace_region_ = device.allocate(RegionTag::workspace, place_all(nullptr));
  place_all(workspace_region_->data());
  drafts_ = places.drafts;
  bind_gemm_scratch(weights_, batch_invariant, places.gemm, device_, ops_);
  fill_rope_tables(model_, rope_, device_);
  memory_ = std::make_unique<ModelMemory>(device_, ModelMemory::Parts{.weights = weight_region_.get(),
                                                                      .kv_cache = kv_region_.get(),
                                                                      .workspace = workspace_region_.get(),
                                                                      .kept = {{0, workspace_region_->num_bytes()}}});
}

void DraftModel::load(const Checkpoint* checkpoint) {
  load_weights_or_dummy(model_.arch, checkpoint, device_, weights_, {.packed = packed_.get()});
  std::optional<ModelMemory::Source> source;
  if (checkpoint == nullptr) {
    source = ModelMemory::Source::of_dummy([this] { load_dummy_weights(model_.arch, device_, weights_); });
  }
  memory_->set_source(std::move(source));
}

void DraftModel::adopt_checkpoint(std::shared_ptr<const Checkpoint> checkpoint) {
  const auto pack = [this](const Checkpoint& again) {
    load_weights(model_.arch, again, device_, weights_, {.packed = packed_.get()});
  };
  if (checkpoint != nullptr) memory_->set_source(ModelMemory::Source::of_files(std::move(checkpoint), pack));
}

void DraftModel::run(Batch& batch, const SamplingBatch& sampling) {
  list_guesses(batch);
  if (guesses_.empty()) return;
  staging_.begin(staged_bytes(batch, sampling));
  passes_.clear();
  passes_.push_back(stage_known(batch));
  for (int32_t pass = 1; pass < num_passes_; ++pass) passes_.push_back(stage_pass(batch, pass, passes_.front()));
  const SamplingRow* rows = stage_rows(sampling);
  staging_.send();
  const auto stride = static_cast<size_t>(num_guessing(0));
  for (size_t pass = 0; pass < passes_.size(); ++pass) {
    launch(passes_[pass], rows, drafts_ + pass * stride);
    rows += passes_[pass].num_samples;
  }
  if (num_passes_ == 0) return;
  host_drafts_.resize(static_cast<size_t>(num_passes_) * stride);
  device_.copy_to_host(host_drafts_.data(), drafts_, host_drafts_.size() * sizeof(int32_t));
  for (size_t i = 0; i < stride; ++i) {
    const Guess& guess = guesses_[i];
    const int32_t end = batch.query_start[static_cast<size_t>(guess.seq) + 1];
    for (int32_t d = 0; d < guess.num_drafts; ++d) {
      batch.token_ids[static_cast<size_t>(end - guess.num_drafts + d)] =
          host_drafts_[static_cast<size_t>(d) * stride + i];
    }
  }
}

// Sequences longer than the model can be are left out, or cut where they are.
void DraftModel::list_guesses(const Batch& batch) {
  guesses_.clear();
  num_passes_ = 0;
  int32_t next_sample = 0;
  for (int32_t s = 0; s < batch.num_seqs(); ++s) {
    const auto seq = static_cast<size_t>(s);
    Guess guess = {.seq = s, .num_drafts = batch.num_drafts[seq], .first_sample = next_sample};
    while (next_sample < batch.num_samples() && batch.sample_seqs[static_cast<size_t>(next_sample)] == s) ++next_sample;
    const int32_t begin = batch.positions[static_cast<size_t>(batch.query_start[seq])];
    guess.begin = begin - (batch.lagging_tokens[seq] >= 0 ? 1 : 0);
    guess.end = std::min(batch.kv_lens[seq] - guess.num_drafts, static_cast<int32_t>(model_.max_model_len));
    QUIRE_CHECK(guess.num_drafts == 0 || guess.end + guess.num_drafts - 1 <= model_.max_model_len, guess.num_drafts,
                " drafts behind ", guess.end, " tokens, and the draft model can ", model_.max_model_len);
    if (guess.begin >= guess.end) continue;
    num_passes_ = std::max(num_passes_, guess.num_drafts);
    guesses_.push_back(guess);
  }
  std::ranges::sort(guesses_, {}, [](const Guess& guess) { return std::pair(-guess.num_drafts, guess.seq); });
}

int64_t DraftModel::num_guessing(int32_t pass) const {
  const auto guesses = [pass](const Guess& guess) { return guess.num_drafts > pass; };
  return std::ranges::partition_point(guesses_, guesses) - guesses_.begin();
}

size_t DraftModel::staged_bytes(const Batch& batch, const SamplingBatch& sampling) const {
  const int64_t seqs = std::ssize(guesses_), num_guessing_most = num_guessing(0);
  int64_t num_tokens = 0;
  size_t num_bytes = 0;
  for (const Guess& guess : guesses_) {
    num_tokens += guess.end - guess.begin;
    for (int32_t d = 0; d < guess.num_drafts; ++d) {
      num_bytes += staged_list_bytes(sampling.rows()[static_cast<size_t>(guess.first_sample + d)]);
    }
  }
  return num_bytes + 3 * Staging::bytes<int32_t>(num_tokens) + 4 * Staging::bytes<int32_t>(seqs + 1) +
         Staging::bytes<int32_t>(seqs * batch.block_table_stride) +
         static_cast<size_t>(num_passes_) * 3 * Staging::bytes<int32_t>(num_guessing_most) +
         Staging::bytes<SamplingRow>(num_guessing_most * num_passes_);
}

// The first pass: all tokens that are known and that the model has not computed.
DeviceBatch DraftModel::stage_known(const Batch& batch) {
  const int32_t block_size = config_.scheduler.block_size;
  const auto stride = static_cast<size_t>(batch.block_table_stride);
  const size_t num_seqs = guesses_.size();
  size_t num_tokens = 0;
  for (const Guess& guess : guesses_) num_tokens += static_cast<size_t>(guess.end - guess.begin);
  const auto [token_ids, device_ids] = staging_.take<int32_t>(num_tokens);
  const auto [positions, device_positions] = staging_.take<int32_t>(num_tokens);
  const auto [slots, device_slots] = staging_.take<int32_t>(num_tokens);
  const auto [query_start, device_query_start] = staging_.take<int32_t>(num_seqs + 1);
  const auto [kv_lens, device_kv_lens] = staging_.take<int32_t>(num_seqs);
  const auto [tables, device_tables] = staging_.take<int32_t>(num_seqs * stride);
  const auto [sample_rows, device_sample_rows] = staging_.take<int32_t>(num_seqs);
  int32_t next = 0, max_kv_len = 0;
  for (size_t i = 0; i < num_seqs; ++i) {
    const Guess& guess = guesses_[i];
    const auto seq = static_cast<size_t>(guess.seq);
    const int32_t* const table = batch.block_tables.data() + seq * stride;
    std::copy_n(table, stride, tables + i * stride);
    query_start[i] = next;
    const int32_t first = batch.query_start[seq];
    const int32_t first_position = batch.positions[static_cast<size_t>(first)];
    for (int32_t position = guess.begin; position < guess.end; ++position, ++next) {
      const bool lags = position < first_position;
      token_ids[next] =
          lags ? batch.lagging_tokens[seq] : batch.token_ids[static_cast<size_t>(first + position - first_position)];
      positions[next] = position;
      slots[next] = table[position / block_size] * block_size + position % block_size;
    }
    kv_lens[i] = guess.end;
    sample_rows[i] = next - 1;
    max_kv_len = std::max(max_kv_len, guess.end);
  }
  query_start[num_seqs] = next;
  return {.num_tokens = next,
          .num_seqs = static_cast<int64_t>(num_seqs),
          .num_samples = num_guessing(0),
          .max_kv_len = max_kv_len,
          .token_ids = device_ids,
          .positions = device_positions,
          .slot_mapping = device_slots,
          .query_start = device_query_start,
          .kv_lens = device_kv_lens,
          .block_tables = device_tables,
          .block_table_stride = batch.block_table_stride,
          .sample_token_rows = device_sample_rows};
}

// A further pass: the draft of the pass before, of those who want one more.
DeviceBatch DraftModel::stage_pass(const Batch& batch, int32_t pass, const DeviceBatch& first) {
  const int32_t block_size = config_.scheduler.block_size;
  const auto stride = static_cast<size_t>(batch.block_table_stride);
  const auto num_seqs = static_cast<size_t>(num_guessing(pass));
  const auto [positions, device_positions] = staging_.take<int32_t>(num_seqs);
  const auto [slots, device_slots] = staging_.take<int32_t>(num_seqs);
  const auto [kv_lens, device_kv_lens] = staging_.take<int32_t>(num_seqs);
  int32_t max_kv_len = 0;
  for (size_t i = 0; i < num_seqs; ++i) {
    const Guess& guess = guesses_[i];
    const int32_t position = guess.end - 1 + pass;
    const int32_t* const table = batch.block_tables.data() + static_cast<size_t>(guess.seq) * stride;
    positions[i] = position;
    slots[i] = table[position / block_size] * block_size + position % block_size;
    kv_lens[i] = position + 1;
    max_kv_len = std::max(max_kv_len, position + 1);
  }
  if (pass == 1) {  // for all further passes: one token a sequence, each with logits
    order_.resize(num_seqs + 1);
    std::iota(order_.begin(), order_.end(), 0);
    iota_ = staging_.put(order_.data(), order_.size());
  }
  return {.num_tokens = static_cast<int64_t>(num_seqs),
          .num_seqs = static_cast<int64_t>(num_seqs),
          .num_samples = static_cast<int64_t>(num_seqs),
          .max_kv_len = max_kv_len,
          .token_ids = drafts_ + (pass - 1) * num_guessing(0),
          .positions = device_positions,
          .slot_mapping = device_slots,
          .query_start = iota_,
          .kv_lens = device_kv_lens,
          .block_tables = first.block_tables,
          .block_table_stride = first.block_table_stride,
          .sample_token_rows = iota_};
}

// Pass by pass the rows that the model will draw with, which want no log-probabilities here.
const SamplingRow* DraftModel::stage_rows(const SamplingBatch& sampling) {
  int64_t num_rows = 0;
  for (const DeviceBatch& pass : passes_) num_rows += pass.num_samples;
  const auto [rows, device_rows] = staging_.take<SamplingRow>(static_cast<size_t>(num_rows));
  SamplingRow* next = rows;
  for (size_t pass = 0; pass < passes_.size(); ++pass) {
    for (int64_t i = 0; i < passes_[pass].num_samples; ++i) {
      const auto sample = static_cast<size_t>(guesses_[static_cast<size_t>(i)].first_sample) + pass;
      *next = with_staged_lists(sampling.rows()[sample], staging_);
      (next++)->num_logprobs = -1;
    }
  }
  return device_rows;
}

void DraftModel::launch(const DeviceBatch& batch, const SamplingRow* rows, int32_t* drafts) {
  const Arena::Scope scope(ops_.arena());
  const Tensor hidden = decoder_.forward(batch, kv_cache_, ops_);
  if (batch.num_samples == 0) return;
  const Tensor logits = decoder_.logits(hidden, batch.sample_token_rows, batch.num_samples, ops_);
  const KernelTable& kernels = device_.kernels();
  const size_t num_bytes = kernels.sampling_workspace_bytes(batch.num_samples, logits.size(1), device_.num_threads());
  kernels.sample({.logits = logits.as<float>(),
                  .logits_stride = logits.row_stride(),
                  .vocab_size = static_cast<int32_t>(logits.size(1)),
                  .num_rows = static_cast<int32_t>(batch.num_samples),
                  .rows = rows,
                  .token_ids = drafts,
                  .workspace = ops_.arena().allocate_bytes(num_bytes),
                  .workspace_bytes = num_bytes},
                 device_.stream());
}

}  // namespace quire
