// Cases of reduce_rows: one-shot into one memory, two-shot into every rank's, with and without residual and norm.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct ReduceRowsSpec {
  int32_t num_ranks = 2;
  int32_t num_outs = 1;
  int64_t rows = 5, dim = 37;
  bool has_base = true, has_norm = false;
  NormKind kind = NormKind::rms;
  DType normed_dtype = DType::f32;
  int64_t padding = 3;  // elements between rows
};

class ReduceRowsCase : public KernelCase {
 public:
  explicit ReduceRowsCase(const ReduceRowsSpec& spec)
      : spec_(spec), stride_(spec.dim + spec.padding), weight_(DType::f32, spec.dim), bias_(DType::f32, spec.dim) {
    Random random(static_cast<uint64_t>(spec.dim + spec.num_ranks));
    for (int32_t rank = 0; rank < spec.num_ranks; ++rank) {
      partials_.emplace_back(DType::f32, spec.rows * stride_);
      fill(partials_.back(), random, 3.0);
    }
    for (int32_t out = 0; out < spec.num_outs; ++out) {
      outs_.emplace_back(DType::f32, spec.rows * stride_);
      normed_.emplace_back(spec.normed_dtype, spec.rows * stride_);
    }
    base_ = Buffer(DType::f32, spec.rows * stride_);
    fill(base_, random, 2.0);
    weight_.fill_uniform(random, 2.0);
    bias_.fill_uniform(random, 1.0);
    bytes = static_cast<double>(spec.rows * spec.dim) * 4.0 * (spec.num_ranks + 1 + spec.num_outs);
    ReduceRowsCase::reset();
  }

  // The residual stream lies where the result goes.
  void reset() override {
    for (Buffer& out : outs_) out.fill_untouched();
    for (Buffer& normed : normed_) normed.fill_untouched();
    if (spec_.has_base) std::memcpy(outs_.front().data(), base_.data(), base_.size_bytes());
  }

  void run(const KernelTable& table, Stream stream) override {
    ReduceRowsParams p;
    p.num_partials = spec_.num_ranks;
    p.num_outs = spec_.num_outs;
    for (size_t i = 0; i < partials_.size(); ++i) p.partials[i] = partials_[i].as<float>();
    for (size_t i = 0; i < outs_.size(); ++i) p.outs[i] = outs_[i].as<float>();
    for (size_t i = 0; spec_.has_norm && i < outs_.size(); ++i) p.normed[i] = normed_[i].data();
    p.partial_stride = p.out_stride = p.normed_stride = stride_;
    p.rows = spec_.rows;
    p.dim = spec_.dim;
    p.base = spec_.has_base ? outs_.front().as<float>() : nullptr;
    p.has_norm = spec_.has_norm;
    p.norm_kind = spec_.kind;
    p.norm_weight = weight_.as<float>();
    p.norm_bias = spec_.kind == NormKind::layer ? bias_.as<float>() : nullptr;
    p.eps = kEps;
    p.normed_dtype = spec_.normed_dtype;
    table.reduce_rows(p, stream);
  }

  std::vector<const Buffer*> outputs() const override {
    std::vector<const Buffer*> all;
    for (const Buffer& out : outs_) all.push_back(&out);
    for (const Buffer& normed : normed_) all.push_back(&normed);
    return all;
  }

  std::string check() const override {
    std::vector<Statistics> statistics;
    for (int64_t r = 0; r < spec_.rows; ++r) statistics.push_back(statistics_of(r));
    for (size_t out = 0; out < outs_.size(); ++out) {
      for (int64_t r = 0; r < spec_.rows; ++r) {
        // The order of the sum is part of the contract.
        for (int64_t i = 0; i < spec_.dim; ++i) {
          const double got = outs_[out].get(r * stride_ + i), want = sum_of(r, i);
          if (got != want) return str_cat("out ", out, ", row ", r, ", column ", i, ": ", got, ", not ", want);
        }
      }
      if (!outs_[out].guards_hold()) return str_cat("wrote outside of out ", out);
      if (!spec_.has_norm) continue;
      std::string wrong =
          compare_rows(normed_[out], spec_.rows, spec_.dim, stride_, 2e-5, 1e-5 + rounding_of(spec_.normed_dtype),
                       [&](int64_t r, int64_t i) { return norm_of(statistics[static_cast<size_t>(r)], r, i); });
      if (!wrong.empty()) return str_cat("normed ", out, ": ", wrong);
    }
    return "";
  }

 private:
  static constexpr float kEps = 1e-5f;

  void fill(Buffer& buffer, Random& random, double scale) const {
    for (int64_t r = 0; r < spec_.rows; ++r) {
      for (int64_t i = 0; i < spec_.dim; ++i) buffer.set(r * stride_ + i, random.uniform(-scale, scale));
    }
  }
  float sum_of(int64_t r, int64_t i) const {
    const int64_t at = r * stride_ + i;
    auto sum = static_cast<float>(partials_.front().get(at));
    for (size_t rank = 1; rank < partials_.size(); ++rank) sum += static_cast<float>(partials_[rank].get(at));
    return spec_.has_base ? static_cast<float>(base_.get(at)) + sum : sum;
  }
  struct Statistics {
    double mean = 0.0, factor = 1.0;
  };
  Statistics statistics_of(int64_t r) const {
    const auto dim = static_cast<double>(spec_.dim);
    Statistics row;
    double square = 0.0;
    for (int64_t j = 0; spec_.kind == NormKind::layer && j < spec_.dim; ++j) row.mean += sum_of(r, j) / dim;
    for (int64_t j = 0; j < spec_.dim; ++j) square += std::pow(sum_of(r, j) - row.mean, 2);
    row.factor = 1.0 / std::sqrt(square / dim + kEps);
    return row;
  }
  double norm_of(const Statistics& row, int64_t r, int64_t i) const {
    return (sum_of(r, i) - row.mean) * row.factor * weight_.get(i) +
           (spec_.kind == NormKind::layer ? bias_.get(i) : 0.0);
  }

  ReduceRowsSpec spec_;
  int64_t stride_;
  std::vector<Buffer> partials_, outs_, normed_;
  Buffer base_, weight_, bias_;
};

inline void add_reduce_cases(std::vector<CaseEntry>& cases) {
  const auto add = [&](const std::string& name, const ReduceRowsSpec& spec, bool is_benchmark = false) {
    cases.push_back(
        {name, is_benchmark, [spec](const KernelTable&, Stream) { return std::make_unique<ReduceRowsCase>(spec); }});
  };
  for (const int32_t ranks : {1, 2, 3, 8}) {
    for (const int64_t dim : {1, 7, 64, 577, 1000, 1101}) {
      add(str_cat("reduce_rows_", ranks, "_", dim), {.num_ranks = ranks, .dim = dim});
      add(str_cat("reduce_rows_two_shot_", ranks, "_", dim), {.num_ranks = ranks, .num_outs = ranks, .dim = dim});
    }
  }
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
      const std::string name = str_cat("reduce_rows_", kind == NormKind::rms ? "rms_" : "layer_", dtype_name(dtype));
      for (const int64_t dim : {37, 1024, 1028, 4096}) {
        const ReduceRowsSpec spec = {.num_ranks = 4, .dim = dim, .has_norm = true, .kind = kind, .normed_dtype = dtype};
        add(str_cat(name, "_", dim), spec);
        ReduceRowsSpec wide = spec;
        wide.padding = 4;
        wide.num_outs = 4;
        add(str_cat(name, "_two_shot_wide_", dim), wide);
      }
    }
  }
  add("reduce_rows_plain", {.num_ranks = 4, .dim = 4096, .has_base = false, .padding = 0});
  add("reduce_rows_bench",
      {.num_ranks = 4, .rows = 64, .dim = 4096, .has_norm = true, .normed_dtype = DType::bf16, .padding = 0}, true);
}

}  // namespace quire::cases
