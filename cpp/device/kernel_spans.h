// What spans of kernels say of their launches, where the Params alone tell it.
//
// Decides: names of arguments, and what counts as bytes and flops: "bytes" are those of every array read or written,
// once each, as if nothing were in a cache; "flops" are the multiplications and additions of products. Does not know:
// when a kernel ran. For what lies in arrays, host and devices have functions of their own. Inline, because libquire
// and the plugins need it.
#pragma once

#include "base/recorder.h"
#include "params/kernel_table.h"

namespace quire {

// The name of an entry of the table, as an argument of a template.
struct KernelName {
  char text[24] = {};
};

inline double element_bytes(DType dtype) { return static_cast<double>(dtype_bytes(dtype)); }

// dtype_name() gives literals.
inline void add_dtype(Span& span, DType dtype) { span.add("dtype", dtype_name(dtype).data()); }

inline void describe(const GemmParams& params, Span& span) {
  const auto m = static_cast<double>(params.m), n = static_cast<double>(params.weight.rows),
             k = static_cast<double>(params.weight.cols);
  const double element = element_bytes(params.weight.dtype), a_element = element_bytes(params.a_dtype());
  const double out_columns = params.weight.gated ? n / 2 : n;
  span.add("m", m);
  span.add("n", n);
  span.add("k", k);
  add_dtype(span, params.weight.dtype);
  span.add("out_dtype", dtype_name(params.out_dtype).data());
  span.add("gated", params.weight.gated ? 1.0 : 0.0);
  span.add("accumulate", params.accumulate ? 1.0 : 0.0);
  span.add("bytes", element * n * k + a_element * m * k +
                        m * out_columns * element_bytes(params.out_dtype) * (params.accumulate ? 2.0 : 1.0));
  span.add("flops", 2.0 * m * n * k);
}

inline void describe(const NormParams& params, Span& span) {
  const auto rows = static_cast<double>(params.rows), dim = static_cast<double>(params.dim);
  span.add("rows", rows);
  span.add("dim", dim);
  span.add("out_dtype", dtype_name(params.out_dtype).data());
  span.add("bytes", rows * dim * (4.0 + element_bytes(params.out_dtype) * (params.accumulate ? 2.0 : 1.0)));
}

inline void describe(const EmbeddingParams& params, Span& span) {
  const auto tokens = static_cast<double>(params.num_tokens), dim = static_cast<double>(params.table.cols);
  const double tables = element_bytes(params.table.dtype) +
                        (params.position_table.data != nullptr ? element_bytes(params.position_table.dtype) : 0.0);
  span.add("tokens", tokens);
  span.add("dim", dim);
  add_dtype(span, params.table.dtype);
  span.add("bytes", tokens * dim * (tables + element_bytes(params.out_dtype) * (params.accumulate ? 2.0 : 1.0)));
}

inline void describe(const RopeKvWriteParams& params, Span& span) {
  const auto tokens = static_cast<double>(params.num_tokens);
  const double columns = static_cast<double>(params.num_heads + 2 * params.kv.num_kv_heads) * params.kv.head_dim;
  span.add("tokens", tokens);
  span.add("heads", params.num_heads);
  span.add("kv_heads", params.kv.num_kv_heads);
  span.add("head_dim", params.kv.head_dim);
  add_dtype(span, params.dtype);
  // Queries are rotated where they lie; keys and values are read there and written to their pages.
  span.add("bytes", 2.0 * tokens * columns * element_bytes(params.dtype));
}

inline void describe(const SamplingParamsBlock& params, Span& span) {
  span.add("rows", params.num_rows);
  span.add("vocab", params.vocab_size);
  span.add("bytes", 4.0 * params.num_rows * params.vocab_size);
}

}  // namespace quire
