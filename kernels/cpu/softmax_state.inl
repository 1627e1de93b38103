// The softmax of a set of keys as a value: {max, sum, out} with sum = sum exp(s - max) and out = sum exp(s - max) v.
// States of disjoint sets merge into the state of their union; the empty state {-inf, 0, -} is neutral. Merging left to
// right in key order is the definition of the result, whoever computed the parts.

struct SoftmaxState {
  float* max;
  float* sum;
  float* out;  // n floats, n rounded up to whole vectors
};

static inline float exp_of_scalar(float x) {
  alignas(64) float lanes[Vec::kWidth];
  Vec::store(lanes, exp_of(Vec::set1(x)));
  return lanes[0];
}

static void merge_states(const SoftmaxState& left, const SoftmaxState& right, int64_t n) {
  if (*right.sum == 0.0f) return;
  const bool is_first = *left.sum == 0.0f;
  const float max = is_first || *right.max > *left.max ? *right.max : *left.max;
  const float left_factor = is_first ? 0.0f : exp_of_scalar(*left.max - max);
  const float right_factor = is_first ? 1.0f : exp_of_scalar(*right.max - max);
  *left.sum = is_first ? *right.sum : *left.sum * left_factor + *right.sum * right_factor;
  *left.max = max;
  for (int64_t i = 0; i < n; i += Vec::kWidth) {
    const Vec::F part = Vec::mul(Vec::load(right.out + i), Vec::set1(right_factor));
    const Vec::F x = is_first ? part : Vec::fma(Vec::load(left.out + i), Vec::set1(left_factor), part);
    Vec::store(left.out + i, x);
  }
}
