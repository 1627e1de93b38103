// Finishing of pooled rows; see pooling_answer.h. Sums are in double: they cost nothing here.
#include "engine/pooling_answer.h"

#include <algorithm>
#include <cmath>

namespace quire {
namespace {

// torch.nn.functional.normalize's bound, against division by zero.
constexpr double kLeastNorm = 1e-12;

void normalize(std::span<float> row) {
  double sum = 0.0;
  for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
  const double factor = 1.0 / std::max(std::sqrt(sum), kLeastNorm);
  for (float& x : row) x = static_cast<float>(static_cast<double>(x) * factor);
}

void softmax(std::span<float> row) {
  const float max = *std::ranges::max_element(row);
  double sum = 0.0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - static_cast<double>(max));
  for (float& x : row) {
    x = static_cast<float>(std::exp(static_cast<double>(x) - static_cast<double>(max)) / sum);
  }
}

void activate(PoolingActivation activation, std::span<float> row) {
  if (activation == PoolingActivation::normalize) normalize(row);
  if (activation == PoolingActivation::softmax && !row.empty()) softmax(row);
  if (activation != PoolingActivation::sigmoid) return;
  for (float& x : row) x = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x))));
}

}  // namespace

void finish_answer(const PoolerSpec& pooler, PoolingType type, const PoolingParams& params,
                   std::span<const int32_t> token_ids, std::span<const float> rows, int64_t num_columns,
                   PoolingOutput& output) {
  const bool chooses_columns = !params.without_head && !pooler.returned_token_ids.empty();
  const int64_t width = chooses_columns ? static_cast<int64_t>(pooler.returned_token_ids.size()) : num_columns;
  const int64_t kept = params.dimensions > 0 ? std::min<int64_t>(width, params.dimensions) : width;
  const bool has_activation = params.use_activation.value_or(true);
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / num_columns;
  output.data.clear();
  output.num_columns = kept;
  output.num_rows = 0;
  std::vector<float> row;
  for (int64_t r = 0; r < num_rows; ++r) {
    if (type == PoolingType::step && pooler.step_tag_id.has_value() &&
        token_ids[static_cast<size_t>(r)] != *pooler.step_tag_id) {
      continue;
    }
    const std::span<const float> source =
        rows.subspan(static_cast<size_t>(r * num_columns), static_cast<size_t>(num_columns));
    row.clear();
    for (int64_t c = 0; c < kept; ++c) {
      const auto column = static_cast<size_t>(c);
      row.push_back(source[chooses_columns ? static_cast<size_t>(pooler.returned_token_ids[column]) : column]);
    }
    if (has_activation) activate(pooler.activation, row);
    output.data.insert(output.data.end(), row.begin(), row.end());
    ++output.num_rows;
  }
  const bool is_one_vector = type != PoolingType::all && type != PoolingType::step;
  if (is_one_vector) output.num_rows = 0;
}

}  // namespace quire
