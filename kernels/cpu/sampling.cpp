// The decisions of sampling, once for all instruction sets: edits of the logits, filters, draw, logprobs (sampling.h).
//
// A filter is a threshold: a token stays when x > bound, or x == bound and its id is at most last_tie. min_p and top_k
// give a bound, top_p a bound and a tie; so the draw is one pass over the row however many filters there are.
// Rows are handed to `slots`, one for each thread, each with its own part of the workspace.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "cpu/common_kernels.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"

namespace quire::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kGreedyTemperature = 1e-5f;

// A thread's scratch: three arrays of vocab_size.
struct Slot {
  float* raw;  // the logits as they came, for logprobs
  float* values;
  int32_t* ids;
};

int64_t slot_elements(int64_t vocab_size) { return round_up(vocab_size, 16); }

Slot slot_of(const SamplingParamsBlock& block, int64_t index) {
  float* begin = static_cast<float*>(block.workspace) + index * 3 * slot_elements(block.vocab_size);
  const int64_t n = slot_elements(block.vocab_size);
  return {begin, begin + n, reinterpret_cast<int32_t*>(begin + 2 * n)};
}

struct Filter {
  float bound = kMinusInfinity;
  int32_t last_tie = std::numeric_limits<int32_t>::max();
};

class RowSampler {
 public:
  RowSampler(const SamplingParamsBlock& block, const SamplingPrimitives& primitives, int64_t row_index,
             const Slot& slot)
      : block_(block),
        primitives_(primitives),
        row_(block.rows[row_index]),
        row_index_(row_index),
        slot_(slot),
        x_(block.logits + row_index * block.logits_stride),
        n_(block.vocab_size) {}

  void run() {
    int32_t top = primitives_.clean_argmax(x_, n_);
    const float raw_max = x_[top];
    const bool wants_logprobs = row_.num_logprobs >= 0;
    const bool wants_raw = wants_logprobs && !is_processed(block_.logprobs_mode);
    if (wants_raw) std::memcpy(slot_.raw, x_, static_cast<size_t>(n_) * sizeof(float));
    if (edit_logits()) top = primitives_.argmax(x_, n_);
    int32_t token = top;
    Filter filter;
    if (x_[top] == kMinusInfinity) {
      token = lowest_permitted();
    } else if (row_.temperature >= kGreedyTemperature) {
      token = draw(top, filter);
    }
    if (row_.forced_token >= 0) token = row_.forced_token;
    block_.token_ids[row_index_] = token;
    if (!wants_logprobs) return;
    if (wants_raw) return write_logprobs(slot_.raw, token, raw_max);
    mask(filter);
    write_logprobs(x_, token, x_[primitives_.argmax(x_, n_)]);
  }

 private:
  bool edit_logits() {
    const bool has_penalty =
        row_.repetition_penalty != 1.0f || row_.frequency_penalty != 0.0f || row_.presence_penalty != 0.0f;
    if (row_.allowed_mask != nullptr) primitives_.apply_mask(x_, n_, row_.allowed_mask);
    if (row_.num_allowed_ids > 0) {
      std::memcpy(slot_.values, x_, static_cast<size_t>(n_) * sizeof(float));
      std::fill(x_, x_ + n_, kMinusInfinity);
      for (int32_t i = 0; i < row_.num_allowed_ids; ++i) x_[row_.allowed_ids[i]] = slot_.values[row_.allowed_ids[i]];
    }
    for (int32_t i = 0; i < row_.num_banned_ids; ++i) x_[row_.banned_ids[i]] = kMinusInfinity;
    for (int32_t i = 0; i < row_.num_biases; ++i) x_[row_.biases[i].token_id] += row_.biases[i].bias;
    for (int32_t i = 0; has_penalty && i < row_.num_counts; ++i) penalise(row_.counts[i]);
    return row_.allowed_mask != nullptr || row_.num_allowed_ids > 0 || row_.num_banned_ids > 0 || row_.num_biases > 0 ||
           (has_penalty && row_.num_counts > 0);
  }

  bool is_masked(int32_t id) const {
    return row_.allowed_mask != nullptr && (row_.allowed_mask[id / 32] >> id % 32 & 1) == 0;
  }

  void penalise(const TokenCount& count) {
    float& logit = x_[count.token_id];
    if (row_.repetition_penalty != 1.0f) {
      logit = logit > 0.0f ? logit / row_.repetition_penalty : logit * row_.repetition_penalty;
    }
    logit -= row_.frequency_penalty * static_cast<float>(count.output_count);
    if (count.output_count > 0) logit -= row_.presence_penalty;
  }

  bool is_banned(int32_t id) const {
    return std::find(row_.banned_ids, row_.banned_ids + row_.num_banned_ids, id) !=
           row_.banned_ids + row_.num_banned_ids;
  }

  // When no logit is above -infinity: the lowest unmasked id that is allowed and not banned, else the lowest that is
  // allowed, else the lowest of all.
  int32_t lowest_permitted() const {
    int32_t lowest = n_, lowest_unbanned = n_;
    const auto consider = [&](int32_t id) {
      if (is_masked(id)) return;
      lowest = std::min(lowest, id);
      if (id < lowest_unbanned && !is_banned(id)) lowest_unbanned = id;
    };
    if (row_.num_allowed_ids == 0) {
      for (int32_t id = 0; id < n_ && lowest_unbanned == n_; ++id) consider(id);
    } else {
      for (int32_t i = 0; i < row_.num_allowed_ids; ++i) consider(row_.allowed_ids[i]);
    }
    if (lowest_unbanned < n_) return lowest_unbanned;
    for (int32_t id = 0; id < n_ && lowest == n_; ++id) {
      if (!is_masked(id)) lowest = id;
    }
    return lowest < n_ ? lowest : 0;
  }

  int32_t draw(int32_t top, Filter& filter) {
    if (row_.temperature != 1.0f) {
      primitives_.divide(x_, n_, row_.temperature);
      top = primitives_.argmax(x_, n_);  // a division may make equals of two neighbours
    }
    const float max = x_[top];
    if (row_.min_p > 0.0f) filter.bound = max + std::log(row_.min_p);
    if (row_.top_k > 0 && row_.top_k < n_) filter.bound = std::max(filter.bound, kth_largest(x_, row_.top_k));
    if (row_.top_p < 1.0f) filter = nucleus(filter.bound, max);
    return primitives_.gumbel_argmax(x_, n_, filter.bound, filter.last_tie, top, row_.seed, row_.output_index);
  }

  // The k-th largest run maximum is no larger than the k-th largest element, so few candidates remain.
  float kth_largest(const float* x, int32_t k) {
    int32_t count = primitives_.run_max(x, n_, slot_.values);
    if (k <= count) {
      std::nth_element(slot_.values, slot_.values + (k - 1), slot_.values + count, std::greater<float>());
      count = primitives_.collect(x, n_, slot_.values[k - 1], slot_.ids);
      for (int32_t i = 0; i < count; ++i) slot_.values[i] = x[slot_.ids[i]];
    } else {
      count = n_;
      std::memcpy(slot_.values, x, static_cast<size_t>(n_) * sizeof(float));
    }
    std::nth_element(slot_.values, slot_.values + (k - 1), slot_.values + count, std::greater<float>());
    return slot_.values[k - 1];
  }

  // The smallest set of the best tokens above `bound` whose mass reaches top_p: a token stays while the mass of those
  // before it, in order of falling logit and rising id, is below top_p.
  Filter nucleus(float bound, float max) {
    double total = 0.0;
    if (bound == kMinusInfinity) {
      // All tokens below this bound together have less than the mass that is dropped.
      total = primitives_.sum_exp(x_, n_, max);
      bound = max + static_cast<float>(std::log((1.0 - row_.top_p) * total / n_)) - 1e-3f;
    }
    const int32_t count = primitives_.collect(x_, n_, bound, slot_.ids);
    if (total == 0.0) total = mass_of(0, count, max);
    double needed = row_.top_p * total;
    const auto is_better = [x = x_](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
    int32_t begin = 0, end = count;  // the last token that stays is in here; `needed` is what those before leave open
    while (end - begin > 64) {
      const int32_t middle = begin + (end - begin) / 2;
      std::nth_element(slot_.ids + begin, slot_.ids + middle, slot_.ids + end, is_better);
      const double mass = mass_of(begin, middle, max);
      if (mass < needed) {
        needed -= mass;
        begin = middle;
      } else {
        end = middle;
      }
    }
    std::sort(slot_.ids + begin, slot_.ids + end, is_better);
    int32_t last = begin;
    while (last + 1 < end) {
      needed -= mass_of(last, last + 1, max);
      if (!(needed > 0.0)) break;
      ++last;
    }
    return {x_[slot_.ids[last]], slot_.ids[last]};
  }

  double mass_of(int32_t begin, int32_t end, float max) const {
    double mass = 0.0;
    for (int32_t i = begin; i < end; ++i) mass += std::exp(x_[slot_.ids[i]] - max);
    return mass;
  }

  // What cannot be drawn becomes -infinity.
  void mask(const Filter& filter) {
    if (filter.bound == kMinusInfinity) return;
    for (int32_t id = 0; id < n_; ++id) {
      if (x_[id] < filter.bound || (x_[id] == filter.bound && id > filter.last_tie)) x_[id] = kMinusInfinity;
    }
  }

  void write_logprobs(const float* raw, int32_t token, float raw_max) {
    const bool are_logits = is_logits(block_.logprobs_mode);
    const float normaliser = are_logits ? 0.0f : raw_max + std::log(primitives_.sum_exp(raw, n_, raw_max));
    const int64_t begin = row_index_ * block_.logprobs_stride;
    int32_t* ids = block_.logprob_ids + begin;
    float* logprobs = block_.logprobs + begin;
    const auto logprob_of = [&](int32_t id) {
      return raw[id] == kMinusInfinity ? kMinusInfinity : raw[id] - normaliser;
    };
    ids[0] = token;
    logprobs[0] = logprob_of(token);
    block_.sampled_rank[row_index_] = primitives_.count_at_least(raw, n_, raw[token]);
    const int32_t k = std::min(row_.num_logprobs, n_);
    if (k > 0) {
      const float bound = kth_largest(raw, k);
      const int32_t count = primitives_.collect(raw, n_, bound, slot_.ids);
      std::partial_sort(slot_.ids, slot_.ids + k, slot_.ids + count,
                        [raw](int32_t a, int32_t b) { return raw[a] > raw[b] || (raw[a] == raw[b] && a < b); });
    }
    for (int32_t i = 0; i < k; ++i) {
      ids[1 + i] = slot_.ids[i];
      logprobs[1 + i] = logprob_of(slot_.ids[i]);
    }
    for (int32_t i = k; i < row_.num_logprobs; ++i) {  // more asked for than the vocabulary has
      ids[1 + i] = -1;
      logprobs[1 + i] = kMinusInfinity;
    }
  }

  const SamplingParamsBlock& block_;
  const SamplingPrimitives& primitives_;
  const SamplingRow& row_;
  const int64_t row_index_;
  const Slot& slot_;
  float* const x_;
  const int32_t n_;
};

}  // namespace

size_t sampling_workspace_bytes(int64_t max_rows, int64_t vocab_size, int num_threads) {
  const int64_t slots = std::min<int64_t>(max_rows, std::max(1, num_threads));
  return static_cast<size_t>(slots * 3 * slot_elements(vocab_size)) * sizeof(float);
}

void sample_rows(const SamplingParamsBlock& block, const SamplingPrimitives& primitives, Stream stream) {
  if (block.num_rows <= 0) return;
  const int64_t num_slots = std::min<int64_t>(block.num_rows, num_threads_of(stream));
  QUIRE_CHECK(block.vocab_size > 0, block.vocab_size);
  const size_t needed = sampling_workspace_bytes(block.num_rows, block.vocab_size, num_threads_of(stream));
  QUIRE_CHECK(block.workspace != nullptr && block.workspace_bytes >= needed, block.workspace_bytes, " < ", needed);
  for (int32_t i = 0; i < block.num_rows; ++i) {
    QUIRE_CHECK(block.rows[i].num_logprobs < 0 || 1 + block.rows[i].num_logprobs <= block.logprobs_stride,
                block.rows[i].num_logprobs, " logprobs in a row of ", block.logprobs_stride);
  }
  std::atomic<int64_t> next_row{0};
  for_each_task(stream, num_slots, 0.2 * block.num_rows * block.vocab_size, [&](int64_t index) {
    const Slot slot = slot_of(block, index);
    for (int64_t row = next_row++; row < block.num_rows; row = next_row++) {
      RowSampler(block, primitives, row, slot).run();
    }
  });
}

}  // namespace quire::cpu
