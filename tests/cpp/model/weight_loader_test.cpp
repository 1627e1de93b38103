// Loading: every element of a checkpoint arrives where the ArchSpec says, and what does not fit is told all at once.
#include "model/weight_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "base/check.h"
#include "base/log.h"
#include "model/arch_registry.h"
#include "model/late_device.h"
#include "model/plain_kernels.h"
#include "model/weights.h"

namespace quire {
namespace {

using test::at;
using test::LateDevice;
using test::plain_kernels;
using test::Prefer;
using test::TableDevice;
using test::tiny_gpt2;
using test::tiny_llama;

// Tensors with distinct values: element i of tensor t is t + i / 1024, exact in float32 and float64.
class Source {
 public:
  void add(const std::string& name, std::vector<int64_t> shape, DType dtype = DType::f32) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<std::byte>& data = data_.emplace_back(static_cast<size_t>(count) * dtype_bytes(dtype) + 1);
    for (int64_t i = 0; i < count; ++i) {
      const float value = value_of(tensors_.size(), i);
      if (dtype == DType::f64) {
        reinterpret_cast<double*>(data.data())[i] = value;
      } else {
        test::set_element(data.data(), dtype, i, value);
      }
    }
    tensors_.push_back({name, dtype, std::move(shape), data.data()});
  }
  static float value_of(size_t tensor, int64_t index) {
    return static_cast<float>(tensor) + static_cast<float>(index) / 1024.0f;
  }
  float value(const std::string& name, int64_t index) const {
    const auto found = std::ranges::find(tensors_, name, &CheckpointTensor::name);
    return value_of(static_cast<size_t>(found - tensors_.begin()), index);
  }
  CheckpointTensor& find(const std::string& name) {
    return *std::ranges::find(tensors_, name, &CheckpointTensor::name);
  }
  std::vector<CheckpointTensor>& tensors() { return tensors_; }

 private:
  std::deque<std::vector<std::byte>> data_;
  std::vector<CheckpointTensor> tensors_;
};

Source llama_source(DType dtype = DType::f32) {
  Source source;
  source.add("model.embed_tokens.weight", {11, 6}, dtype);
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    const std::string prefix = layer;
    source.add(prefix + "self_attn.v_proj.weight", {4, 6}, dtype);
    source.add(prefix + "self_attn.q_proj.weight", {12, 6}, dtype);
    source.add(prefix + "self_attn.k_proj.weight", {4, 6}, dtype);
    source.add(prefix + "self_attn.o_proj.weight", {6, 12}, dtype);
    source.add(prefix + "mlp.up_proj.weight", {5, 6}, dtype);
    source.add(prefix + "mlp.gate_proj.weight", {5, 6}, dtype);
    source.add(prefix + "mlp.down_proj.weight", {6, 5}, dtype);
    source.add(prefix + "input_layernorm.weight", {6}, dtype);
    source.add(prefix + "post_attention_layernorm.weight", {6}, dtype);
    source.add(prefix + "self_attn.rotary_emb.inv_freq", {2});
  }
  source.add("model.norm.weight", {6}, dtype);
  source.add("lm_head.weight", {11, 6}, dtype);
  return source;
}

struct Loaded {
  ArchSpec arch;
  std::vector<std::byte> region;
  Weights weights;
};

Loaded place(const Json& config, DType dtype = DType::f32) {
  Loaded loaded{.arch = arch_registry().build(config), .region = {}, .weights = {}};
  const size_t num_bytes = place_weights(loaded.arch, dtype, plain_kernels(), nullptr, loaded.weights);
  loaded.region.resize(num_bytes + 64);
  auto* base = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(loaded.region.data()) + 63) / 64 * 64);
  EXPECT_EQ(place_weights(loaded.arch, dtype, plain_kernels(), base, loaded.weights), num_bytes);
  return loaded;
}

void load_into(Loaded& loaded, Source& source) {
  TableDevice device(plain_kernels());
  load_weights(loaded.arch, *checkpoint_in_memory(source.tensors()), device, loaded.weights);
}

// The bytes of the weights on an asynchronous device whose slots hold less than a tensor.
std::vector<std::byte> load_late(const Loaded& loaded, Source& source, DType dtype, const StagingOptions& staging) {
  LateDevice device(Prefer::random, &plain_kernels());
  Weights weights;
  const size_t num_bytes = place_weights(loaded.arch, dtype, plain_kernels(), nullptr, weights);
  const auto region = device.allocate(RegionTag::weights, num_bytes);
  place_weights(loaded.arch, dtype, plain_kernels(), region->data(), weights);
  load_weights(loaded.arch, *checkpoint_in_memory(source.tensors()), device, weights, {.staging = staging});
  EXPECT_EQ(device.region_bytes(), num_bytes) << "staging memory is given back";
  EXPECT_EQ(device.host_bytes(), 0u);
  std::vector<std::byte> bytes(num_bytes);
  device.copy_to_host(bytes.data(), region->data(), num_bytes);
  return bytes;
}

// What tests look at comes from the host; every other way of loading must bring the same bits.
Loaded load(const Json& config, Source& source, DType dtype = DType::f32) {
  Loaded loaded = place(config, dtype);
  load_into(loaded, source);
  const auto* base = static_cast<const std::byte*>(loaded.weights.embedding.data);  // the first slot
  for (const StagingOptions& staging :
       {StagingOptions{}, {.slot_bytes = 1, .num_slots = 1}, {.slot_bytes = 100, .num_slots = 3, .num_threads = 2}}) {
    const std::vector<std::byte> late = load_late(loaded, source, dtype, staging);
    EXPECT_TRUE(std::equal(late.begin(), late.end(), base)) << "slots of " << staging.slot_bytes << " bytes";
  }
  return loaded;
}

std::string load_error(const Json& config, Source& source) {
  try {
    load(config, source);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

void expect_rows(const PackedWeight& weight, int64_t row_begin, int64_t rows, const Source& source,
                 const std::string& name, int64_t source_row = 0) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      ASSERT_EQ(at(weight, row_begin + r, c), source.value(name, (source_row + r) * weight.cols + c))
          << name << " row " << r << " column " << c;
    }
  }
}

TEST(PlaceWeights, SlotsAreAlignedAndDoNotOverlap) {
  Json config = tiny_llama();
  config["attention_bias"] = config["mlp_bias"] = true;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Loaded loaded = place(config, dtype);
    std::vector<std::pair<uintptr_t, size_t>> spans;
    const auto matrix = [&](const PackedWeight& w) {
      EXPECT_EQ(w.dtype, dtype);
      spans.emplace_back(reinterpret_cast<uintptr_t>(w.data),
                         static_cast<size_t>(w.rows * w.cols) * dtype_bytes(dtype));
    };
    const auto vector = [&](const float* values, size_t size) {
      spans.emplace_back(reinterpret_cast<uintptr_t>(values), size * sizeof(float));
    };
    const Weights& w = loaded.weights;
    matrix(w.embedding);
    matrix(w.head);
    vector(w.final_norm, 6);
    for (const LayerWeights& layer : w.layers) {
      for (const PackedWeight* each : {&layer.qkv, &layer.o, &layer.up, &layer.down}) matrix(*each);
      vector(layer.attn_norm, 6);
      vector(layer.ffn_norm, 6);
      vector(layer.qkv_bias, 20);
      vector(layer.o_bias, 6);
      vector(layer.up_bias, 10);
      vector(layer.down_bias, 6);
      EXPECT_EQ(layer.q_norm, nullptr);
      EXPECT_EQ(layer.attn_norm_bias, nullptr);
      EXPECT_TRUE(layer.up.gated);
    }
    std::ranges::sort(spans);
    for (size_t i = 0; i < spans.size(); ++i) {
      EXPECT_EQ(spans[i].first % 64, 0u);
      if (i > 0) {
        EXPECT_LE(spans[i - 1].first + spans[i - 1].second, spans[i].first);
      }
    }
    EXPECT_LE(spans.back().first + spans.back().second,
              reinterpret_cast<uintptr_t>(loaded.region.data() + loaded.region.size()));
  }
}

TEST(PlaceWeights, CountsParameters) {
  Json config = tiny_llama();
  const int64_t layer = 20 * 6 + 6 * 12 + 10 * 6 + 6 * 5 + 2 * 6;
  EXPECT_EQ(num_parameters(arch_registry().build(config)), 2 * 11 * 6 + 2 * layer + 6);
  config["tie_word_embeddings"] = true;
  EXPECT_EQ(num_parameters(arch_registry().build(config)), 11 * 6 + 2 * layer + 6);
}

TEST(LoadWeights, EveryElementArrives) {
  Source source = llama_source();
  const Loaded loaded = load(tiny_llama(), source);
  const Weights& w = loaded.weights;
  expect_rows(w.embedding, 0, 11, source, "model.embed_tokens.weight");
  expect_rows(w.head, 0, 11, source, "lm_head.weight");
  for (size_t i = 0; i < 2; ++i) {
    const std::string prefix = str_cat("model.layers.", i, ".");
    const LayerWeights& layer = w.layers[i];
    expect_rows(layer.qkv, 0, 12, source, prefix + "self_attn.q_proj.weight");
    expect_rows(layer.qkv, 12, 4, source, prefix + "self_attn.k_proj.weight");
    expect_rows(layer.qkv, 16, 4, source, prefix + "self_attn.v_proj.weight");
    expect_rows(layer.o, 0, 6, source, prefix + "self_attn.o_proj.weight");
    expect_rows(layer.up, 0, 5, source, prefix + "mlp.gate_proj.weight");
    expect_rows(layer.up, 5, 5, source, prefix + "mlp.up_proj.weight");
    expect_rows(layer.down, 0, 6, source, prefix + "mlp.down_proj.weight");
    for (int64_t c = 0; c < 6; ++c) {
      EXPECT_EQ(layer.attn_norm[c], source.value(prefix + "input_layernorm.weight", c));
      EXPECT_EQ(layer.ffn_norm[c], source.value(prefix + "post_attention_layernorm.weight", c));
    }
  }
  for (int64_t c = 0; c < 6; ++c) EXPECT_EQ(w.final_norm[c], source.value("model.norm.weight", c));
}

TEST(LoadWeights, AnyFloatDtypeAndUnalignedData) {
  Source wide = llama_source(DType::f64);
  expect_rows(load(tiny_llama(), wide).weights.layers[1].qkv, 12, 4, wide, "model.layers.1.self_attn.k_proj.weight");
  for (const DType dtype : {DType::f16, DType::bf16}) {
    Source source = llama_source(dtype);
    const Loaded loaded = load(tiny_llama(), source, DType::f32);
    const auto rounded = [&](const std::string& name, int64_t i) {
      uint16_t bits = 0;
      test::set_element(&bits, dtype, 0, source.value(name, i));
      return test::element(&bits, dtype, 0);
    };
    EXPECT_EQ(at(loaded.weights.layers[0].down, 5, 4), rounded("model.layers.0.mlp.down_proj.weight", 29));
    EXPECT_EQ(loaded.weights.final_norm[5], rounded("model.norm.weight", 5));
  }
  Source shifted = llama_source();
  CheckpointTensor& tensor = shifted.find("model.layers.0.mlp.down_proj.weight");
  std::vector<std::byte> odd(30 * sizeof(float) + 1);
  std::memcpy(odd.data() + 1, tensor.data, 30 * sizeof(float));
  tensor.data = odd.data() + 1;
  expect_rows(load(tiny_llama(), shifted).weights.layers[0].down, 0, 6, shifted, tensor.name);
}

TEST(LoadWeights, TransposedAndFusedSources) {
  Source source;
  source.add("wte.weight", {11, 6});  // as the original GPT-2, without "transformer."
  source.add("wpe.weight", {9, 6});
  for (const std::string prefix : {"h.0.", "h.1."}) {
    for (const char* norm : {"ln_1", "ln_2"}) {
      source.add(prefix + norm + ".weight", {6});
      source.add(prefix + norm + ".bias", {6});
    }
    source.add(prefix + "attn.bias", {1, 1, 9, 9});  // a causal mask
    source.add(prefix + "attn.c_attn.weight", {6, 18});
    source.add(prefix + "attn.c_attn.bias", {18});
    source.add(prefix + "attn.c_proj.weight", {6, 6});
    source.add(prefix + "attn.c_proj.bias", {6});
    source.add(prefix + "mlp.c_fc.weight", {6, 5});
    source.add(prefix + "mlp.c_fc.bias", {5});
    source.add(prefix + "mlp.c_proj.weight", {5, 6});
    source.add(prefix + "mlp.c_proj.bias", {6});
  }
  source.add("ln_f.weight", {6});
  source.add("ln_f.bias", {6});
  const Loaded loaded = load(tiny_gpt2(), source);
  const LayerWeights& layer = loaded.weights.layers[1];
  for (int64_t row = 0; row < 18; ++row) {
    EXPECT_EQ(layer.qkv_bias[row], source.value("h.1.attn.c_attn.bias", row));
    for (int64_t col = 0; col < 6; ++col) {
      EXPECT_EQ(at(layer.qkv, row, col), source.value("h.1.attn.c_attn.weight", col * 18 + row));
    }
  }
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t col = 0; col < 6; ++col) {
      EXPECT_EQ(at(layer.up, row, col), source.value("h.1.mlp.c_fc.weight", col * 5 + row));
      EXPECT_EQ(at(layer.down, col, row), source.value("h.1.mlp.c_proj.weight", row * 6 + col));
    }
  }
  expect_rows(loaded.weights.position_embedding, 0, 9, source, "wpe.weight");
  EXPECT_EQ(loaded.weights.head.data, loaded.weights.embedding.data);
}

TEST(LoadWeights, FusedProjectionsOfPhi3) {
  Json config = tiny_llama();
  config["architectures"] = {"Phi3ForCausalLM"};
  Source split = llama_source(), phi3;
  for (const CheckpointTensor& tensor : split.tensors()) {
    const bool fused =
        std::ranges::any_of(std::vector<std::string>{"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
                            [&](const std::string& part) { return tensor.name.find(part) != std::string::npos; });
    if (!fused) phi3.add(tensor.name, tensor.shape);
  }
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    phi3.add(layer + "self_attn.qkv_proj.weight", {20, 6});
    phi3.add(layer + "mlp.gate_up_proj.weight", {10, 6});
  }
  const Loaded loaded = load(config, phi3);
  expect_rows(loaded.weights.layers[1].qkv, 0, 20, phi3, "model.layers.1.self_attn.qkv_proj.weight");
  expect_rows(loaded.weights.layers[1].up, 0, 10, phi3, "model.layers.1.mlp.gate_up_proj.weight");
}

TEST(LoadWeights, BiasesOfTheFusedMatrices) {
  Json config = tiny_llama();
  config["attention_bias"] = config["mlp_bias"] = true;
  Source source = llama_source();
  const std::vector<std::pair<std::string, int64_t>> biases = {
      {"self_attn.q_proj.bias", 12}, {"self_attn.k_proj.bias", 4}, {"self_attn.v_proj.bias", 4},
      {"self_attn.o_proj.bias", 6},  {"mlp.gate_proj.bias", 5},    {"mlp.up_proj.bias", 5},
      {"mlp.down_proj.bias", 6}};
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (const auto& [name, size] : biases) source.add(layer + name, {size});
  }
  const Loaded loaded = load(config, source);
  const LayerWeights& layer = loaded.weights.layers[1];
  const std::string prefix = "model.layers.1.";
  EXPECT_EQ(layer.qkv_bias[11], source.value(prefix + "self_attn.q_proj.bias", 11));
  EXPECT_EQ(layer.qkv_bias[12], source.value(prefix + "self_attn.k_proj.bias", 0));
  EXPECT_EQ(layer.qkv_bias[19], source.value(prefix + "self_attn.v_proj.bias", 3));
  EXPECT_EQ(layer.o_bias[5], source.value(prefix + "self_attn.o_proj.bias", 5));
  EXPECT_EQ(layer.up_bias[4], source.value(prefix + "mlp.gate_proj.bias", 4));
  EXPECT_EQ(layer.up_bias[5], source.value(prefix + "mlp.up_proj.bias", 0));
  EXPECT_EQ(layer.down_bias[0], source.value(prefix + "mlp.down_proj.bias", 0));
}

TEST(LoadWeights, NormsStoredMinusOne) {
  Json config = tiny_llama();
  config["architectures"] = {"Gemma2ForCausalLM"};
  Source source = llama_source();
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    source.add(layer + "pre_feedforward_layernorm.weight", {6});
    source.add(layer + "post_feedforward_layernorm.weight", {6});
  }
  source.find("lm_head.weight").data = source.find("model.embed_tokens.weight").data;  // Gemma ties them
  const Loaded loaded = load(config, source);
  const LayerWeights& layer = loaded.weights.layers[0];
  const std::string prefix = "model.layers.0.";
  EXPECT_EQ(layer.attn_norm[1], 1.0f + source.value(prefix + "input_layernorm.weight", 1));
  EXPECT_EQ(layer.attn_post_norm[1], 1.0f + source.value(prefix + "post_attention_layernorm.weight", 1));
  EXPECT_EQ(layer.ffn_norm[1], 1.0f + source.value(prefix + "pre_feedforward_layernorm.weight", 1));
  EXPECT_EQ(layer.ffn_post_norm[1], 1.0f + source.value(prefix + "post_feedforward_layernorm.weight", 1));
  EXPECT_EQ(loaded.weights.final_norm[1], 1.0f + source.value("model.norm.weight", 1));
}

TEST(LoadWeights, TiedHead) {
  Json config = tiny_llama();
  config["tie_word_embeddings"] = true;
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, const std::string& message) { warnings.push_back(message); });
  Source both = llama_source();  // the two differ: the head is not used, and that is said
  Loaded loaded = place(config);
  load_into(loaded, both);
  expect_rows(loaded.weights.head, 0, 11, both, "model.embed_tokens.weight");
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("lm_head.weight that differs from model.embed_tokens.weight"), std::string::npos);
  Source equal = llama_source();
  equal.find("lm_head.weight").data = equal.find("model.embed_tokens.weight").data;
  load(config, equal);
  EXPECT_EQ(warnings.size(), 1u);
  set_log_sink({});

  Source head_only = llama_source();
  head_only.find("model.embed_tokens.weight").name = "model.rotary_emb.inv_freq";
  expect_rows(load(config, head_only).weights.embedding, 0, 11, head_only, "lm_head.weight");

  Source neither = llama_source();
  neither.tensors().pop_back();
  load(config, neither);
  EXPECT_EQ(load_error(tiny_llama(), neither),
            "the checkpoint does not fit its config.json (LlamaForCausalLM):\n1 missing:\n  lm_head.weight");
}

TEST(LoadWeights, AllMisfitsInOneMessage) {
  Source source = llama_source();
  source.tensors().erase(source.tensors().begin() + 3);  // layer 0: k_proj
  source.find("model.layers.1.mlp.down_proj.weight").name = "model.layers.2.mlp.down_proj.weight";
  source.find("model.norm.weight").shape = {3, 2};
  source.find("model.layers.1.self_attn.o_proj.weight").shape = {12, 6};
  source.find("lm_head.weight").dtype = DType::i32;
  source.add("extra.weight", {1});
  EXPECT_EQ(load_error(tiny_llama(), source),
            "the checkpoint does not fit its config.json (LlamaForCausalLM):\n"
            "2 missing:\n  model.layers.0.self_attn.k_proj.weight\n  model.layers.1.mlp.down_proj.weight\n"
            "2 unexpected:\n  extra.weight\n  model.layers.2.mlp.down_proj.weight\n"
            "3 misshaped:\n  lm_head.weight: int32 is no float dtype\n"
            "  model.layers.1.self_attn.o_proj.weight: [12, 6], but config.json makes it [6, 12]\n"
            "  model.norm.weight: [3, 2], but config.json makes it [6]");
}

TEST(LoadWeights, NothingIsPackedBeforeEverythingFits) {
  Source source = llama_source();
  source.tensors().pop_back();
  Loaded loaded = place(tiny_llama());
  std::ranges::fill(loaded.region, std::byte{0x5a});
  EXPECT_THROW(load_into(loaded, source), InvalidArgument);
  EXPECT_TRUE(std::ranges::all_of(loaded.region, [](std::byte b) { return b == std::byte{0x5a}; }));
}

TEST(LoadWeights, ASpecWithoutARuleForASlotIsABug) {
  Source source = llama_source();
  Loaded loaded = place(tiny_llama());
  loaded.arch.weights.rules.pop_back();  // post_attention_layernorm
  loaded.arch.weights.ignored.push_back("model.layers.{i}.post_attention_layernorm.weight");
  EXPECT_THROW(load_into(loaded, source), InternalError);
}

TEST(DummyWeights, UniformAndTheSameForEveryDtype) {
  const Loaded wide = place(tiny_llama()), narrow = place(tiny_llama(), DType::bf16);
  Weights wide_weights = wide.weights, narrow_weights = narrow.weights;
  TableDevice device(plain_kernels());
  load_dummy_weights(wide.arch, device, wide_weights);
  load_dummy_weights(narrow.arch, device, narrow_weights);
  const PackedWeight &a = wide_weights.layers[1].up, &b = narrow_weights.layers[1].up;
  std::vector<float> values;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) {
      values.push_back(at(a, r, c));
      EXPECT_EQ(at(b, r, c), bf16_to_float(float_to_bf16(at(a, r, c))));
    }
  }
  const auto [low, high] = std::ranges::minmax(values);
  EXPECT_GE(low, -1e-3f);
  EXPECT_LE(high, 1e-3f);
  EXPECT_LT(low, -8e-4f);
  EXPECT_GT(high, 8e-4f);
  std::ranges::sort(values);
  EXPECT_EQ(std::ranges::adjacent_find(values), values.end());
  EXPECT_NE(at(a, 0, 0), at(wide_weights.layers[0].up, 0, 0));
  EXPECT_LE(std::abs(wide_weights.final_norm[3]), 1e-3f);
}

}  // namespace
}  // namespace quire
