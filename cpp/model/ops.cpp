// Contracts and launches; see ops.h.
#include "model/ops.h"

namespace quire {

Tensor Ops::scratch(DType dtype, int64_t rows, int64_t columns) const {
  void* data = arena_.allocate_bytes(static_cast<size_t>(rows * columns) * dtype_bytes(dtype));
  return Tensor::contiguous(data, dtype, {rows, columns});
}

Tensor Ops::activations(DType dtype, int64_t rows, int64_t columns) const {
  if (kernels_.activation_row_bytes == nullptr) return scratch(dtype, rows, columns);
  const auto element_bytes = static_cast<int64_t>(dtype_bytes(dtype));
  const int64_t row_bytes = kernels_.activation_row_bytes(columns * element_bytes);
  QUIRE_CHECK(row_bytes >= columns * element_bytes && row_bytes % element_bytes == 0, row_bytes, " bytes for ", columns,
              " of ", dtype_name(dtype));
  Tensor tensor =
      Tensor::contiguous(arena_.allocate_bytes(static_cast<size_t>(rows * row_bytes)), dtype, {rows, columns});
  tensor.stride[0] = row_bytes / element_bytes;
  return tensor;
}

void Ops::gemm(const Tensor& a, const PackedWeight& weight, const GemmEpilogue& epilogue, const Tensor& out) const {
  const bool is_int8 = weight.dtype == DType::i8;
  Match match("gemm");
  match.bind("k", weight.cols)
      .bind("n", weight.gated ? weight.rows / 2 : weight.rows)
      .shape(a, "a", {"m", "k"})
      .shape(out, "out", {"m", "n"});
  if (!is_int8) match.dtype(a, "a", weight.dtype);
  QUIRE_CHECK(out.dtype == DType::f32 || (out.dtype == a.dtype && !epilogue.accumulate), "gemm writes ",
              out.to_string());
  const Arena::Scope scope(arena_);
  void* int8_rows = is_int8 ? arena_.allocate_bytes(kernels_.int8_rows_bytes(a.size(0), weight.cols)) : nullptr;
  if (dry()) return;
  kernels_.gemm({.a = a.data,
                 .a_stride = a.row_stride(),
                 .m = a.size(0),
                 .weight = weight,
                 .bias = epilogue.bias,
                 .activation = epilogue.activation,
                 .softcap = epilogue.softcap,
                 .scale = epilogue.scale,
                 .out = out.data,
                 .out_dtype = out.dtype,
                 .out_stride = out.row_stride(),
                 .accumulate = epilogue.accumulate,
                 .batch_invariant = batch_invariant_,
                 .int8_a_dtype = a.dtype,
                 .int8_rows = int8_rows,
                 .workspace = gemm_workspace_,
                 .workspace_bytes = gemm_workspace_bytes_},
                stream_);
}

void Ops::norm(const Tensor& x, const NormSpec* spec, const NormWeights& weights, const int32_t* row_ids,
               bool accumulate, const Tensor& out) const {
  Match match("norm");
  match.dtype(x, "x", DType::f32).bind("dim", x.size(1)).shape(out, "out", {"rows", "dim"});
  if (row_ids == nullptr && !dry()) match.shape(x, "x", {"rows", "dim"});
  if (dry()) return;
  kernels_.norm({.kind = spec != nullptr ? spec->kind : NormKind::none,
                 .x = x.as<float>(),
                 .x_stride = x.row_stride(),
                 .row_ids = row_ids,
                 .rows = out.size(0),
                 .dim = x.size(1),
                 .weight = spec != nullptr ? weights.weight : nullptr,
                 .bias = spec != nullptr ? weights.bias : nullptr,
                 .eps = spec != nullptr ? spec->eps : 0.0f,
                 .out = out.data,
                 .out_dtype = out.dtype,
                 .out_stride = out.row_stride(),
                 .accumulate = accumulate},
                stream_);
}

void Ops::mean_rows(const Tensor& x, const int32_t* row_start, const Tensor& out) const {
  Match("mean_rows")
      .dtype(x, "x", DType::f32)
      .bind("dim", x.size(1))
      .shape(out, "out", {"runs", "dim"})
      .dtype(out, "out", DType::f32);
  if (dry()) return;
  kernels_.mean_rows({.x = x.as<float>(),
                      .x_stride = x.row_stride(),
                      .row_start = row_start,
                      .num_runs = out.size(0),
                      .dim = x.size(1),
                      .out = out.data,
                      .out_dtype = out.dtype,
                      .out_stride = out.row_stride()},
                     stream_);
}

void Ops::embedding(EmbeddingParams params, const Tensor& out) const {
  Match("embedding")
      .bind("tokens", params.num_tokens)
      .bind("dim", params.table.cols)
      .shape(out, "out", {"tokens", "dim"});
  params.out = out.data;
  params.out_dtype = out.dtype;
  params.out_stride = out.row_stride();
  if (!dry()) kernels_.embedding(params, stream_);
}

void Ops::rope_kv_write(const RopeKvWriteParams& params) const {
  QUIRE_CHECK(params.rotary_dim <= params.kv.head_dim && params.rotary_dim % 2 == 0, "rotary_dim ", params.rotary_dim,
              " of head_dim ", params.kv.head_dim);
  if (!dry()) kernels_.rope_kv_write(params, stream_);
}

void Ops::plan_attention(const PagedAttentionParams& params) const {
  if (!dry()) kernels_.plan_attention(params, stream_);
}

void Ops::paged_attention(const PagedAttentionParams& params) const {
  QUIRE_CHECK(params.num_heads % params.kv.num_kv_heads == 0, params.num_heads, " heads over ", params.kv.num_kv_heads,
              " KV heads");
  if (!dry()) kernels_.paged_attention(params, stream_);
}

void Ops::all_reduce(const Tensor& partial, bool accumulate, const Tensor& out, const NextNorm* next) const {
  Match("all_reduce")
      .dtype(partial, "partial", DType::f32)
      .shape(partial, "partial", {"rows", "dim"})
      .dtype(out, "out", DType::f32)
      .shape(out, "out", {"rows", "dim"});
  QUIRE_CHECK(partial.row_stride() == partial.size(1) && out.row_stride() == out.size(1), "all_reduce of ",
              partial.to_string(), " to ", out.to_string());
  if (dry()) return;
  QUIRE_CHECK(communicator_ != nullptr && partial.data != out.data, "there are no other ranks, or nothing is apart");
  AllReduceParams params = {.partial = partial.as<float>(),
                            .out = out.as<float>(),
                            .rows = partial.size(0),
                            .dim = partial.size(1),
                            .accumulate = accumulate};
  const bool is_fused = next != nullptr && communicator_->fuses_norm();
  if (is_fused) {
    QUIRE_CHECK(next->out.row_stride() == next->out.size(1), "all_reduce and norm to ", next->out.to_string());
    params.has_norm = true;
    params.norm_kind = next->spec->kind;
    params.norm_weight = next->weights.weight;
    params.norm_bias = next->weights.bias;
    params.eps = next->spec->eps;
    params.normed = next->out.data;
    params.normed_dtype = next->out.dtype;
  }
  {
    const PartScope scope = part("all_reduce");
    communicator_->all_reduce(params, stream_);
  }
  if (next != nullptr && !is_fused) norm(out, next->spec, next->weights, nullptr, false, next->out);
}

void Ops::broadcast(void* data, size_t num_bytes) const {
  if (!dry() && communicator_ != nullptr) communicator_->broadcast(data, num_bytes, stream_);
}

void Ops::barrier() const {
  if (!dry() && communicator_ != nullptr) communicator_->barrier(stream_);
}

void Ops::gather_columns(const Tensor& part, int64_t first_column, const Tensor& out) const {
  Match("gather_columns")
      .dtype(part, "part", DType::f32)
      .shape(part, "part", {"rows", "columns"})
      .dtype(out, "out", DType::f32);
  QUIRE_CHECK(out.size(0) == part.size(0) && first_column + part.size(1) <= out.size(1), "columns from ", first_column,
              " of ", out.to_string(), " are ", part.to_string());
  if (dry()) return;
  QUIRE_CHECK(communicator_ != nullptr, "there are no other ranks");
  const PartScope scope = this->part("gather");
  communicator_->gather_columns({.part = part.as<float>(),
                                 .rows = part.size(0),
                                 .columns = part.size(1),
                                 .first_column = first_column,
                                 .out = out.as<float>(),
                                 .out_stride = out.row_stride()},
                                stream_);
}

}  // namespace quire
