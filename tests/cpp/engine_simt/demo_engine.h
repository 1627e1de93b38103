// Engines of the embedded model on the emulated device, and what requests to them give.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "device/cuda/cuda_device.h"
#include "engine/engine.h"

namespace quire {

inline const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

struct Wish {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

struct Generated {
  std::vector<std::vector<int32_t>> token_ids;  // of each sequence
  std::vector<std::vector<float>> logprobs;     // of the tokens
  std::vector<float> prompt_logprobs;
  std::vector<int32_t> prompt_ids, prompt_ranks;
  FinishReason reason = FinishReason::none;
  std::string error;
  bool operator==(const Generated&) const = default;
};

// How GoogleTest shows one.
inline void PrintTo(const Generated& generated, std::ostream* out) {
  *out << "finish reason " << static_cast<int>(generated.reason) << " \"" << generated.error << "\"";
  for (size_t i = 0; i < generated.token_ids.size(); ++i) {
    *out << " [" << testing::PrintToString(generated.token_ids[i]) << " "
         << testing::PrintToString(generated.logprobs[i]) << "]";
  }
}

inline std::unique_ptr<Device> device_of(const std::string& name) {
  return name == "cpu" ? make_host_device({.num_threads = 2}) : make_cuda_device(0);
}

// A draft model, where the options name one, is the embedded model again.
inline std::unique_ptr<Engine> make_engine(const EngineOptions& options) {
  std::unique_ptr<Device> device = device_of(options.device);
  EngineConfig config = resolve_engine_config(kDemo, options, *device);
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  return std::make_unique<Engine>(std::move(config), std::move(device), checkpoint.get(), checkpoint.get());
}

// All wishes together.
inline std::vector<Generated> generate(Engine& engine, const std::vector<Wish>& wishes) {
  std::vector<Generated> all(wishes.size());
  for (size_t i = 0; i < wishes.size(); ++i) {
    const auto keep = [&all, i](const Delta& delta) {
      if (delta.finished == nullptr) return;
      all[i].reason = delta.finish_reason;
      all[i].error = delta.finished->error;
      all[i].prompt_logprobs = delta.finished->prompt_logprobs.logprobs;
      all[i].prompt_ids = delta.finished->prompt_logprobs.token_ids;
      all[i].prompt_ranks = delta.finished->prompt_logprobs.sampled_ranks;
      for (const Completion& completion : delta.finished->completions) {
        all[i].token_ids.push_back(completion.token_ids);
        all[i].logprobs.push_back(completion.logprobs.logprobs);
      }
    };
    engine.submit(wishes[i].prompt, wishes[i].params, keep, Notify::finished);
  }
  while (engine.step()) {
  }
  return all;
}

inline std::vector<int32_t> story_prompt(int32_t length, int32_t salt = 0) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + (i * 37 + salt * 101) % 1500);
  return ids;
}

}  // namespace quire
