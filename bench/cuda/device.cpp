#include "cuda/device.h"

#include <algorithm>

namespace quire::bench {

void Device::begin_case() {
  fill_uniform_bf16(arena_, used_bytes_);
  used_bytes_ = 0;
}

void* Device::take(size_t bytes) {
  const size_t size = (bytes + 255) / 256 * 256;
  if (size > arena_bytes_ - used_bytes_) throw ArenaIsFull{used_bytes_ + size};
  void* const p = arena_ + used_bytes_;
  used_bytes_ += size;
  return p;
}

Timing summarise(std::vector<double> samples, int num_launches, const char* method) {
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2],      samples.front(), samples.back(), num_launches,
          static_cast<int>(samples.size()), method};
}

}  // namespace quire::bench
