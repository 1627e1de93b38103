// Modes of sentence-transformers, against numbers worked out by hand.
#include "model/pooling_modes.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/check.h"

namespace quire {
namespace {

const std::vector<float> kStates = {9, -1, 1, 4, -3, 6};  // three tokens of two

std::vector<float> pooled(const std::vector<PoolingMode>& modes, int64_t num_skipped = 0) {
  std::vector<float> out(modes.size() * 2, NAN);
  pool_by_modes(kStates, 2, num_skipped, modes, out);
  return out;
}

void expect_near(const std::vector<float>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << "element " << i;
}

TEST(PoolingModes, Each) {
  expect_near(pooled({PoolingMode::cls}), {9, -1});
  expect_near(pooled({PoolingMode::max}), {9, 6});
  expect_near(pooled({PoolingMode::mean}), {7.0 / 3, 3});
  expect_near(pooled({PoolingMode::mean_sqrt_len_tokens}), {7 / std::sqrt(3.0), 9 / std::sqrt(3.0)});
  expect_near(pooled({PoolingMode::weightedmean}), {(9 + 2 - 9) / 6.0, (-1 + 8 + 18) / 6.0});
  expect_near(pooled({PoolingMode::lasttoken}), {-3, 6});
}

TEST(PoolingModes, JoinedInTheOrderOfTheList) {
  expect_near(pooled({PoolingMode::lasttoken, PoolingMode::cls, PoolingMode::max}), {-3, 6, 9, -1, 9, 6});
}

// The weights of the others stay those of their places in the text.
TEST(PoolingModes, TokensThatAreLeftOut) {
  expect_near(pooled({PoolingMode::cls}, 1), {1, 4});
  expect_near(pooled({PoolingMode::max}, 1), {1, 6});
  expect_near(pooled({PoolingMode::mean}, 1), {-1, 5});
  expect_near(pooled({PoolingMode::mean_sqrt_len_tokens}, 1), {-2 / std::sqrt(2.0), 10 / std::sqrt(2.0)});
  expect_near(pooled({PoolingMode::weightedmean}, 1), {(2 - 9) / 5.0, (8 + 18) / 5.0});
  expect_near(pooled({PoolingMode::lasttoken, PoolingMode::mean}, 2), {-3, 6, -3, 6});
  EXPECT_THROW(pooled({PoolingMode::mean}, 3), InternalError);
}

TEST(PoolingModes, Names) {
  EXPECT_EQ(joined_names(kPoolingModes), "cls + max + mean + mean_sqrt_len_tokens + weightedmean + lasttoken");
}

}  // namespace
}  // namespace quire
