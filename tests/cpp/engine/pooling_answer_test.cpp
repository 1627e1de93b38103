// What the host does to pooled rows: against numbers worked out by hand.
#include "engine/pooling_answer.h"

#include <gtest/gtest.h>

#include <cmath>

namespace quire {
namespace {

struct Case {
  PoolerSpec pooler = {};
  PoolingType type = PoolingType::mean;
  PoolingParams params = {};
  std::vector<int32_t> token_ids = {};
};

PoolingOutput finish(const Case& c, const std::vector<float>& rows, int64_t num_columns) {
  PoolingOutput output;
  finish_answer(c.pooler, c.type, c.params, c.token_ids, rows, num_columns, output);
  return output;
}

void expect_near(const std::vector<float>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << "element " << i;
}

TEST(PoolingAnswer, Normalizes) {
  const PoolingOutput output = finish({.pooler = {.activation = PoolingActivation::normalize}}, {3, 0, -4}, 3);
  expect_near(output.data, {0.6, 0.0, -0.8});
  EXPECT_EQ(output.num_rows, 0);
  EXPECT_EQ(output.num_columns, 3);
}

TEST(PoolingAnswer, ZerosStayZeros) {
  expect_near(finish({.pooler = {.activation = PoolingActivation::normalize}}, {0, 0}, 2).data, {0, 0});
}

TEST(PoolingAnswer, DimensionsBeforeTheLength) {
  const Case c = {.pooler = {.activation = PoolingActivation::normalize}, .params = {.dimensions = 2}};
  const PoolingOutput output = finish(c, {3, -4, 100}, 3);
  expect_near(output.data, {0.6, -0.8});
  EXPECT_EQ(output.num_columns, 2);
}

TEST(PoolingAnswer, Probabilities) {
  const double sum = std::exp(-1.0) + 1.0;
  expect_near(finish({.pooler = {.activation = PoolingActivation::softmax}}, {1000, 999}, 2).data,
              {1.0 / sum, std::exp(-1.0) / sum});
  expect_near(finish({.pooler = {.activation = PoolingActivation::sigmoid}}, {0, 2, -200}, 3).data,
              {0.5, 1.0 / (1.0 + std::exp(-2.0)), 0.0});
}

TEST(PoolingAnswer, WithoutActivation) {
  const Case c = {.pooler = {.activation = PoolingActivation::softmax}, .params = {.use_activation = false}};
  expect_near(finish(c, {5, -7}, 2).data, {5, -7});
}

TEST(PoolingAnswer, StepKeepsItsRowsAndColumns) {
  const PoolerSpec pooler = {.activation = PoolingActivation::softmax, .step_tag_id = 9, .returned_token_ids = {2, 0}};
  const Case c = {.pooler = pooler, .type = PoolingType::step, .token_ids = {9, 1, 9}};
  const PoolingOutput output = finish(c, {1, 2, 1, /**/ 5, 5, 5, /**/ 0, 7, std::log(3.0f)}, 3);
  EXPECT_EQ(output.num_rows, 2);
  EXPECT_EQ(output.num_columns, 2);
  expect_near(output.data, {0.5, 0.5, 0.75, 0.25});
}

TEST(PoolingAnswer, StepWithoutItsTokenIsEmpty) {
  const Case c = {.pooler = {.step_tag_id = 9}, .type = PoolingType::step, .token_ids = {1, 2}};
  const PoolingOutput output = finish(c, {1, 2, 3, 4}, 2);
  EXPECT_EQ(output.num_rows, 0);
  EXPECT_EQ(output.num_columns, 2);
  EXPECT_TRUE(output.data.empty());
}

TEST(PoolingAnswer, ColumnsAreThoseOfTheAnswer) {
  const PoolerSpec pooler = {.returned_token_ids = {1}};
  expect_near(finish({.pooler = pooler}, {4, 5}, 2).data, {5});  // a model without a head answers with its states
  expect_near(finish({.pooler = pooler, .params = {.without_head = true}}, {4, 5}, 2).data, {4, 5});
}

TEST(PoolingAnswer, AllNormalizesEveryRow) {
  const Case c = {
      .pooler = {.activation = PoolingActivation::normalize}, .type = PoolingType::all, .token_ids = {1, 2}};
  const PoolingOutput output = finish(c, {3, 4, 0, -2}, 2);
  EXPECT_EQ(output.num_rows, 2);
  expect_near(output.data, {0.6, 0.8, 0, -1});
}

}  // namespace
}  // namespace quire
