// Cases of fill_dummy. The reference is written out from SplitMix64 (Steele, Lea, Flood 2014), not from our header, and
// results must have its bits: dummy weights are the same on every device.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct FillDummySpec {
  int64_t count = 1000;
  uint64_t seed = 1;
  int64_t index_begin = 0;
  float added = 0.0f;
};

class FillDummyCase : public KernelCase {
 public:
  explicit FillDummyCase(const FillDummySpec& spec) : spec_(spec), out_(DType::f32, spec.count) {
    bytes = 4.0 * static_cast<double>(spec.count);
  }

  void reset() override { out_.fill_untouched(); }

  void run(const KernelTable& table, Stream stream) override {
    table.fill_dummy({.out = out_.as<float>(),
                      .count = spec_.count,
                      .seed = spec_.seed,
                      .index_begin = spec_.index_begin,
                      .added = spec_.added},
                     stream);
  }

  std::vector<const Buffer*> outputs() const override { return {&out_}; }

  std::string check() const override {
    return compare_rows(out_, 1, spec_.count, spec_.count, 0.0, 0.0, [&](int64_t, int64_t i) {
      uint64_t x = spec_.seed + static_cast<uint64_t>(spec_.index_begin + i) + 0x9e3779b97f4a7c15ull;
      x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
      x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
      x ^= x >> 31;
      // In double nothing is rounded but where the cast says so.
      const double unit = static_cast<double>(x >> 40) / 8388608.0 - 1.0;
      const float scaled = static_cast<float>(unit * static_cast<double>(1e-3f));
      return static_cast<double>(static_cast<float>(static_cast<double>(scaled) + static_cast<double>(spec_.added)));
    });
  }

 private:
  FillDummySpec spec_;
  Buffer out_;
};

inline void add_load_cases(std::vector<CaseEntry>& cases) {
  const auto add = [&](const std::string& what, const FillDummySpec& spec, bool is_benchmark) {
    cases.push_back({"fill_dummy_" + what, is_benchmark,
                     [spec](const KernelTable&, Stream) { return std::make_unique<FillDummyCase>(spec); }});
  };
  add("one", {.count = 1}, false);
  add("odd", {.count = 1237, .seed = 0xfedcba9876543210ull}, false);
  add("one_added", {.count = 513, .seed = 7, .added = 1.0f}, false);
  add("far", {.count = 256, .seed = ~uint64_t{0}, .index_begin = (int64_t{1} << 33) + 3}, false);
  add("16m", {.count = int64_t{1} << 24}, true);
}

}  // namespace quire::cases
