// The forward pass; see decoder.h. Scratch of a half layer is given back before the next half starts.
#include "model/decoder.h"

#include <algorithm>
#include <cmath>

namespace quire {

namespace {

bool same_plan(const AttnSpec& a, const AttnSpec& b) {
  return a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim &&
         a.window == b.window && a.causal == b.causal;
}

}  // namespace

Tensor Decoder::forward(const DeviceBatch& batch, const KvCache& cache, const Ops& ops) const {
  LayerWeightSource* const source = ops.dry() ? nullptr : layer_source_;
  if (source != nullptr) source->begin_step();
  const Tensor x = float_rows(batch.num_tokens, ops);
  // Plans lie above x in the arena and go when the layers are done.
  const Arena::Scope scope(ops.arena());
  Step step{batch, cache, ops};
  begin_exchange(step);
  embed(x, step);
  plan(step);
  for (size_t i = 0; i < arch_.layers.size(); ++i) {
    const PartScope part = ops.part("layer", static_cast<int32_t>(i));
    if (source != nullptr) source->acquire(static_cast<int32_t>(i));
    layer(i, x, step);
    if (source != nullptr) source->release(static_cast<int32_t>(i));
  }
  // What comes next lies where other ranks may still read.
  if (is_shared()) ops.barrier();
  return x;
}

// [num_rows, hidden] of float32; what ranks add up lies without gaps.
Tensor Decoder::float_rows(int64_t num_rows, const Ops& ops) const {
  return is_shared() ? ops.scratch(DType::f32, num_rows, arch_.hidden)
                     : ops.activations(DType::f32, num_rows, arch_.hidden);
}

void Decoder::begin_exchange(Step& step) const {
  if (!is_shared()) return;
  const int64_t num_tokens = step.batch.num_tokens;
  for (Tensor& partial : step.partials) {
    partial = step.ops.scratch(DType::f32, num_tokens, std::max(arch_.hidden, arch_.embed_dim));
  }
  step.normed = step.ops.scratch(dtype_, num_tokens, arch_.hidden);
}

Tensor Decoder::next_partial(Step& step, int64_t columns) const {
  step.turn ^= 1;
  return Tensor::contiguous(step.partials[static_cast<size_t>(step.turn)].data, DType::f32,
                            {step.batch.num_tokens, columns});
}

void Decoder::plan(Step& step) const {
  size_t num_plans = 0;
  for (size_t i = 0; i < arch_.layers.size(); ++i) {
    const AttnSpec& spec = arch_.layers[i].attn;
    const size_t num_bytes =
        step.ops.kernels().attention_plan_bytes(step.batch.num_tokens, step.batch.num_seqs, spec.num_heads);
    if (num_bytes == 0) return;
    const auto known = std::find_if(step.plans.begin(), step.plans.begin() + static_cast<ptrdiff_t>(num_plans),
                                    [&](const AttentionPlan& plan) { return same_plan(*plan.spec, spec); });
    if (known != step.plans.begin() + static_cast<ptrdiff_t>(num_plans)) continue;
    if (num_plans == step.plans.size()) return;  // the launches of further kinds plan for themselves
    step.plans[num_plans++] = {&spec, step.ops.arena().allocate_bytes(num_bytes), num_bytes};
    step.ops.plan_attention(attention_params(i, step));
  }
}

void Decoder::embed(const Tensor& x, Step& step) const {
  const PartScope part = step.ops.part("embedding");
  const DeviceBatch& batch = step.batch;
  float scale = arch_.embedding_scale;
  if (arch_.embedding_scale_in_model_dtype && dtype_ == DType::bf16) scale = bf16_to_float(float_to_bf16(scale));
  if (arch_.embedding_scale_in_model_dtype && dtype_ == DType::f16) scale = f16_to_float(float_to_f16(scale));
  EmbeddingParams params;
  params.token_ids = batch.token_ids;
  params.positions = batch.positions;
  params.num_tokens = batch.num_tokens;
  params.table = weights_.embedding;
  params.is_part = is_shared();
  params.token_id_offset = static_cast<int32_t>(-arch_.shard.vocab_begin);
  params.scale = scale;
  if (weights_.embed_proj.rows != 0) {
    embed_projected(params, x, step);
  } else {
    if (arch_.learned_positions.has_value() && arch_.is_first_rank()) {
      params.position_table = weights_.position_embedding;
      params.position_offset = arch_.learned_positions->offset;
    }
    // One rank has a token's row and the first one its position: the sum has no other terms, and its bits.
    const Tensor found = is_shared() ? next_partial(step, arch_.hidden) : x;
    step.ops.embedding(params, found);
    if (is_shared()) step.ops.all_reduce(found, false, x);
  }
  finish_embedding(batch, x, step.ops);
}

// A narrower table: look up, project, then add the positions, which have the full width.
void Decoder::embed_projected(EmbeddingParams params, const Tensor& x, Step& step) const {
  const Ops& ops = step.ops;
  const Arena::Scope scope(ops.arena());
  const Tensor narrow = ops.activations(dtype_, step.batch.num_tokens, arch_.embed_dim);
  if (is_shared()) {
    const Tensor found = next_partial(step, arch_.embed_dim);
    const Tensor sum = ops.scratch(DType::f32, step.batch.num_tokens, arch_.embed_dim);
    ops.embedding(params, found);
    ops.all_reduce(found, false, sum);
    ops.norm(sum, nullptr, {}, nullptr, false, narrow);
  } else {
    ops.embedding(params, narrow);
  }
  ops.gemm(narrow, weights_.embed_proj, {}, x);
  if (!arch_.learned_positions.has_value()) return;
  params.table = weights_.position_embedding;
  params.is_part = false;
  params.token_ids = step.batch.positions;
  params.token_id_offset = arch_.learned_positions->offset;
  params.accumulate = true;
  ops.embedding(params, x);
}

// What encoders add: token types, and a norm of the sum.
void Decoder::finish_embedding(const DeviceBatch& batch, const Tensor& x, const Ops& ops) const {
  if (arch_.num_token_types > 0) {
    EmbeddingParams types;
    types.token_ids = batch.token_type_ids;
    types.num_tokens = batch.num_tokens;
    types.table = weights_.token_type_embedding;
    types.accumulate = true;
    ops.embedding(types, x);
  }
  if (arch_.embedding_norm.has_value()) {
    ops.norm(x, &*arch_.embedding_norm, {weights_.embedding_norm, weights_.embedding_norm_bias}, nullptr, false, x);
  }
}

void Decoder::layer(size_t index, const Tensor& x, Step& step) const {
  const Ops& ops = step.ops;
  const LayerSpec& spec = arch_.layers[index];
  const LayerWeights& weights = weights_.layers[index];
  const auto half = [&](bool has_norm, const NormWeights& before, const float* after, const auto& body) {
    const Arena::Scope scope(ops.arena());
    const Tensor input = step.is_normed ? step.normed : ops.activations(dtype_, x.size(0), arch_.hidden);
    const bool norm_first = has_norm && spec.place != NormPlace::post;
    if (!step.is_normed) ops.norm(x, norm_first ? &spec.norm : nullptr, before, nullptr, false, input);
    step.is_normed = false;
    if (spec.place == NormPlace::sandwich) {
      const Tensor branch = float_rows(x.size(0), ops);
      body(input, false, branch);
      ops.norm(branch, &spec.norm, {.weight = after}, nullptr, true, x);
      return;
    }
    body(input, true, x);
    if (spec.place == NormPlace::post) ops.norm(x, &spec.norm, before, nullptr, false, x);
  };
  half(
      spec.attn_norm, {weights.attn_norm, weights.attn_norm_bias}, weights.attn_post_norm,
      [&](const Tensor& input, bool accumulate, const Tensor& out) { attention(index, input, accumulate, out, step); });
  half(true, {weights.ffn_norm, weights.ffn_norm_bias}, weights.ffn_post_norm,
       [&](const Tensor& input, bool accumulate, const Tensor& out) {
         feed_forward(index, input, accumulate, out, step);
       });
}

PagedAttentionParams Decoder::attention_params(size_t index, const Step& step) const {
  const AttnSpec& spec = arch_.layers[index].attn;
  const DeviceBatch& batch = step.batch;
  PagedAttentionParams params = {
      .dtype = dtype_,
      .num_heads = spec.num_heads,
      .kv = step.cache.layers[index],
      .num_seqs = static_cast<int32_t>(batch.num_seqs),
      .query_start = batch.query_start,
      .kv_lens = batch.kv_lens,
      .block_tables = batch.block_tables,
      .block_table_stride = batch.block_table_stride,
      .scale = spec.scale,
      .softcap = spec.softcap,
      .window = spec.window,
      .relative_bias = weights_.relative_bias,
      .relative_reach = arch_.relative_bias.has_value() ? arch_.relative_bias->max_distance : 0,
      .sinks = weights_.layers[index].sinks,
      .causal = spec.causal,
      .batch_invariant = step.ops.batch_invariant(),
      .num_tokens = batch.num_tokens,
      .max_kv_len = static_cast<int32_t>(batch.max_kv_len)};
  params.workspace_bytes = step.ops.kernels().attention_workspace_bytes(
      batch.num_tokens, batch.num_seqs, batch.max_kv_len, spec.num_heads, spec.head_dim, num_threads_);
  for (const AttentionPlan& plan : step.plans) {
    if (plan.spec == nullptr || !same_plan(*plan.spec, spec)) continue;
    params.plan = plan.data;
    params.plan_bytes = plan.num_bytes;
  }
  return params;
}

void Decoder::attention(size_t index, const Tensor& input, bool accumulate, const Tensor& out, Step& step) const {
  const AttnSpec& spec = arch_.layers[index].attn;
  const LayerWeights& weights = weights_.layers[index];
  const DeviceBatch& batch = step.batch;
  const Ops& ops = step.ops;
  const Tensor qkv = ops.activations(dtype_, batch.num_tokens, spec.qkv_dim());
  ops.gemm(input, weights.qkv, {.bias = weights.qkv_bias}, qkv);
  // Of the whole step before any is read: its sequences may share blocks that it fills (scheduler.h).
  ops.rope_kv_write({.qkv = qkv.data,
                     .dtype = dtype_,
                     .qkv_stride = qkv.row_stride(),
                     .num_tokens = batch.num_tokens,
                     .num_heads = spec.num_heads,
                     .q_norm = weights.q_norm,
                     .k_norm = weights.k_norm,
                     .norm_eps = spec.qk_norm.has_value() ? spec.qk_norm->eps : 0.0f,
                     .positions = batch.positions,
                     .cos_sin = rope_.layers[index],
                     .rotary_dim = spec.rope.rotary_dim,
                     .interleaved = spec.rope.interleaved,
                     .slot_mapping = batch.slot_mapping,
                     .kv = step.cache.layers[index]});
  const Tensor context = ops.activations(dtype_, batch.num_tokens, spec.q_dim());
  PagedAttentionParams params = attention_params(index, step);
  params.q = qkv.data;
  params.q_stride = qkv.row_stride();
  params.out = context.data;
  params.out_stride = context.row_stride();
  params.workspace = ops.arena().allocate_bytes(params.workspace_bytes);
  ops.paged_attention(params);
  sum_of_ranks(context, weights.o, weights.o_bias, accumulate, out, norm_before_feed_forward(index, step), step);
}

// out (+)= a * weight^T, of which every rank has the terms of its inputs.
void Decoder::sum_of_ranks(const Tensor& a, const PackedWeight& weight, const float* bias, bool accumulate,
                           const Tensor& out, const NextNorm& next, Step& step) const {
  if (!is_shared()) return step.ops.gemm(a, weight, {.bias = bias, .accumulate = accumulate}, out);
  const Tensor partial = next_partial(step, arch_.hidden);
  step.ops.gemm(a, weight, {.bias = bias}, partial);
  step.is_normed = accumulate && next.spec != nullptr;
  step.ops.all_reduce(partial, accumulate, out, step.is_normed ? &next : nullptr);
}

// The norm of the next half, where that begins with one and its weights are there.
NextNorm Decoder::norm_before_feed_forward(size_t index, const Step& step) const {
  if (arch_.layers[index].place != NormPlace::pre) return {};
  const LayerWeights& weights = weights_.layers[index];
  return {&arch_.layers[index].norm, {weights.ffn_norm, weights.ffn_norm_bias}, step.normed};
}

NextNorm Decoder::norm_before_layer(size_t index, const Step& step) const {
  const bool is_there = index < arch_.layers.size() && layer_source_ == nullptr;
  if (!is_there || arch_.layers[index].place != NormPlace::pre || !arch_.layers[index].attn_norm) return {};
  const LayerWeights& weights = weights_.layers[index];
  return {&arch_.layers[index].norm, {weights.attn_norm, weights.attn_norm_bias}, step.normed};
}

void Decoder::feed_forward(size_t index, const Tensor& input, bool accumulate, const Tensor& out, Step& step) const {
  const Ops& ops = step.ops;
  const auto& ffn = std::get<DenseFfn>(arch_.layers[index].ffn);
  const LayerWeights& weights = weights_.layers[index];
  const Tensor inner = ops.activations(dtype_, input.size(0), ffn.width);
  ops.gemm(input, weights.up, {.bias = weights.up_bias, .activation = ffn.activation}, inner);
  sum_of_ranks(inner, weights.down, weights.down_bias, accumulate, out, norm_before_layer(index + 1, step), step);
}

Tensor Decoder::final_hidden(const Tensor& hidden, const int32_t* rows, int64_t num_rows, const Ops& ops) const {
  const PartScope part = ops.part("final_norm");
  const Tensor out = ops.scratch(DType::f32, num_rows, arch_.hidden);
  ops.norm(hidden, arch_.final_norm.has_value() ? &*arch_.final_norm : nullptr,
           {weights_.final_norm, weights_.final_norm_bias}, rows, false, out);
  return out;
}

Tensor Decoder::logits(const Tensor& hidden, const int32_t* rows, int64_t num_rows, const Ops& ops) const {
  const PartScope head = ops.part("head");
  const bool is_whole_here = arch_.is_first_rank();
  const Tensor out = is_whole_here ? ops.scratch(DType::f32, num_rows, arch_.vocab_size)
                                   : Tensor::contiguous(nullptr, DType::f32, {num_rows, arch_.vocab_size});
  const Arena::Scope scope(ops.arena());
  const Tensor part = is_shared() ? ops.scratch(DType::f32, num_rows, arch_.own_vocab_rows()) : out;
  ops.gemm(head_input(hidden, rows, num_rows, ops), weights_.head,
           {.bias = weights_.head_bias, .scale = arch_.logits_scale, .softcap = arch_.logits_softcap}, part);
  if (is_shared()) ops.gather_columns(part, arch_.shard.vocab_begin, out);
  return out;
}

Tensor Decoder::head_input(const Tensor& hidden, const int32_t* rows, int64_t num_rows, const Ops& ops) const {
  const Tensor input = ops.scratch(dtype_, num_rows, arch_.hidden);
  ops.norm(hidden, arch_.final_norm.has_value() ? &*arch_.final_norm : nullptr,
           {weights_.final_norm, weights_.final_norm_bias}, rows, false, input);
  if (weights_.out_proj.rows == 0) return input;
  const Tensor projected = ops.scratch(dtype_, num_rows, arch_.embed_dim);
  ops.gemm(input, weights_.out_proj, {}, projected);
  return projected;
}

int64_t Decoder::head_width() const { return weights_.out_proj.rows != 0 ? arch_.embed_dim : arch_.hidden; }

}  // namespace quire
