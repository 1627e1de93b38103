// The public class of pooling on the embedded model: bits whatever the batch, every way of pooling, cancelling, errors.
#include <gtest/gtest.h>

#include <cmath>

#include "quire/pooling.h"
#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

PoolingInput text_of(int32_t length, int32_t salt) {
  PoolingInput text;
  for (int32_t i = 0; i < length; ++i) text.token_ids.push_back(300 + (i * 37 + salt * 101) % 1500);
  return text;
}

EngineOptions options_of(const char* dtype = "float32") {
  return {.dtype = dtype, .max_model_len = 512, .num_threads = 2};
}

class PoolingInvariance : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(PoolingInvariance, BatchMatesBudgetsAndThreads) {
  const auto [dtype, type] = GetParam();
  const PoolerOptions pooler = {.pooling_type = type};
  const PoolingInput text = text_of(150, 0);
  const std::vector<float> alone = PoolingModel(kDemo, options_of(dtype), pooler).pool({text}).front().data;
  std::vector<PoolingInput> texts;
  for (int32_t i = 0; i < 40; ++i) texts.push_back(text_of(1 + i * 5 % 200, i + 1));
  texts.insert(texts.begin() + 17, text);
  for (const int64_t budget : {0, 1, 200, 700}) {
    for (const int32_t threads : {1, 3}) {
      EngineOptions options = options_of(dtype);
      options.max_num_batched_tokens = budget;
      options.num_threads = threads;
      PoolingModel model(kDemo, options, pooler);
      EXPECT_EQ(model.pool(texts)[17].data, alone) << "budget " << budget << ", threads " << threads;
      EXPECT_EQ(model.stats().num_finished, 41);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, PoolingInvariance,
                         testing::Combine(testing::Values("float32", "bfloat16"),
                                          testing::Values("LAST", "MEAN", "CLS", "ALL")));

TEST(PoolingModel, WaysOfPoolingFitTogether) {
  const PoolingInput text = text_of(20, 3);
  PoolingModel model(kDemo, options_of(), {.pooling_type = "ALL", .normalize = false});
  const PoolingOutput all = model.pool({text}).front();
  const int64_t hidden = model.info().hidden_size;
  ASSERT_EQ(all.num_rows, 20);
  ASSERT_EQ(all.num_columns, hidden);
  EXPECT_EQ(all.num_prompt_tokens, 20);
  const PoolingOutput last = model.pool({text}, {.pooling_type = "LAST"}).front();
  const PoolingOutput first = model.pool({text}, {.pooling_type = "CLS"}).front();
  const PoolingOutput mean = model.pool({text}, {.pooling_type = "MEAN"}).front();
  for (const PoolingOutput* one : {&last, &first, &mean}) {
    ASSERT_EQ(one->num_rows, 0);
    ASSERT_EQ(one->data.size(), static_cast<size_t>(hidden));
  }
  double spread = 0.0;
  for (int64_t c = 0; c < hidden; ++c) {
    const auto row = [&](int64_t r) { return all.data[static_cast<size_t>(r * hidden + c)]; };
    double sum = 0.0;
    for (int64_t r = 0; r < 20; ++r) sum += row(r);
    EXPECT_EQ(last.data[static_cast<size_t>(c)], row(19));
    EXPECT_EQ(first.data[static_cast<size_t>(c)], row(0));
    EXPECT_NEAR(mean.data[static_cast<size_t>(c)], sum / 20, 1e-5);
    spread += std::abs(static_cast<double>(row(19) - row(0)));
  }
  EXPECT_GT(spread, 1.0);
}

TEST(PoolingModel, TokensThatAreReadAndNotPooled) {
  const PoolingInput text = text_of(20, 3);
  PoolingModel model(kDemo, options_of(), {.pooling_type = "MEAN", .normalize = false});
  const PoolingOutput all = model.pool({text}, {.pooling_type = "ALL", .num_skipped_tokens = 20}).front();
  ASSERT_EQ(all.num_rows, 20);
  const PoolingOutput mean = model.pool({text}, {.num_skipped_tokens = 5}).front();
  const int64_t hidden = model.info().hidden_size;
  ASSERT_EQ(static_cast<int64_t>(mean.data.size()), hidden);
  for (int64_t c = 0; c < hidden; ++c) {
    double sum = 0.0;
    for (int64_t r = 5; r < 20; ++r) sum += all.data[static_cast<size_t>(r * hidden + c)];
    EXPECT_NEAR(mean.data[static_cast<size_t>(c)], sum / 15, 1e-5);
  }
  EXPECT_THROW(model.pool({text}, {.num_skipped_tokens = 20}), std::invalid_argument);
  EXPECT_THROW(model.pool({text}, {.num_skipped_tokens = -1}), std::invalid_argument);
  EXPECT_THROW(model.pool({text}, {.pooling_type = "LAST", .num_skipped_tokens = 5}), std::invalid_argument);
}

TEST(PoolingModel, PlansWhatItTakes) {
  const ModelInfo plan = plan_pooling_model(kDemo, options_of(), {.task = "reward"});
  const PoolingModel model(kDemo, options_of(), {.task = "reward"});
  EXPECT_EQ(plan.weight_bytes, model.info().weight_bytes);
  EXPECT_EQ(plan.workspace_bytes, model.info().workspace_bytes);
  EXPECT_EQ(plan.pooling_type, "ALL");
  EXPECT_GT(plan.step_bytes, 0);
  EXPECT_LT(plan.step_bytes, plan.workspace_bytes);
  EXPECT_THROW(plan_pooling_model(kDemo, options_of(), {.task = "dance"}), std::invalid_argument);
}

// The first tokens of a decoder do not see the later ones; what is pooled from them stays the same.
TEST(PoolingModel, DecodersLookBack) {
  PoolingModel model(kDemo, options_of(), {.pooling_type = "CLS"});
  PoolingInput longer = text_of(9, 1), shorter = longer;
  shorter.token_ids.resize(4);
  const std::vector<PoolingOutput> outputs = model.pool({longer, shorter});
  EXPECT_EQ(outputs[0].data, outputs[1].data);
}

TEST(PoolingModel, ExactlyMaxModelLenIsAllowed) {
  EngineOptions options = options_of();
  options.max_model_len = 30;
  options.max_num_batched_tokens = 8;
  PoolingModel model(kDemo, options);
  EXPECT_EQ(model.pool({text_of(30, 1)}).front().num_prompt_tokens, 30);
  EXPECT_THROW(model.pool({text_of(31, 1)}), std::invalid_argument);
}

TEST(PoolingModel, SubmitStepCancel) {
  PoolingModel model(kDemo, options_of());
  std::vector<PoolingOutput> outputs;
  const auto keep = [&](PoolingOutput&& output) { outputs.push_back(std::move(output)); };
  const uint64_t a = model.submit(text_of(5, 1), {}, keep), b = model.submit(text_of(6, 2), {}, keep);
  EXPECT_TRUE(model.cancel(a));
  EXPECT_FALSE(model.cancel(a));
  ASSERT_EQ(outputs.size(), 1u);
  EXPECT_TRUE(outputs[0].is_cancelled);
  EXPECT_EQ(outputs[0].request_id, a);
  EXPECT_EQ(model.stats().num_waiting, 1);
  EXPECT_TRUE(model.step());
  EXPECT_FALSE(model.step());
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[1].request_id, b);
  EXPECT_FALSE(outputs[1].is_cancelled);
  EXPECT_FALSE(model.cancel(b));
}

TEST(PoolingModel, CallbacksMaySubmit) {
  PoolingModel model(kDemo, options_of());
  int finished = 0;
  model.submit(text_of(5, 1), {}, [&](PoolingOutput&&) {
    ++finished;
    model.submit(text_of(7, 2), {}, [&](PoolingOutput&&) { ++finished; });
  });
  while (model.step()) {
  }
  EXPECT_EQ(finished, 2);
}

TEST(PoolingModel, BadTextsAreNamedAndLeaveNothing) {
  PoolingModel model(kDemo, options_of());
  const auto message_of = [&](const std::vector<PoolingInput>& texts, const PoolingParams& params = {}) {
    try {
      model.pool(texts, params);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("(no error)");
  };
  EXPECT_EQ(message_of({text_of(3, 1), {}}), "text 1: The prompt cannot be empty");
  EXPECT_NE(message_of({text_of(3, 1), {.token_ids = {1, -4}}}).find("text 1: Token id -4 is out of vocabulary"),
            std::string::npos);
  EXPECT_NE(message_of({{.token_ids = {1, 2}, .token_type_ids = {0}}}).find("token_type_ids has 1 entries"),
            std::string::npos);
  EXPECT_NE(message_of({{.token_ids = {1, 2}, .token_type_ids = {0, 1}}}).find("Token type id 1"), std::string::npos);
  EXPECT_NE(message_of({text_of(3, 1)}, {.dimensions = 100000}).find("Dimensions must be at most"), std::string::npos);
  EXPECT_NE(message_of({text_of(3, 1)}, {.pooling_type = "MAX"}).find("'MAX'"), std::string::npos);
  EXPECT_EQ(model.stats().num_waiting, 0);
}

TEST(PoolingModel, PoolingNeedsNoKvCache) {
  PoolingModel model(kDemo, options_of());
  EXPECT_EQ(model.info().kv_cache_bytes, 0);
  EXPECT_EQ(model.info().pooling_type, "LAST");
  EXPECT_EQ(model.info().pooling_activation, "normalize");
  EXPECT_EQ(model.info().num_outputs, model.info().hidden_size);
}

}  // namespace
}  // namespace quire
