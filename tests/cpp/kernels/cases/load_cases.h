// Cases of fill_dummy and unpack_weight. The first one's reference is written out from SplitMix64 (Steele, Lea, Flood
// 2014), not from our header, and results must have its bits: dummy weights are the same on every device.
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

struct UnpackSpec {
  DType dtype = DType::f32;
  int64_t rows = 1, cols = 1;  // of a gated weight: of each half
  bool gated = false;
  int64_t row_begin = 0, num_rows = 0;  // what is read; 0: to the end
};

// What was packed comes back, rounded as the weight is: elements are looked up in the source, not in the packed bytes.
class UnpackCase : public KernelCase {
 public:
  UnpackCase(const UnpackSpec& spec, const KernelTable& table, Stream stream)
      : spec_(spec),
        num_rows_(spec.num_rows > 0 ? spec.num_rows : spec.rows - spec.row_begin),
        source_(DType::f32, spec.rows * spec.cols * (spec.gated ? 2 : 1)),
        out_(DType::f32, num_rows_ * spec.cols * (spec.gated ? 2 : 1)),
        packed_(DType::u8,
                static_cast<int64_t>(table.packed_weight_bytes(total_rows(), spec.cols, spec.dtype, spec.gated))) {
    Random random(static_cast<uint64_t>(spec.rows * 1009 + spec.cols));
    source_.fill_uniform(random, 1.0);
    for (const PackPart part : parts()) {
      PackWeightParams p;
      p.source = source_.as<float>() + (part == PackPart::up ? spec.rows * spec.cols : 0);
      p.rows = spec.rows;
      p.cols = spec.cols;
      p.row_stride = spec.cols;
      p.part = part;
      p.weight = weight();
      table.pack_weight(p, stream);
    }
    bytes = static_cast<double>(packed_.count()) + static_cast<double>(out_.size_bytes());
  }

  void reset() override { out_.fill_untouched(); }

  void run(const KernelTable& table, Stream stream) override {
    float* out = out_.as<float>();
    for (const PackPart part : parts()) {
      table.unpack_weight(
          {.weight = weight(), .part = part, .row_begin = spec_.row_begin, .rows = num_rows_, .out = out}, stream);
      out += num_rows_ * spec_.cols;
    }
  }

  std::vector<const Buffer*> outputs() const override { return {&out_}; }

  std::string check() const override {
    return compare_rows(out_, num_rows_ * (spec_.gated ? 2 : 1), spec_.cols, spec_.cols, 0.0, 0.0,
                        [&](int64_t row, int64_t col) { return reference(row, col); });
  }

 private:
  int64_t total_rows() const { return spec_.gated ? 2 * spec_.rows : spec_.rows; }
  PackedWeight weight() { return {packed_.data(), spec_.dtype, spec_.gated, total_rows(), spec_.cols}; }
  std::vector<PackPart> parts() const {
    return spec_.gated ? std::vector{PackPart::gate, PackPart::up} : std::vector{PackPart::whole};
  }

  double reference(int64_t row, int64_t col) const {
    const int64_t half = row / num_rows_, source_row = half * spec_.rows + spec_.row_begin + row % num_rows_;
    const auto value = static_cast<float>(source_.get(source_row * spec_.cols + col));
    if (spec_.dtype == DType::bf16) return bf16_to_float(float_to_bf16(value));
    if (spec_.dtype == DType::f16) return f16_to_float(float_to_f16(value));
    if (spec_.dtype == DType::f32) return value;
    float largest = 0.0f;
    for (int64_t k = 0; k < spec_.cols; ++k) {
      largest = std::max(largest, std::fabs(static_cast<float>(source_.get(source_row * spec_.cols + k))));
    }
    return largest / 127.0f * std::nearbyint(value * (127.0f / largest));
  }

  UnpackSpec spec_;
  int64_t num_rows_;
  Buffer source_, out_, packed_;
};

inline void add_unpack_cases(std::vector<CaseEntry>& cases, DType dtype) {
  const auto add = [&](const std::string& what, UnpackSpec spec) {
    spec.dtype = dtype;
    cases.push_back({str_cat("unpack_", dtype_name(dtype), "_", what), false,
                     [spec](const KernelTable& t, Stream s) { return std::make_unique<UnpackCase>(spec, t, s); }});
  };
  add("one", {.rows = 1, .cols = 1});
  add("odd", {.rows = 71, .cols = 35});
  add("rows", {.rows = 130, .cols = 64, .row_begin = 33, .num_rows = 50});
  add("gated", {.rows = 43, .cols = 35, .gated = true});
  add("gated_rows", {.rows = 43, .cols = 301, .gated = true, .row_begin = 5, .num_rows = 29});
}

inline void add_load_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) add_unpack_cases(cases, dtype);
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
