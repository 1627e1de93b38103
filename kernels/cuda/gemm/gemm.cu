// Chooses who computes a product, and launches it.
//
// The kernel and its tile follow m and the grid, the cut of k follows the weight (weight_layout.h), whether ranges of k
// run side by side follows the workspace and the grid: only the second one decides bits. f32 goes to the CUDA cores.
// Who gives up those bits (batch_invariant = false) gets cuBLASLt for more than 64 rows, where there is one.
#include "cuda/gemm/gemm.h"

#include "base/check.h"
#include "cuda/gemm/f32_gemm.cuh"
#include "cuda/gemm/large_gemm.h"
#include "cuda/gemm/library_gemm.h"
#include "cuda/gemm/stream_gemm.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {
namespace {

constexpr int64_t kMaxSplitTokens = 64;
constexpr int64_t kMaxGridY = 65535;

void check_contract(const GemmParams& g) {
  QUIRE_CHECK(g.out_dtype == DType::f32 || g.out_dtype == g.weight.dtype);
  QUIRE_CHECK(!g.accumulate || g.out_dtype == DType::f32);
  QUIRE_CHECK(!g.weight.gated || g.weight.rows % 2 == 0, "rows ", g.weight.rows);
  QUIRE_CHECK(starts_at(g.weight.data, 16), "a packed weight starts at 16 bytes");
  QUIRE_CHECK(g.m < INT32_MAX && g.weight.rows < INT32_MAX / 2 && g.weight.cols < INT32_MAX / 2, "m ", g.m, ", rows ",
              g.weight.rows, ", cols ", g.weight.cols);
}

template <typename Element, int kRowTiles, int kTokenTiles>
void launch_tile(const GemmParams& g, Stream stream) {
  using Tile = GemmTile<kRowTiles, kTokenTiles>;
  GemmArgs args = gemm_args(g);
  const int64_t strips = ceil_div(rows_in_use(g.weight), Tile::kRows);
  const int64_t token_blocks = ceil_div(g.m, Tile::kTokens);
  QUIRE_CHECK(strips <= kMaxGridY, "rows ", g.weight.rows);
  const auto needed_bytes =
      static_cast<size_t>(kCounterBytes + args.num_splits * strips * Tile::kTiles * 128 * int64_t{sizeof(float)});
  if (g.workspace != nullptr && g.workspace_bytes >= needed_bytes && args.num_splits > 1 && token_blocks == 1 &&
      strips < kWantedBlocks) {
    QUIRE_CHECK(starts_at(g.workspace, 16), "a workspace starts at 16 bytes");
    args.counters = static_cast<uint32_t*>(g.workspace);
    args.partials = reinterpret_cast<float*>(static_cast<uint8_t*>(g.workspace) + kCounterBytes);
  }
  const auto splits = static_cast<uint32_t>(args.partials != nullptr ? args.num_splits : 1);
  simt::launch<stream_gemm_kernel<Element, kRowTiles, kTokenTiles>>(
      simt::LaunchConfig{.grid = dim3(static_cast<uint32_t>(token_blocks), static_cast<uint32_t>(strips), splits),
                         .block = dim3(32 * kGemmWarps),
                         .shared_bytes = sizeof(GemmShared<Tile>),
                         .stream = stream,
                         .pdl = true},
      args);
}

// A chunk of k costs a tile of 128 x 128 the 1024 cycles of its shared memory (large_gemm.cuh), and one of 64 x 64 some
// 400, which the second-level cache takes to bring 16 KB to each of 132 processors: so the large tile needs 2.5 times
// as long for four times the products, and loses where it leaves processors idle.
bool large_tile_is_faster(const GemmParams& g) {
  const int64_t processors = simt::num_multiprocessors(), rows = rows_in_use(g.weight);
  const int64_t large = ceil_div(ceil_div(rows, kLargeRows) * ceil_div(g.m, kLargeTokens), processors);
  const int64_t small = ceil_div(ceil_div(rows, kRowPadding) * ceil_div(g.m, kMaxSplitTokens), processors);
  return 5 * large <= 2 * small;
}

bool can_take_large_tile(const GemmParams& g) {
  const GemmArgs args = gemm_args(g);
  return args.a_aligned && large_gemm_shared_bytes(args.num_splits) <= simt::max_shared_bytes();
}

// Strips grow with m, so that the activations, read once a strip, stay below the weight's bytes.
template <typename Element>
void launch_tensor_cores(const GemmParams& g, Stream stream) {
  if (g.m <= 4) return launch_tile<Element, 1, 1>(g, stream);
  if (g.m <= 8) return launch_tile<Element, 2, 1>(g, stream);
  if (g.m <= 16) return launch_tile<Element, 4, 2>(g, stream);
  if (g.m <= 32) return launch_tile<Element, 4, 4>(g, stream);
  if (g.m > kMaxSplitTokens && can_take_large_tile(g) && large_tile_is_faster(g)) return large_gemm(g, stream);
  launch_tile<Element, 4, 8>(g, stream);
}

void launch_f32(const GemmParams& g, Stream stream) {
  const int64_t strips = ceil_div(rows_in_use(g.weight), kF32Rows);
  QUIRE_CHECK(strips <= kMaxGridY, "rows ", g.weight.rows);
  const int64_t token_blocks = ceil_div(g.m, kF32Tokens);
  simt::launch<f32_gemm_kernel>(
      simt::LaunchConfig{.grid = dim3(static_cast<uint32_t>(token_blocks), static_cast<uint32_t>(strips)),
                         .block = dim3(kF32Threads),
                         .shared_bytes = 0,
                         .stream = stream,
                         .pdl = true},
      gemm_args(g));
}

}  // namespace

void gemm(const GemmParams& g, Stream stream) {
  if (g.m <= 0 || g.weight.rows <= 0) return;
  check_contract(g);
  if (!g.batch_invariant && g.m > kMaxSplitTokens && library_gemm(g, stream)) return;
  switch (g.weight.dtype) {
    case DType::bf16:
      return launch_tensor_cores<__nv_bfloat16>(g, stream);
    case DType::f16:
      return launch_tensor_cores<__half>(g, stream);
    case DType::f32:
      return launch_f32(g, stream);
    default:
      throw NotSupported(
          str_cat("gemm with weights of ", dtype_name(g.weight.dtype), " on CUDA; use bfloat16, float16 or float32"));
  }
}

size_t gemm_workspace_bytes(int64_t rows, int64_t cols, DType dtype) {
  if (dtype == DType::f32 || num_splits(rows, cols) == 1) return 0;
  return static_cast<size_t>(kCounterBytes +
                             num_splits(rows, cols) * padded_rows(rows) * kMaxSplitTokens * int64_t{sizeof(float)});
}

size_t gemm_library_workspace_bytes(int64_t rows, int64_t cols, DType dtype) {
  const auto own = gemm_workspace_bytes(rows, cols, dtype), library = library_workspace_bytes(rows);
  return own < library ? library : own;
}

}  // namespace quire::cuda
