// Cases of gemm and pack_weight: all dtypes, odd sizes, every epilogue, sources in every form; shapes of real models.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct GemmSpec {
  DType dtype = DType::f32;     // of activations and, unless is_int8, of the weight
  int64_t m = 1, n = 1, k = 1;  // n counts outputs: a gated weight has 2n rows
  bool gated = false;
  bool has_bias = false;
  Activation activation = Activation::none;
  float softcap = 0.0f;
  float scale = 1.0f;
  bool rounds_output = false;  // out_dtype = dtype instead of f32
  bool accumulate = false;
  DType source_dtype = DType::f32;
  bool is_transposed = false;    // the source is [k, n]
  int64_t first_rows = 0;        // pack in two parts, the second one first
  bool is_int8 = false;          // the weight is of i8
  bool is_aligned = false;       // rows of activations start at 16 bytes, for k a multiple of 8
  bool is_as_in_a_step = false;  // rows of activations and results lie as Ops::activations has them
};

inline double activation_reference(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0.0 ? x : 0.0;
    case Activation::tanh:
      return std::tanh(x);
    case Activation::none:
      break;
  }
  return x;
}

class GemmCase : public KernelCase {
 public:
  GemmCase(const GemmSpec& spec, const KernelTable& table, Stream stream)
      : spec_(spec),
        activation_row_bytes_(table.activation_row_bytes),
        rows_(spec.gated ? 2 * spec.n : spec.n),
        a_(spec.dtype, spec.m * a_stride()),
        source_(spec.source_dtype, rows_ * (spec.k + 5) + spec.k),
        bias_(DType::f32, rows_),
        out_(spec.rounds_output ? spec.dtype : DType::f32, spec.m * out_stride()),
        packed_(DType::u8, static_cast<int64_t>(table.packed_weight_bytes(rows_, spec.k, weight_dtype(), spec.gated))),
        int8_rows_(DType::u8, spec.is_int8 ? static_cast<int64_t>(table.int8_rows_bytes(spec.m, spec.k)) : 0) {
    Random random(static_cast<uint64_t>(spec.m * 1000003 + spec.n * 1009 + spec.k));
    a_.fill_uniform(random, 1.0);
    for (int64_t r = 0; r < spec.m; ++r) {  // what lies between rows must never be read
      for (int64_t i = spec.k; i < a_stride(); ++i) a_.set(r * a_stride() + i, std::nan(""));
    }
    source_.fill_uniform(random, 4.0 / std::sqrt(static_cast<double>(spec.k)));
    bias_.fill_uniform(random, 1.0);
    pack(table, stream);
    const double elements = static_cast<double>(rows_) * static_cast<double>(spec.k);
    bytes = static_cast<double>(packed_.count()) +
            static_cast<double>(dtype_bytes(spec.dtype) * static_cast<size_t>(spec.m * spec.k)) +
            static_cast<double>(out_.size_bytes());
    flops = 2.0 * elements * static_cast<double>(spec.m);
  }

  void reset() override {
    out_.fill_untouched();
    if (!spec_.accumulate) return;
    for (int64_t r = 0; r < spec_.m; ++r) {
      for (int64_t i = 0; i < spec_.n; ++i) out_.set(r * out_stride() + i, 0.25 * static_cast<double>(i % 7));
    }
  }

  GemmParams params() {
    GemmParams p;
    p.a = a_.data();
    p.a_stride = a_stride();
    p.m = spec_.m;
    p.weight = {packed_.data(), weight_dtype(), spec_.gated, rows_, spec_.k};
    p.int8_a_dtype = spec_.dtype;
    p.int8_rows = spec_.is_int8 ? int8_rows_.data() : nullptr;
    p.bias = spec_.has_bias ? bias_.as<float>() : nullptr;
    p.activation = spec_.activation;
    p.softcap = spec_.softcap;
    p.scale = spec_.scale;
    p.out = out_.data();
    p.out_dtype = spec_.rounds_output ? spec_.dtype : DType::f32;
    p.out_stride = out_stride();
    p.accumulate = spec_.accumulate;
    return p;
  }

  void run(const KernelTable& table, Stream stream) override { table.gemm(params(), stream); }

  std::vector<const Buffer*> outputs() const override { return {&out_}; }

  std::string check() const override {
    if (!packed_.guards_hold()) return "pack_weight wrote outside of the weight";
    if (!int8_rows_.guards_hold()) return "gemm wrote outside of its rows of int8";
    if (spec_.is_int8 && rounded_a_.empty()) round_operands();
    const double relative = 1e-5 + (spec_.rounds_output ? rounding_of(spec_.dtype) : 0.0);
    return compare_rows(out_, spec_.m, spec_.n, out_stride(), 3e-5, relative,
                        [this](int64_t row, int64_t column) { return reference(row, column); });
  }

 private:
  int64_t a_stride() const {
    return spec_.is_as_in_a_step ? step_stride(spec_.k, spec_.dtype) : spec_.k + (spec_.is_aligned ? 8 : 3);
  }
  int64_t out_stride() const {
    return spec_.is_as_in_a_step ? step_stride(spec_.n, spec_.rounds_output ? spec_.dtype : DType::f32) : spec_.n + 2;
  }
  int64_t step_stride(int64_t columns, DType dtype) const {
    const auto element_bytes = static_cast<int64_t>(dtype_bytes(dtype));
    const int64_t row_bytes = columns * element_bytes;
    return (activation_row_bytes_ != nullptr ? activation_row_bytes_(row_bytes) : row_bytes) / element_bytes;
  }

  int64_t source_index(int64_t row, int64_t k) const {
    return spec_.is_transposed ? k * (rows_ + 1) + row : row * (spec_.k + 5) + k;
  }

  void pack_part(const KernelTable& table, Stream stream, PackPart part, int64_t begin, int64_t end) {
    PackWeightParams p;
    const int64_t source_row = begin + (part == PackPart::up ? spec_.n : 0);
    p.source = static_cast<const uint8_t*>(source_.data()) +
               static_cast<size_t>(source_index(source_row, 0)) * dtype_bytes(spec_.source_dtype);
    p.source_dtype = spec_.source_dtype;
    p.rows = end - begin;
    p.cols = spec_.k;
    p.row_stride = spec_.is_transposed ? 1 : spec_.k + 5;
    p.col_stride = spec_.is_transposed ? rows_ + 1 : 1;
    p.part = part;
    p.row_begin = begin;
    p.weight = {packed_.data(), weight_dtype(), spec_.gated, rows_, spec_.k};
    table.pack_weight(p, stream);
  }

  void pack(const KernelTable& table, Stream stream) {
    for (const PackPart part : {PackPart::up, PackPart::gate, PackPart::whole}) {
      if ((part == PackPart::whole) == spec_.gated) continue;
      pack_part(table, stream, part, spec_.first_rows, spec_.n);
      if (spec_.first_rows > 0) pack_part(table, stream, part, 0, spec_.first_rows);
    }
  }

  double weight_at(int64_t row, int64_t k) const {
    const auto value = static_cast<float>(source_.get(source_index(row, k)));
    if (spec_.dtype == DType::bf16) return bf16_to_float(float_to_bf16(value));
    return spec_.dtype == DType::f16 ? f16_to_float(float_to_f16(value)) : value;
  }

  DType weight_dtype() const { return spec_.is_int8 ? DType::i8 : spec_.dtype; }

  // What the bytes of a run stand for (params/gemm.h), appended to `out`.
  static void round_run(const std::vector<float>& values, std::vector<double>& out) {
    float largest = 0.0f;
    for (const float x : values) largest = std::max(largest, std::abs(x));
    const float scale = largest / 127.0f, inverse = 127.0f / largest;
    for (const float x : values) out.push_back(largest > 0.0f ? double{scale} * std::nearbyintf(x * inverse) : 0.0);
  }

  void round_operands() const {
    for (int64_t r = 0; r < spec_.m; ++r) {
      for (int64_t begin = 0; begin < spec_.k; begin += kInt8Run) {
        std::vector<float> run;
        for (int64_t k = begin; k < std::min(spec_.k, begin + kInt8Run); ++k) {
          run.push_back(static_cast<float>(a_.get(r * a_stride() + k)));
        }
        round_run(run, rounded_a_);
      }
    }
    for (int64_t r = 0; r < rows_; ++r) {
      std::vector<float> row;
      for (int64_t k = 0; k < spec_.k; ++k) row.push_back(static_cast<float>(source_.get(source_index(r, k))));
      round_run(row, rounded_weight_);
    }
  }

  double product(int64_t row, int64_t column, int64_t k) const {
    if (!spec_.is_int8) return a_.get(row * a_stride() + k) * weight_at(column, k);
    return rounded_a_[static_cast<size_t>(row * spec_.k + k)] *
           rounded_weight_[static_cast<size_t>(column * spec_.k + k)];
  }

  double linear(int64_t row, int64_t column) const {
    double sum = 0.0;
    for (int64_t k = 0; k < spec_.k; ++k) sum += product(row, column, k);
    return sum * spec_.scale + (spec_.has_bias ? bias_.get(column) : 0.0);
  }

  double reference(int64_t row, int64_t column) const {
    double x = activation_reference(spec_.activation, linear(row, column));
    if (spec_.gated) x *= linear(row, spec_.n + column);
    if (spec_.softcap > 0.0f) x = spec_.softcap * std::tanh(x / spec_.softcap);
    return spec_.accumulate ? 0.25 * static_cast<double>(column % 7) + x : x;
  }

  GemmSpec spec_;
  int64_t (*activation_row_bytes_)(int64_t row_bytes);
  int64_t rows_;
  Buffer a_, source_, bias_, out_, packed_, int8_rows_;
  mutable std::vector<double> rounded_a_, rounded_weight_;  // of is_int8, made by the first check
};

inline std::string gemm_name(const GemmSpec& s) {
  static const char* const kActivations[] = {"", "_silu", "_gelu", "_gelu_tanh", "_relu"};
  return str_cat("gemm_", s.is_int8 ? "int8_" : "", dtype_name(s.dtype), "_m", s.m, "_n", s.n, "_k", s.k,
                 s.gated ? "_gated" : "", s.has_bias ? "_bias" : "", kActivations[static_cast<int>(s.activation)],
                 s.softcap > 0 ? "_softcap" : "", s.scale != 1.0f ? "_scale" : "", s.rounds_output ? "_rounded" : "",
                 s.accumulate ? "_add" : "", s.is_transposed ? "_transposed" : "", s.first_rows > 0 ? "_parts" : "",
                 s.is_aligned ? "_aligned" : "", "_from_", dtype_name(s.source_dtype));
}

inline void add_gemm(std::vector<CaseEntry>& cases, const GemmSpec& spec, bool is_benchmark = false) {
  cases.push_back({gemm_name(spec), is_benchmark, [spec](const KernelTable& table, Stream stream) {
                     return std::make_unique<GemmCase>(spec, table, stream);
                   }});
}

// Sizes around tiles of 128 x 128, with activations that such tiles can copy.
inline void add_large_gemm_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    add_gemm(cases, {.dtype = dtype, .m = 70, .n = 300, .k = 40, .has_bias = true, .is_aligned = true});
    add_gemm(cases, {.dtype = dtype,
                     .m = 129,
                     .n = 257,
                     .k = 72,
                     .activation = Activation::gelu,
                     .scale = 0.5f,
                     .rounds_output = true,
                     .is_aligned = true});
    add_gemm(cases, {.dtype = dtype,
                     .m = 128,
                     .n = 133,
                     .k = 104,
                     .gated = true,
                     .has_bias = true,
                     .activation = Activation::silu,
                     .rounds_output = true,
                     .is_aligned = true});
    add_gemm(cases,
             {.dtype = dtype, .m = 97, .n = 130, .k = 96, .gated = true, .accumulate = true, .is_aligned = true});
    add_gemm(cases, {.dtype = dtype,
                     .m = 200,
                     .n = 320,
                     .k = 200,
                     .has_bias = true,
                     .softcap = 1.5f,
                     .accumulate = true,
                     .is_aligned = true});
    add_gemm(cases, {.dtype = dtype, .m = 100, .n = 65, .k = 2080, .is_aligned = true});
  }
}

inline void add_gemm_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType source : {DType::f32, DType::f16, DType::bf16}) {
      add_gemm(cases, {.dtype = dtype, .m = 3, .n = 37, .k = 19, .source_dtype = source});
    }
    // Sizes around every tile: rows 1 to 13, 32-column panels, k pairs, the 256 elements converted at a time.
    for (int64_t m = 1; m <= 14; ++m) {
      add_gemm(cases, {.dtype = dtype, .m = m, .n = 31 + m * 9, .k = 5 + m * 7, .has_bias = m % 2 == 0});
    }
    for (const int64_t k : {1, 2, 255, 256, 257, 513}) add_gemm(cases, {.dtype = dtype, .m = 5, .n = 33, .k = k});
    add_gemm(cases, {.dtype = dtype, .m = 57, .n = 300, .k = 96, .source_dtype = DType::bf16});
    add_gemm(cases, {.dtype = dtype, .m = 130, .n = 65, .k = 1537, .source_dtype = DType::bf16, .first_rows = 40});
    add_gemm(cases, {.dtype = dtype, .m = 4, .n = 48, .k = 21, .is_transposed = true, .first_rows = 7});
    for (const bool gated : {false, true}) {
      for (const Activation activation : {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh,
                                          Activation::relu, Activation::tanh}) {
        add_gemm(cases, {.dtype = dtype, .m = 7, .n = 37, .k = 24, .gated = gated, .activation = activation});
        add_gemm(cases, {.dtype = dtype,
                         .m = 2,
                         .n = 85,
                         .k = 33,
                         .gated = gated,
                         .has_bias = true,
                         .activation = activation,
                         .scale = 0.5f,
                         .rounds_output = true,
                         .first_rows = 20});
      }
    }
    add_gemm(cases, {.dtype = dtype, .m = 3, .n = 70, .k = 40, .softcap = 1.5f, .scale = 2.0f});
    add_gemm(cases, {.dtype = dtype, .m = 15, .n = 39, .k = 40, .has_bias = true, .scale = 3.0f, .accumulate = true});
    add_gemm(cases, {.dtype = dtype, .m = 2, .n = 16, .k = 8, .gated = true, .accumulate = true});
  }
  add_large_gemm_cases(cases);
  // The layers of a 135M, a 0.5B and a 1.2B parameter model: attention output, QKV, gated MLP, down projection, head.
  for (const int64_t m : {1, 4, 16, 62, 64, 1024}) {
    for (const GemmSpec& shape :
         {GemmSpec{.n = 1536, .k = 576}, GemmSpec{.n = 576, .k = 1536}, GemmSpec{.n = 49152, .k = 576},
          GemmSpec{.n = 4864, .k = 896, .gated = true, .activation = Activation::silu}, GemmSpec{.n = 896, .k = 4864},
          GemmSpec{.n = 8192, .k = 2048, .gated = true, .activation = Activation::silu, .rounds_output = true},
          GemmSpec{.n = 2048, .k = 8192, .accumulate = true}}) {
      if (m == 1024 && shape.n == 49152) continue;  // only sampled rows reach the head
      GemmSpec spec = shape;
      spec.dtype = DType::bf16;
      spec.m = m;
      spec.source_dtype = DType::bf16;
      spec.is_as_in_a_step = true;
      add_gemm(cases, spec, true);
    }
  }
  add_gemm(cases, {.dtype = DType::f32, .m = 1024, .n = 1536, .k = 576}, true);
  add_gemm(cases, {.dtype = DType::f16, .m = 1024, .n = 1536, .k = 576}, true);
}

// Weights of i8, which some backends have.
inline void add_int8_gemm_cases(std::vector<CaseEntry>& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const auto add = [&](GemmSpec spec) {
      spec.dtype = dtype;
      spec.is_int8 = true;
      add_gemm(cases, spec);
    };
    for (const DType source : {DType::f32, DType::f16, DType::bf16}) {
      add({.m = 3, .n = 37, .k = 19, .source_dtype = source});
    }
    // Rows 1 to 13 and two tiles of 16, panels of 32 columns, steps of 64 k and runs of 128.
    for (int64_t m = 1; m <= 14; ++m) add({.m = m, .n = 31 + m * 9, .k = 5 + m * 17, .has_bias = m % 2 == 0});
    for (const int64_t m : {15, 16, 17, 31, 32, 33, 57}) add({.m = m, .n = 70, .k = 200, .rounds_output = true});
    for (const int64_t k : {1, 63, 64, 65, 127, 128, 129, 513}) add({.m = 5, .n = 33, .k = k});
    add({.m = 300, .n = 65, .k = 1537, .source_dtype = DType::bf16, .first_rows = 40});
    add({.m = 4, .n = 48, .k = 21, .is_transposed = true, .first_rows = 7});
    for (const Activation activation : {Activation::none, Activation::silu, Activation::gelu, Activation::relu}) {
      add({.m = 7, .n = 37, .k = 24, .activation = activation, .softcap = 1.5f});
      add({.m = 2,
           .n = 85,
           .k = 133,
           .gated = true,
           .has_bias = true,
           .activation = activation,
           .scale = 0.5f,
           .rounds_output = true,
           .first_rows = 20});
      add({.m = 40, .n = 50, .k = 90, .gated = true, .has_bias = true, .activation = activation});
    }
    add({.m = 15, .n = 39, .k = 40, .has_bias = true, .scale = 3.0f, .accumulate = true});
    add({.m = 2, .n = 16, .k = 8, .gated = true, .accumulate = true});
  }
  for (const int64_t m : {1, 4, 16, 64, 1024}) {
    for (const GemmSpec& shape :
         {GemmSpec{.n = 1536, .k = 576}, GemmSpec{.n = 576, .k = 1536}, GemmSpec{.n = 49152, .k = 576},
          GemmSpec{.n = 4864, .k = 896, .gated = true, .activation = Activation::silu}, GemmSpec{.n = 896, .k = 4864},
          GemmSpec{.n = 8192, .k = 2048, .gated = true, .activation = Activation::silu, .rounds_output = true},
          GemmSpec{.n = 2048, .k = 8192, .accumulate = true}}) {
      if (m == 1024 && shape.n == 49152) continue;
      GemmSpec spec = shape;
      spec.dtype = DType::bf16;
      spec.m = m;
      spec.is_int8 = true;
      spec.source_dtype = DType::bf16;
      spec.is_as_in_a_step = true;
      add_gemm(cases, spec, true);
    }
  }
}

}  // namespace quire::cases
