// The keys and values a block needs, as one stream of chunks through a ring in shared memory: chunk after chunk, piece
// after piece, without a stop where one (tile, head) ends and the next begins.
//
// A chunk is kChunkKeys rows of K and as many of V. kRing - 1 chunks are on their way while one is used: that many
// times 256 * head_dim bytes a block. One commit a chunk, also where the stream has ended, so that waiting for all but
// the newest kRing - 2 groups means "the next chunk is there". Slots of the cache that no row of the row tile sees are
// filled with zeros and never read, nor are the entries of the block table of slices (16 keys, always inside one page)
// that hold only such slots.
#pragma once

#include "cuda/attention/kv_layout.h"
#include "cuda/attention/plan.h"
#include "cuda/attention/tile.cuh"
#include "cuda/attention/visible.cuh"

namespace quire::cuda {

struct AttendArgs {
  PlanView plan;
  const void* q;
  int64_t q_stride;
  void* out;
  int64_t out_stride;
  const void* k;
  const void* v;
  const int32_t* block_tables;
  int64_t block_table_stride;
  const float* alibi_slopes;
  const float* relative_bias;  // of the lowest distance, head after head
  const float* sinks;
  float* states;  // rows of head_dim + 4 floats: out, max, sum
  float scale;
  float softcap;
  int32_t window;
  int32_t relative_reach;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t block_size;
  bool causal;
};

constexpr int kAttendThreads = 128;

// The splits of one row tile and KV head that one slot computes.
struct Piece {
  RowTile tile;
  int tile_index, head;
  int split_begin, split_end;
  int low, high;  // keys that some row sees
};

// The pieces of a slot, in order.
struct PieceWalker {
  int units;  // not yet handed out
  int tile_index, head, split;

  __device__ __forceinline__ PieceWalker(const Slot& begin, const Slot& end)
      : units(end.unit - begin.unit), tile_index(begin.tile), head(begin.head), split(begin.split) {}

  __device__ __forceinline__ bool next(const AttendArgs& p, Piece& piece) {
    if (units <= 0) return false;
    const RowTile& tile = piece.tile = p.plan.tiles[tile_index];
    if (split < 0) split = tile.split_begin;
    piece.tile_index = tile_index;
    piece.head = head;
    piece.split_begin = split;
    piece.split_end = min(tile.split_end, split + units);
    units -= piece.split_end - split;
    const int group = p.num_heads / p.num_kv_heads;
    const int first = tile.first_position + tile.row_begin / group;
    const int last = tile.first_position + (tile.row_begin + tile.num_rows - 1) / group;
    piece.low = p.window > 0 ? max(0, first - p.window + 1) : 0;
    piece.high = end_of_keys(p.causal, p.window, last, tile.kv_len);
    if (++head == p.num_kv_heads) {
      head = 0;
      ++tile_index;
    }
    split = -1;  // where the next tile begins
    return true;
  }
};

// First and end of the chunks of splits [split_begin, split_end) that some row sees.
__device__ __forceinline__ int first_chunk(const Piece& piece, int split_begin) {
  return max(split_begin * (kSplitKeys / kChunkKeys), piece.low / kChunkKeys);
}
__device__ __forceinline__ int end_chunk(const Piece& piece, int split_end) {
  return min(split_end * (kSplitKeys / kChunkKeys), (piece.high + kChunkKeys - 1) / kChunkKeys);
}

template <typename T, int kHeadDim, int kRing>
class KvStream {
 public:
  using Rows = SharedRows<kHeadDim>;
  static constexpr int kTilePieces = kChunkKeys * Rows::kStride;

  // Starts the first kRing - 1 chunks.
  __device__ __forceinline__ KvStream(const AttendArgs& p, const PieceWalker& walker, uint4* ring)
      : p_(p), walker_(walker), ring_(ring) {
    enter_piece();
#pragma unroll 1
    for (int i = 0; i < kRing - 1; ++i) issue();
  }

  // Until the next chunk has landed. The caller's barrier follows; it also tells that all threads are done with the
  // chunk before, whose place the next issue() takes.
  __device__ __forceinline__ void wait() { simt::cp_async_wait<kRing - 2>(); }

  // K of the chunk that has landed; V follows, kTilePieces further. After this the next chunk is meant.
  __device__ __forceinline__ const uint4* take() {
    const uint4* chunk = ring_ + take_ * (2 * kTilePieces);
    take_ = take_ + 1 == kRing ? 0 : take_ + 1;
    return chunk;
  }

  // Starts the copy of one more chunk.
  __device__ __forceinline__ void issue() {
    if (chunk_ < chunk_end_) {
      copy_chunk();
      if (++chunk_ < chunk_end_) {
        load_page();
      } else {
        enter_piece();
      }
    }
    put_ = put_ + 1 == kRing ? 0 : put_ + 1;
    simt::cp_async_commit();
  }

 private:
  // The lane's slice of the chunk: four slices, lanes 0 to 3 and again.
  __device__ __forceinline__ int slice_key() const {
    return chunk_ * kChunkKeys + static_cast<int>(threadIdx.x) % 4 * kKvSliceTokens;
  }

  __device__ __forceinline__ void copy_chunk() {
    const T* const k = static_cast<const T*>(p_.k);
    const T* const v = static_cast<const T*>(p_.v);
    const int in_page = slice_key() % p_.block_size;
    const int64_t slice = kv_offset(page_, head_, in_page, p_.num_kv_heads, p_.block_size, kHeadDim);
    uint4* const chunk = ring_ + put_ * (2 * kTilePieces);
#pragma unroll 4  // all of them would hold too many registers
    for (int i = 0; i < Rows::kPieces / 2; ++i) {
      const unsigned at = i * kAttendThreads + threadIdx.x;
      const int row = static_cast<int>(at / Rows::kPieces), column = static_cast<int>(at % Rows::kPieces);
      const int key = chunk_ * kChunkKeys + row;
      const int64_t start = __shfl_sync(~0u, slice, row / kKvSliceTokens);
      const bool is_seen = key >= low_ && key < high_;
      const int64_t offset = is_seen ? start + row % kKvSliceTokens * kHeadDim + column * 8 : 0;
      uint4* const to = chunk + Rows::at(row, column);
      simt::cp_async16(to, k + offset, is_seen);
      simt::cp_async16(to + kTilePieces, v + offset, is_seen);
    }
  }

  // The first chunk of the next piece that has any, if there is one.
  __device__ __forceinline__ void enter_piece() {
    Piece piece;
    do {
      if (!walker_.next(p_, piece)) return;
      chunk_ = first_chunk(piece, piece.split_begin);
      chunk_end_ = end_chunk(piece, piece.split_end);
    } while (chunk_ >= chunk_end_);
    low_ = piece.low;
    high_ = piece.high;
    head_ = piece.head;
    table_ = p_.block_tables + piece.tile.seq * p_.block_table_stride;
    load_page();
  }

  // Asked for a chunk ahead: the answer is there when copy_chunk wants it.
  __device__ __forceinline__ void load_page() {
    const int key = slice_key();
    page_ = key < high_ && key + kKvSliceTokens > low_ ? table_[key / p_.block_size] : 0;
  }

  const AttendArgs& p_;
  PieceWalker walker_;
  uint4* ring_;
  int put_ = 0, take_ = 0;
  int chunk_ = 0, chunk_end_ = 0, low_ = 0, high_ = 0, head_ = 0, page_ = 0;
  const int32_t* table_ = nullptr;
};

}  // namespace quire::cuda
