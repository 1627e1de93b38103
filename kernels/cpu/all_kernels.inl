// Every kernel, once for each instruction set: a backend file includes this in its namespace, after its Vec.
// The order matters: a file uses what those before it define.
// clang-format off
#include "cpu/vec_math.inl"
#include "cpu/gemm.inl"
#include "cpu/gemm_int8.inl"
#include "cpu/norm.inl"
#include "cpu/reduce_rows.inl"
#include "cpu/mean_rows.inl"
#include "cpu/embedding.inl"
#include "cpu/rope.inl"
#include "cpu/softmax_state.inl"
#include "cpu/attention.inl"
#include "cpu/attention_tile.inl"
#include "cpu/attention_shared.inl"
#include "cpu/attention_launch.inl"
#include "cpu/sampling.inl"
#include "cpu/table.inl"
// clang-format on
