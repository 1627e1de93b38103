// A benchmark case: its name and shape for the record, and how to make its inputs and launch it.
#pragma once

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace quire::bench {

struct Work {
  double bytes = 0;  // read and written once by a launch
  double flops = 0;
  int copies = 1;
  std::function<void(int copy)> launch;
};

struct BenchCase {
  std::string name;  // family/..., unique
  nlohmann::json shape;
  std::function<Work(Device&)> make;
};

// So many inputs that one after the other comes from memory: at least three times the cache, as the layers of a model.
inline int copies_beyond_cache(const Device& device, double bytes) {
  const double wanted = 3.0 * static_cast<double>(device.machine().cache_bytes);
  return static_cast<int>(std::clamp(wanted / std::max(bytes, 1.0) + 1.0, 1.0, 320.0));
}

// Toy: shapes that the emulation runs in a moment, one of each kind.
void add_attention_cases(bool is_toy, std::vector<BenchCase>& cases);
void add_sampling_cases(bool is_toy, std::vector<BenchCase>& cases);
void add_gemm_cases(bool is_toy, std::vector<BenchCase>& cases);
void add_layer_cases(bool is_toy, std::vector<BenchCase>& cases);

}  // namespace quire::bench
