// Engines of several ranks on emulated devices, and what is the same with any number of them.
#pragma once

#include <filesystem>
#include <utility>

#include "engine_simt/demo_engine.h"

namespace quire {

using Devices = std::vector<std::unique_ptr<Device>>;

// One a rank; several may be of one emulated GPU.
inline Devices devices_of(const std::vector<int>& indices) {
  Devices devices;
  for (const int index : indices) devices.push_back(make_cuda_device(index));
  return devices;
}

inline std::unique_ptr<Engine> engine_of_ranks(const std::filesystem::path& folder, EngineOptions options,
                                               const std::vector<int>& indices, const Checkpoint* checkpoint,
                                               const Checkpoint* draft_checkpoint = nullptr) {
  options.device = "simt:";
  for (const int index : indices) options.device += str_cat(options.device.back() == ':' ? "" : ",", index);
  options.tensor_parallel_size = static_cast<int32_t>(indices.size());
  Devices devices = devices_of(indices);
  EngineConfig config = resolve_engine_config(folder, options, *devices.front());
  return std::make_unique<Engine>(std::move(config), std::move(devices), checkpoint, draft_checkpoint);
}

inline void expect_same_tokens(const std::vector<Generated>& one, const std::vector<Generated>& several,
                               float tolerance) {
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].error, several[i].error);
    EXPECT_EQ(one[i].token_ids, several[i].token_ids) << "request " << i;
    ASSERT_EQ(one[i].logprobs.size(), several[i].logprobs.size());
    for (size_t n = 0; n < one[i].logprobs.size(); ++n) {
      for (size_t j = 0; j < one[i].logprobs[n].size(); ++j) {
        EXPECT_NEAR(one[i].logprobs[n][j], several[i].logprobs[n][j], tolerance);
      }
    }
  }
}

inline EngineOptions demo_options() {
  return {.dtype = "float32", .max_model_len = 512, .max_num_seqs = 8, .max_num_batched_tokens = 320};
}

inline SamplingParams greedy(int32_t max_tokens) {
  return {.temperature = 0.0f, .ignore_eos = true, .max_tokens = max_tokens, .logprobs = 1};
}

}  // namespace quire
