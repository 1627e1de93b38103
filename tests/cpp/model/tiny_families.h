// One small model of every family, with odd sizes, and checkpoints of random numbers for it.
//
// The tensors are those that the family's rules name; that the rules are right is tested elsewhere (weight_loader_test,
// tests/python/models).
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "model/arch_registry.h"
#include "model/plain_kernels.h"
#include "model/weight_match.h"

namespace quire::test {

struct TinyFamily {
  std::string name;
  Json config;
};

// Rows and columns of no round number, several panels of every backend.
inline std::vector<TinyFamily> tiny_families() {
  const Json base = Json::parse(R"({"vocab_size": 301, "hidden_size": 70, "intermediate_size": 91,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2})");
  const auto with = [](Json config, const char* architecture, const char* changes = "{}") {
    config["architectures"] = {architecture};
    config.update(Json::parse(changes));
    return config;
  };
  const Json gpt2 = Json::parse(R"({"vocab_size": 301, "n_embd": 70, "n_head": 5, "n_layer": 3, "n_positions": 64,
    "n_inner": 91})");
  const Json opt = Json::parse(R"({"vocab_size": 301, "hidden_size": 70, "ffn_dim": 91, "num_attention_heads": 5,
    "num_hidden_layers": 3, "max_position_embeddings": 64, "word_embed_proj_dim": 33,
    "do_layer_norm_before": false, "activation_function": "relu"})");
  return {{"llama", with(base, "LlamaForCausalLM")},
          {"llama_biases_tied", with(base, "LlamaForCausalLM",
                                     R"({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})")},
          {"mistral", with(base, "MistralForCausalLM", R"({"sliding_window": 9})")},
          {"qwen2", with(base, "Qwen2ForCausalLM")},
          {"qwen3", with(base, "Qwen3ForCausalLM")},
          {"phi3", with(base, "Phi3ForCausalLM")},
          {"gemma2", with(base, "Gemma2ForCausalLM", R"({"sliding_window": 9})")},
          {"gpt2", with(gpt2, "GPT2LMHeadModel")},
          {"opt_projected", with(opt, "OPTForCausalLM")}};
}

enum class Stored : uint8_t { f32, f16, bf16, f64, unaligned_f32, unaligned_bf16 };

class RandomCheckpoint final : public Checkpoint {
 public:
  RandomCheckpoint(const ArchSpec& arch, Stored stored, uint32_t seed = 1) {
    const bool wide = stored == Stored::f64;
    const bool unaligned = stored == Stored::unaligned_f32 || stored == Stored::unaligned_bf16;
    const DType dtype = wide                                                         ? DType::f64
                        : stored == Stored::f16                                      ? DType::f16
                        : stored == Stored::bf16 || stored == Stored::unaligned_bf16 ? DType::bf16
                                                                                     : DType::f32;
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> values(-0.3f, 0.3f);
    for (const auto& [name, entry] : bind_rules(arch)) {
      const bool tied = arch.tie_word_embeddings && entry.rule->slot == Slot::lm_head;
      if (entry.rule->optional || tied) continue;
      int64_t count = 1;
      for (const int64_t size : entry.shape) count *= size;
      std::vector<std::byte>& bytes = data_.emplace_back(static_cast<size_t>(count) * dtype_bytes(dtype) + 1);
      std::byte* data = bytes.data() + (unaligned ? 1 : 0);
      for (int64_t i = 0; i < count; ++i) {
        std::byte element[sizeof(double)];
        const double value = static_cast<double>(values(random)) * (wide ? 1.000000001 : 1.0);
        if (wide) {
          std::memcpy(element, &value, sizeof(value));
        } else {
          set_element(element, dtype, 0, static_cast<float>(value));
        }
        std::memcpy(data + static_cast<size_t>(i) * dtype_bytes(dtype), element, dtype_bytes(dtype));
      }
      tensors_.push_back({name, dtype, entry.shape, data});
    }
    std::ranges::shuffle(tensors_, random);
  }
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_; }
  // Overwrites a tensor, as a file whose pages went may be: the loader must be done with it.
  void release(const CheckpointTensor& tensor) const override {
    size_t num_bytes = dtype_bytes(tensor.dtype);
    for (const int64_t size : tensor.shape) num_bytes *= static_cast<size_t>(size);
    std::memset(const_cast<void*>(tensor.data), 0xff, num_bytes);
  }

 private:
  std::deque<std::vector<std::byte>> data_;
  std::vector<CheckpointTensor> tensors_;
};

}  // namespace quire::test
