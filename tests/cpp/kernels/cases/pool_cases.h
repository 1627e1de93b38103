// Cases of mean_rows: runs of no, one and many rows, columns that fill no vector, every output type.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct MeanRowsSpec {
  DType out_dtype = DType::f32;
  int64_t dim = 1;
  std::vector<int32_t> run_lengths;
};

class MeanRowsCase : public KernelCase {
 public:
  explicit MeanRowsCase(const MeanRowsSpec& spec) : spec_(spec), x_stride_(spec.dim + 3), out_stride_(spec.dim + 2) {
    // The first rows belong to no run: they must not be read.
    row_start_.push_back(kRowsBefore);
    for (const int32_t length : spec.run_lengths) row_start_.push_back(row_start_.back() + length);
    x_ = Buffer(DType::f32, row_start_.back() * x_stride_);
    Random random(7);
    for (int64_t row = kRowsBefore; row < row_start_.back(); ++row) {
      for (int64_t i = 0; i < spec.dim; ++i) x_.set(row * x_stride_ + i, random.uniform(-2.0, 3.0));
    }
    out_ = Buffer(spec.out_dtype, num_runs() * out_stride_);
    const auto num_rows = static_cast<double>(row_start_.back() - kRowsBefore);
    bytes = static_cast<double>(spec.dim) *
            (4.0 * num_rows + static_cast<double>(dtype_bytes(spec.out_dtype)) * static_cast<double>(num_runs()));
    flops = static_cast<double>(spec.dim) * num_rows;
  }

  void reset() override { out_.fill_untouched(); }

  void run(const KernelTable& table, Stream stream) override {
    table.mean_rows({.x = x_.as<float>(),
                     .x_stride = x_stride_,
                     .row_start = row_start_.data(),
                     .num_runs = num_runs(),
                     .dim = spec_.dim,
                     .out = out_.data(),
                     .out_dtype = spec_.out_dtype,
                     .out_stride = out_stride_},
                    stream);
  }

  std::vector<const Buffer*> outputs() const override { return {&out_}; }

  std::string check() const override {
    return compare_rows(out_, num_runs(), spec_.dim, out_stride_, 2e-6, 1e-6 + rounding_of(spec_.out_dtype),
                        [&](int64_t run, int64_t column) {
                          const int32_t begin = row_start_[static_cast<size_t>(run)];
                          const int32_t end = row_start_[static_cast<size_t>(run) + 1];
                          double sum = 0.0;
                          for (int32_t row = begin; row < end; ++row) sum += x_.get(row * x_stride_ + column);
                          return sum / std::max(1, end - begin);
                        });
  }

 private:
  int64_t num_runs() const { return static_cast<int64_t>(spec_.run_lengths.size()); }

  static constexpr int32_t kRowsBefore = 2;
  MeanRowsSpec spec_;
  int64_t x_stride_, out_stride_;
  std::vector<int32_t> row_start_;
  Buffer x_, out_;
};

inline void add_pool_cases(std::vector<CaseEntry>& cases) {
  const auto add = [&](const std::string& name, const MeanRowsSpec& spec, bool is_benchmark = false) {
    cases.push_back(
        {name, is_benchmark, [spec](const KernelTable&, Stream) { return std::make_unique<MeanRowsCase>(spec); }});
  };
  const std::vector<int32_t> lengths = {1, 0, 2, 3, 4, 5, 9, 64, 131};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int64_t dim : {1, 7, 16, 37, 128, 300, 384}) {
      add(str_cat("mean_rows_", dtype_name(dtype), "_", dim), {.out_dtype = dtype, .dim = dim, .run_lengths = lengths});
    }
  }
  add("mean_rows_bench", {.dim = 384, .run_lengths = std::vector<int32_t>(32, 64)}, true);
}

}  // namespace quire::cases
