// Weights that change, by the public classes and the embedded model: what is given is what computes, what fails leaves
// the model as it was, and what was dropped is whole again when every part of it has come.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "quire/pooling.h"
#include "quire/quire.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;
const EngineOptions kOptions = {.dtype = "float32", .max_model_len = 128, .num_threads = 2};
const std::vector<std::vector<int32_t>> kPrompts = {{300, 301, 302, 303}, {400, 401}};
const std::string kQuery = "model.layers.0.self_attn.q_proj.weight", kKey = "model.layers.0.self_attn.k_proj.weight";

// float32 tensors under their names, in the order of the model.
class Tensors {
 public:
  template <typename Model>
  explicit Tensors(const Model& model) {
    for (const WeightInfo& weight : model.weights()) {
      if (!weight.same_as.empty()) continue;
      const std::vector<std::byte> bytes = model.read_weight(weight.name);
      std::vector<float>& values = values_[weight.name];
      values.resize(bytes.size() / sizeof(float));
      std::memcpy(values.data(), bytes.data(), bytes.size());
      shapes_[weight.name] = weight.shape;
    }
  }

  std::vector<float>& operator[](const std::string& name) { return values_.at(name); }
  ExternalTensor tensor(const std::string& name) const {
    return {.name = name, .dtype = "float32", .shape = shapes_.at(name), .data = values_.at(name).data()};
  }
  std::vector<ExternalTensor> all_but(const std::string& left_out = {}) const {
    std::vector<ExternalTensor> all;
    for (const auto& [name, values] : values_) {
      if (name != left_out) all.push_back(tensor(name));
    }
    return all;
  }
  bool operator==(const Tensors& other) const { return values_ == other.values_ && shapes_ == other.shapes_; }

 private:
  std::map<std::string, std::vector<float>> values_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

TensorSource source_of(const std::vector<ExternalTensor>& tensors) {
  return [tensors, next = size_t{0}](ExternalTensor& tensor) mutable {
    if (next == tensors.size()) return false;
    tensor = tensors[next++];
    return true;
  };
}

std::vector<std::vector<float>> logprobs_of(LLM& llm) {
  std::vector<std::vector<float>> all;
  const SamplingParams params = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 4, .logprobs = 3};
  for (const RequestOutput& output : llm.generate(kPrompts, params)) {
    all.push_back(output.completions.at(0).logprobs.logprobs);
  }
  return all;
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

TEST(Weights, ThatAreGivenCompute) {
  LLM changed(kDemo, kOptions);
  Tensors tensors(changed);
  const auto before = logprobs_of(changed);
  for (float& value : tensors["model.norm.weight"]) value *= 0.5f;
  for (float& value : tensors[kKey]) value = -value;
  EXPECT_EQ(changed.weights_version(), 0u);
  EXPECT_EQ(changed.load_weights(source_of({tensors.tensor(kKey), tensors.tensor("model.norm.weight")})), 1u);
  EXPECT_EQ(changed.weights_version(), 1u);
  EXPECT_TRUE(Tensors(changed) == tensors) << "what is read is what was given, and the rest is as it was";
  LLM loaded(kDemo, kOptions, tensors.all_but());
  const auto after = logprobs_of(changed);
  EXPECT_NE(after, before);
  EXPECT_EQ(after, logprobs_of(loaded)) << "not the bits of loading them, or a cached prefix of the old ones";
  EXPECT_EQ(changed.reload_weights(kDemo), 2u);
  EXPECT_EQ(logprobs_of(changed), before);
}

TEST(Weights, OfPoolingModelsToo) {
  PoolingModel model(kDemo, kOptions);
  Tensors tensors(model);
  const std::vector<PoolingInput> texts = {{.token_ids = kPrompts[0]}};
  const std::vector<float> before = model.pool(texts).at(0).data;
  for (float& value : tensors[kQuery]) value = -value;
  EXPECT_EQ(model.load_weights(source_of({tensors.tensor(kQuery)})), 1u);
  const std::vector<float> after = model.pool(texts).at(0).data;
  EXPECT_NE(after, before);
  PoolingModel loaded(kDemo, kOptions, {}, tensors.all_but());
  EXPECT_EQ(loaded.pool(texts).at(0).data, after);
}

TEST(Weights, ThatDoNotFitAreToldAllAtOnceAndChangeNothing) {
  LLM llm(kDemo, kOptions);
  Tensors old(llm), other(llm);
  const auto before = logprobs_of(llm);
  for (float& value : other[kKey]) value += 1.0f;
  std::vector<ExternalTensor> bad = {other.tensor(kKey), other.tensor("model.norm.weight"), other.tensor(kKey),
                                     other.tensor(kKey)};
  bad[1].shape = {255};
  bad[2].name = "model.layers.5.self_attn.k_proj.weight";
  const std::string told = refusal([&] { llm.load_weights(source_of(bad)); });
  for (const char* part : {"1 unexpected:\n  model.layers.5.self_attn.k_proj.weight",
                           "1 misshaped:\n  model.norm.weight: [255], but config.json makes it [256]",
                           "1 given twice:\n  model.layers.0.self_attn.k_proj.weight"}) {
    EXPECT_NE(told.find(part), std::string::npos) << told;
  }
  for (ExternalTensor& tensor : bad) tensor.data = nullptr;
  EXPECT_EQ(refusal([&] { llm.check_weights(bad); }), told) << "without data the same is said";
  ExternalTensor odd = other.tensor(kKey);
  odd.dtype = "int4";
  EXPECT_NE(refusal([&] { llm.load_weights(source_of({odd})); }).find("int4"), std::string::npos);
  const auto failing = [&, is_given = false](ExternalTensor& tensor) mutable {
    if (std::exchange(is_given, true)) throw std::domain_error("the trainer is gone");
    tensor = other.tensor(kKey);
    return true;
  };
  EXPECT_THROW(llm.load_weights(failing), std::domain_error) << "what the source throws comes out as it is";
  EXPECT_NE(refusal([&] { llm.read_weight("nonsense"); }).find("nonsense"), std::string::npos);
  auto few = old.all_but(kKey);
  EXPECT_NE(refusal([&] { llm.reload_weights(few); }).find("1 missing:\n  " + kKey), std::string::npos);
  EXPECT_EQ(llm.weights_version(), 0u);
  EXPECT_TRUE(Tensors(llm) == old);
  EXPECT_EQ(logprobs_of(llm), before);
}

TEST(Weights, StayWhileRequestsAreInFlight) {
  LLM llm(kDemo, kOptions);
  const Tensors tensors(llm);
  const TensorSource key = source_of({tensors.tensor(kKey)});
  const uint64_t id = llm.submit(kPrompts[0]);
  EXPECT_NE(refusal([&] { llm.load_weights(key); }).find("1 waiting"), std::string::npos);
  ASSERT_TRUE(llm.step());
  EXPECT_NE(refusal([&] { llm.load_weights(key); }).find("1 running"), std::string::npos);
  EXPECT_TRUE(llm.cancel(id));
  int num_refused = 0;
  llm.submit(kPrompts[0], {.max_tokens = 1},
             [&](const Delta&) { num_refused += refusal([&] { llm.load_weights(key); }).empty() ? 0 : 1; });
  while (llm.step()) {
  }
  EXPECT_GT(num_refused, 0);
  EXPECT_EQ(llm.weights_version(), 0u);
  EXPECT_EQ(llm.load_weights(key), 1u);
}

// Without the memory for old values: a failure midway is remembered until everything has come.
TEST(Weights, AreIncompleteAfterAFailureThatKeptNothing) {
  LLM llm(kDemo, kOptions);
  const Tensors tensors(llm);
  const auto before = logprobs_of(llm);
  ExternalTensor unknown = tensors.tensor(kKey);
  unknown.name = "nonsense";
  refusal([&] { llm.load_weights(source_of({tensors.tensor(kKey), unknown}), false); });
  EXPECT_NE(refusal([&] { llm.submit(kPrompts[0]); }).find("neither old nor new"), std::string::npos);
  llm.load_weights(source_of(tensors.all_but(kKey)), false);
  EXPECT_NE(refusal([&] { llm.submit(kPrompts[0]); }).find("neither old nor new"), std::string::npos);
  llm.load_weights(source_of({tensors.tensor(kKey)}), false);
  EXPECT_EQ(logprobs_of(llm), before);
}

// Queries have as many rows as keys and values together: given twice, they must not stand for those.
TEST(Weights, OfWhichAPartComesTwiceAreNotWhole) {
  LLM llm(kDemo, kOptions);
  const Tensors tensors(llm);
  const auto before = logprobs_of(llm);
  const std::string value = "model.layers.0.self_attn.v_proj.weight";
  ASSERT_EQ(tensors.tensor(kQuery).shape[0], tensors.tensor(kKey).shape[0] + tensors.tensor(value).shape[0]);
  llm.sleep(2);
  llm.wake_up();
  std::vector<ExternalTensor> others;
  for (const ExternalTensor& tensor : tensors.all_but()) {
    if (tensor.name != kQuery && tensor.name != kKey && tensor.name != value) others.push_back(tensor);
  }
  for (int i = 0; i < 2; ++i) llm.load_weights(source_of({tensors.tensor(kQuery)}));
  llm.load_weights(source_of(others));
  EXPECT_NE(refusal([&] { llm.submit(kPrompts[0]); }).find("not all of them were loaded since"), std::string::npos);
  llm.load_weights(source_of({tensors.tensor(value)}));
  EXPECT_NE(refusal([&] { llm.submit(kPrompts[0]); }).find("not all of them were loaded since"), std::string::npos);
  llm.load_weights(source_of({tensors.tensor(kKey)}));
  EXPECT_EQ(logprobs_of(llm), before);
}

}  // namespace
}  // namespace quire
