// The vector loops of sampling (SamplingPrimitives, common_kernels.h). One row of logits each; the decisions are in
// sampling.cpp. Noise has the bits of philox.h: integer arithmetic and the same float operations, none fused.

// A best element and its index; lower index among equals. Indices are exact as floats only to 2^24, so lanes keep the
// number of their vector instead.
struct BestLanes {
  Vec::F value;
  Vec::F vector;  // which vector it came from
};

static inline void take_better(BestLanes& best, Vec::F x, Vec::F vector) {
  best.vector = Vec::if_less(best.value, x, vector, best.vector);
  best.value = Vec::if_less(best.value, x, x, best.value);
}

static int32_t best_index(const BestLanes& best) {
  alignas(64) float values[Vec::kWidth];
  alignas(64) float vectors[Vec::kWidth];
  Vec::store(values, best.value);
  Vec::store(vectors, best.vector);
  int32_t index = static_cast<int32_t>(vectors[0]) * Vec::kWidth;
  float value = values[0];
  for (int i = 1; i < Vec::kWidth; ++i) {
    const int32_t candidate = static_cast<int32_t>(vectors[i]) * Vec::kWidth + i;
    if (values[i] > value || (values[i] == value && candidate < index)) {
      value = values[i];
      index = candidate;
    }
  }
  return index;
}

template <bool kClean>
static int32_t argmax_of(std::conditional_t<kClean, float, const float>* x, int32_t n) {
  const Vec::F lowest = Vec::set1(-__builtin_inff());
  BestLanes best = {lowest, Vec::zero()};
  const int32_t full = n / Vec::kWidth * Vec::kWidth;
  float vector = 0.0f;
  for (int32_t i = 0; i < full; i += Vec::kWidth, vector += 1.0f) {
    Vec::F v = Vec::load(x + i);
    if constexpr (kClean) {
      v = Vec::nan_to(v, lowest);
      Vec::store(x + i, v);
    }
    take_better(best, v, Vec::set1(vector));
  }
  int32_t index = best_index(best);
  float value = full > 0 ? x[index] : -__builtin_inff();
  for (int32_t i = full; i < n; ++i) {
    if constexpr (kClean) {
      if (x[i] != x[i]) x[i] = -__builtin_inff();
    }
    if (x[i] > value) {
      value = x[i];
      index = i;
    }
  }
  return index;
}

static int32_t clean_argmax(float* x, int32_t n) { return argmax_of<true>(x, n); }
static int32_t argmax(const float* x, int32_t n) { return argmax_of<false>(x, n); }

// Without branches, so that the compiler takes vectors for it.
static void apply_mask(float* x, int32_t n, const uint32_t* mask) {
  for (int32_t begin = 0; begin < n; begin += 32) {
    const uint32_t word = mask[begin / 32];
    if (word == ~0u) continue;
    float* own = x + begin;
    if (n - begin >= 32) {
      for (uint32_t j = 0; j < 32; ++j) own[j] = (word >> j & 1) != 0 ? own[j] : -__builtin_inff();
    } else {
      for (int32_t j = 0; j < n - begin; ++j) own[j] = (word >> j & 1) != 0 ? own[j] : -__builtin_inff();
    }
  }
}

static void divide(float* x, int32_t n, float divisor) {
  for (int32_t i = 0; i < n; i += Vec::kWidth) {
    store_up_to(x + i, Vec::div(load_up_to(x + i, n - i), Vec::set1(divisor)), n - i);
  }
}

static float sum_exp(const float* x, int32_t n, float max) {
  Vec::F sums[2] = {Vec::zero(), Vec::zero()};
  const int32_t full = n / Vec::kWidth * Vec::kWidth;
  for (int32_t i = 0; i < full; i += Vec::kWidth) {
    Vec::F& sum = sums[i / Vec::kWidth % 2];
    sum = Vec::add(sum, exp_of(Vec::sub(Vec::load(x + i), Vec::set1(max))));
  }
  float tail = 0.0f;
  for (int32_t i = full; i < n; ++i) tail += exp_of_scalar(x[i] - max);
  return Vec::reduce_add(Vec::add(sums[0], sums[1])) + tail;
}

static int32_t count_at_least(const float* x, int32_t n, float bound) {
  const int32_t full = n / Vec::kWidth * Vec::kWidth;
  int32_t count = 0;
  for (int32_t i = 0; i < full; i += Vec::kWidth) count += Vec::count_at_least(Vec::load(x + i), Vec::set1(bound));
  for (int32_t i = full; i < n; ++i) count += x[i] >= bound;
  return count;
}

static int32_t run_max(const float* x, int32_t n, float* out) {
  int32_t num_runs = 0;
  for (int32_t begin = 0; begin < n; begin += kRunLength, ++num_runs) {
    const int32_t end = begin + kRunLength < n ? begin + kRunLength : n;
    Vec::F max = Vec::set1(-__builtin_inff());
    int32_t i = begin;
    for (; i + Vec::kWidth <= end; i += Vec::kWidth) max = Vec::max(max, Vec::load(x + i));
    float value = Vec::reduce_max(max);
    for (; i < end; ++i) value = x[i] > value ? x[i] : value;
    out[num_runs] = value;
  }
  return num_runs;
}

static int32_t collect(const float* x, int32_t n, float bound, int32_t* ids) {
  const int32_t full = n / Vec::kWidth * Vec::kWidth;
  int32_t count = 0;
  for (int32_t i = 0; i < full; i += Vec::kWidth) {
    if (!Vec::any_at_least(Vec::load(x + i), Vec::set1(bound))) continue;
    for (int32_t j = i; j < i + Vec::kWidth; ++j) {
      ids[count] = j;
      count += x[j] >= bound;
    }
  }
  for (int32_t i = full; i < n; ++i) {
    if (x[i] >= bound) ids[count++] = i;
  }
  return count;
}

// philox.h's fixed_log, lane by lane.
static inline Vec::F fixed_log_of(Vec::F x) {
  const Vec::U bits = Vec::as_bits(x);
  const Vec::U exponent = Vec::shift_right_signed<23>(Vec::sub_u(bits, Vec::set1_u(0x3f3504f3u)));
  const Vec::F m = Vec::as_float(Vec::sub_u(bits, Vec::shift_left<23>(exponent)));
  const Vec::F one = Vec::set1(1.0f);
  const Vec::F s = Vec::div(Vec::sub(m, one), Vec::add(m, one));
  const Vec::F z = Vec::mul(s, s);
  Vec::F p = Vec::set1(0.22222222f);
  p = Vec::add(Vec::mul(p, z), Vec::set1(0.28571429f));
  p = Vec::add(Vec::mul(p, z), Vec::set1(0.4f));
  p = Vec::add(Vec::mul(p, z), Vec::set1(0.66666667f));
  p = Vec::add(Vec::mul(p, z), Vec::set1(2.0f));
  return Vec::add(Vec::mul(Vec::to_float(exponent), Vec::set1(0.69314718f)), Vec::mul(s, p));
}

static inline Vec::F gumbel_of(Vec::U bits) {
  const Vec::F u = Vec::mul(Vec::add(Vec::to_float(Vec::shift_right<9>(bits)), Vec::set1(0.5f)), Vec::set1(0x1p-23f));
  const Vec::F inner = Vec::sub(Vec::zero(), fixed_log_of(u));
  return Vec::sub(Vec::zero(), fixed_log_of(inner));
}

// Noise of the 4 * kWidth tokens from first_token (a multiple of 4) on, in order. Lane 4g + i computes the Philox block
// that, after the transposition of 4x4 lane groups, ends in lanes 4g .. 4g + 3 of vector i.
static inline void gumbel_noise(uint64_t seed, uint32_t output_index, uint32_t first_token, Vec::F* noise) {
  alignas(64) uint32_t lane_blocks[Vec::kWidth];
  for (uint32_t lane = 0; lane < Vec::kWidth; ++lane) lane_blocks[lane] = lane % 4 * (Vec::kWidth / 4) + lane / 4;
  Vec::U word[4] = {Vec::add_u(Vec::load_u(lane_blocks), Vec::set1_u(first_token / 4)), Vec::set1_u(output_index),
                    Vec::set1_u(0), Vec::set1_u(0)};
  uint32_t key_low = static_cast<uint32_t>(seed), key_high = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    Vec::U a_high, a_low, b_high, b_low;
    Vec::mul_wide(word[0], Vec::set1_u(0xd2511f53u), &a_high, &a_low);
    Vec::mul_wide(word[2], Vec::set1_u(0xcd9e8d57u), &b_high, &b_low);
    word[0] = Vec::xor_u(Vec::xor_u(b_high, word[1]), Vec::set1_u(key_low));
    word[1] = b_low;
    word[2] = Vec::xor_u(Vec::xor_u(a_high, word[3]), Vec::set1_u(key_high));
    word[3] = a_low;
    key_low += 0x9e3779b9u;
    key_high += 0xbb67ae85u;
  }
  Vec::transpose4(word);
  for (int i = 0; i < 4; ++i) noise[i] = gumbel_of(word[i]);
}

// Lowest id of the best x + noise. A group of tokens none of which can beat `floor` even with the largest noise is
// skipped before its noise is computed: for the logits of a language model that is nearly all of them.
static int32_t gumbel_argmax(const float* x, int32_t n, float bound, int32_t last_tie, int32_t start, uint64_t seed,
                             uint32_t output_index) {
  constexpr int kGroup = 4 * Vec::kWidth;
  const Vec::F minus_infinity = Vec::set1(-__builtin_inff());
  int32_t best_id = start;
  float best = x[start] + gumbel_from_bits(token_random_bits(seed, output_index, static_cast<uint32_t>(start)));
  alignas(64) float values[kGroup];
  for (int32_t begin = 0; begin < n; begin += kGroup) {
    Vec::F v[4];
    Vec::F max = minus_infinity;
    for (int i = 0; i < 4; ++i) {
      const int32_t left = n - begin - i * Vec::kWidth;
      v[i] = minus_infinity;
      if (left >= Vec::kWidth) {
        v[i] = Vec::load(x + begin + i * Vec::kWidth);
      } else if (left > 0) {
        for (int j = 0; j < Vec::kWidth; ++j) values[j] = j < left ? x[begin + i * Vec::kWidth + j] : -__builtin_inff();
        v[i] = Vec::load(values);
      }
      max = Vec::max(max, v[i]);
    }
    const float group_max = Vec::reduce_max(max);
    if (!(group_max >= bound) || group_max + kMaxGumbel < best) continue;
    Vec::F noise[4];
    gumbel_noise(seed, output_index, static_cast<uint32_t>(begin), noise);
    Vec::F best_in_group = minus_infinity;
    for (int i = 0; i < 4; ++i) {
      const Vec::F value = Vec::if_less(v[i], Vec::set1(bound), minus_infinity, Vec::add(v[i], noise[i]));
      Vec::store(values + i * Vec::kWidth, value);
      best_in_group = Vec::max(best_in_group, value);
    }
    if (!(Vec::reduce_max(best_in_group) >= best)) continue;
    for (int32_t j = 0; j < kGroup && begin + j < n; ++j) {
      const int32_t id = begin + j;
      if (x[id] == bound && id > last_tie) continue;
      if (values[j] > best || (values[j] == best && id < best_id)) {
        best = values[j];
        best_id = id;
      }
    }
  }
  return best_id;
}

static constexpr SamplingPrimitives kSamplingPrimitives = {clean_argmax,   argmax,  apply_mask, divide,       sum_exp,
                                                           count_at_least, run_max, collect,    gumbel_argmax};

static void sample(const SamplingParamsBlock& block, Stream stream) { sample_rows(block, kSamplingPrimitives, stream); }
