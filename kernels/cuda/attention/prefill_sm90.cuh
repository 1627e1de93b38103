// Flash attention of prefill chunks over the paged cache for sm_90a (Shah et al. 2024, FlashAttention-3, sections 3.1
// and 3.2: warp specialisation, ping-pong of warpgroups, products overlapped with softmax).
//
//   out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j]) v[j]    over the visible j, and a sink's exp in the sum
//
// Mapping. Persistent blocks, one a multiprocessor. A tile is kBlockM rows (token, head of one KV head's group), so
// that a chunk of few tokens still fills it and the causal edge wastes little; work and loads are in
// prefill_sm90_load.cuh. Warpgroup 0 gives its registers away; one warp of it is the producer. Each other warpgroup
// owns 64 rows. Its thread t has two of them, 16 * (t / 32) + t % 32 / 4 and the one 8 below, and of each 8 columns the
// two from t % 4 * 2 on. For each tile of kBlockN keys, from the last visible one down:
//   S  = Q K^T      wgmma, both operands in shared memory
//   P  = exp2(scale_log2 * (S - max))  in registers; S of the next keys is already being computed, and P V of these
//   O += P V        wgmma, P from registers, V as it lies (MN-major)
//
// Barriers. full: bytes landed, the consumers may read. empty: one arrival a consumer warp after the wgmma that read is
// waited for. kOrder + g: warpgroup g may issue its products; it passes the right on to g + 1, so that one warpgroup's
// softmax runs under another's products.
//
// Exactness. Tiles of keys lie at multiples of kBlockN whatever the launch, and a row passes them in the same order; a
// tile in which it sees nothing leaves it as it was (the correction is exactly 1, or it has nothing yet). So its bits
// depend on its position, query and keys, not on chunking, batch or grid.
//
// Work. A tile of 128 x 128 at d128 is 4 * 128 * 128 * 128 = 8.4 Mflop, 2,048 cycles of a multiprocessor's tensor
// cores (4,096 dense 16-bit flops a cycle), and 16,384 exp2, 1,024 cycles at 16 a cycle, with about 600 more to scale,
// add and round: they hide under the other warpgroup's products. At d64 exp2 takes as long as the products (1,536
// cycles each a tile of 192 x 128); at d256 a quarter. Per tile 64 KiB of K and V come from L2, where the blocks of a
// KV head meet: 4.7 TB/s at 600 TFLOP/s. From memory, at 4k less than 2% of the time. Causal edges waste about
// (kBlockM / group + kBlockN) / 2 keys a row: 4% at 4k with groups of 4.
// Predicted, not measured: 560 to 580 TFLOP/s at d128 causal and 4k on an H200. The kernel this follows is published
// with 579 on an H100, keys and values contiguous; a box of 64 tokens or more should cost little against that.
#pragma once

#include <cstdint>

#include "cuda/attention/prefill_sm90_load.cuh"
#include "cuda/attention/tile.cuh"

namespace quire::cuda {

template <typename Tag_, int kHeadDim_, int kBlockM_, int kBlockN_, bool kPingPong_>
struct PrefillConfig {
  using Tag = Tag_;
  static constexpr int kHeadDim = kHeadDim_, kBlockM = kBlockM_, kBlockN = kBlockN_;
  static constexpr bool kPingPong = kPingPong_;
  static constexpr int kStages = 2;
  static constexpr int kConsumers = kBlockM / 64;  // warpgroups
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 56;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 224;
  using Shared = PrefillShared<kHeadDim, kBlockM, kBlockN, kStages>;
  using Producer = PrefillProducer<kHeadDim, kBlockM, kBlockN, kStages>;
};

constexpr int kOrder = 1;  // first of the named barriers; 0 is __syncthreads

// One thread's part of a consumer warpgroup.
template <typename C>
class PrefillConsumer {
 public:
  __device__ __forceinline__ PrefillConsumer(const PrefillArgs& p, typename C::Shared& s)
      : p_(p), s_(s), warpgroup_(static_cast<int>(threadIdx.x) / 128 - 1) {}

  __device__ __forceinline__ void run() {
    if (C::kPingPong && warpgroup_ == 0) simt::named_barrier_arrive(kOrder, 256);  // the first turn
    for (uint32_t parity = 0;; parity ^= 1) {
      simt::mbarrier_wait(s_.q_full, parity);
      tile_ = s_.tile;
      if (tile_.num_tokens == 0) return;
      start_rows();
      attend();
      store();
    }
  }

 private:
  static constexpr int kScores = C::kBlockN / 2, kOutputs = C::kHeadDim / 2;  // registers

  __device__ __forceinline__ void start_rows() {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row_[h] = warpgroup_ * 64 + warp * 16 + lane / 4 + h * 8;
      const int position = tile_.first_position + row_[h] / p_.group;
      last_key_[h] = p_.causal ? min(position, tile_.kv_len - 1) : tile_.kv_len - 1;
      first_key_[h] = p_.window > 0 ? position - p_.window + 1 : 0;
      max_[h] = -INFINITY;
      sum_[h] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) out_[i] = 0.0f;
  }

  // The loop over keys: products of the next tile and of this one are issued together, softmax of the next runs while
  // P V of this one does.
  __device__ __forceinline__ void attend() {
    const int last = (tile_.key_end - 1) / C::kBlockN * C::kBlockN;
    const int end = tile_.key_begin / C::kBlockN * C::kBlockN;
    simt::mbarrier_wait(s_.full[kK][k_.stage], k_.parity);
    issue_scores();
    simt::wgmma_wait<0>();
    finish_scores(last == end);
    float correction[2];
    softmax(last, correction);
    pack();
    for (int key = last - C::kBlockN; key >= end; key -= C::kBlockN) {
      simt::mbarrier_wait(s_.full[kK][k_.stage], k_.parity);
      if constexpr (C::kPingPong) simt::named_barrier_sync(kOrder + warpgroup_, 256);
      issue_scores();
      simt::mbarrier_wait(s_.full[kV][v_.stage], v_.parity);
      issue_values();
      if constexpr (C::kPingPong) simt::named_barrier_arrive(kOrder + (warpgroup_ + 1) % C::kConsumers, 256);
      simt::wgmma_wait<1>();
      finish_scores(key == end);
      softmax(key, correction);
      simt::wgmma_wait<0>();
      finish_values();
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) out_[i] *= correction[i / 2 % 2];
      pack();
    }
    simt::mbarrier_wait(s_.full[kV][v_.stage], v_.parity);
    issue_values();
    simt::wgmma_wait<0>();
    finish_values();
  }

  __device__ __forceinline__ void issue_scores() {
    using Queries = decltype(s_.q);
    using Keys = std::remove_reference_t<decltype(s_.kv[0][0])>;
    const uint64_t q = simt::matrix_descriptor<simt::Major::k>(s_.q.bytes + warpgroup_ * 64 * kLineBytes);
    const uint64_t k = simt::matrix_descriptor<simt::Major::k>(s_.kv[kK][k_.stage].bytes);
    simt::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 16; ++i) {
      const int panel = i / 4, inside = i % 4 * 32;
      simt::wgmma<typename C::Tag, C::kBlockN>(scores_, simt::advance(q, panel * Queries::kPanelBytes + inside),
                                               simt::advance(k, panel * Keys::kPanelBytes + inside), i > 0);
    }
    simt::wgmma_commit();
  }

  __device__ __forceinline__ void issue_values() {
    using Values = std::remove_reference_t<decltype(s_.kv[0][0])>;
    const uint64_t v = simt::matrix_descriptor<simt::Major::mn>(s_.kv[kV][v_.stage].bytes, Values::kPanelBytes);
    simt::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kBlockN / 16; ++i) {
      simt::wgmma<typename C::Tag, C::kHeadDim, simt::Major::mn>(out_, weights_[i],
                                                                 simt::advance(v, i * 16 * kLineBytes), true);
    }
    simt::wgmma_commit();
  }

  // After the wait: the keys' stage is free, and so are the queries after the last tile of keys.
  __device__ __forceinline__ void finish_scores(bool is_last) {
    simt::keep_registers(scores_);
    __syncwarp(0xffffffffu);
    if (threadIdx.x % 32 == 0) {
      simt::mbarrier_arrive(s_.empty[kK][k_.stage]);
      if (is_last) simt::mbarrier_arrive(s_.q_empty);
    }
    k_.advance();
  }

  __device__ __forceinline__ void finish_values() {
    simt::keep_registers(out_);
    if (threadIdx.x % 32 == 0) simt::mbarrier_arrive(s_.empty[kV][v_.stage]);
    v_.advance();
  }

  // scores_ := exp2(scale_log2 * (scores_ - new max)); correction is what older weights are to be multiplied with.
  __device__ __forceinline__ void softmax(int first_key, float (&correction)[2]) {
    const bool sees_all = first_key + C::kBlockN - 1 <= (p_.causal ? tile_.first_position : tile_.kv_len - 1) &&
                          (p_.window <= 0 || first_key > tile_.first_position + tile_.num_tokens - 1 - p_.window);
    if (!sees_all) mask(first_key);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = max_[h];
#pragma unroll
      for (int i = 0; i < kScores; i += 4) top = fmaxf(top, fmaxf(scores_[i + h * 2], scores_[i + h * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float base = top == -INFINITY ? 0.0f : top;  // nothing seen yet: every weight is exp2(-infinity)
      correction[h] = simt::exp2_approx((max_[h] - base) * p_.scale_log2);
      max_[h] = top;
      const float shift = base * p_.scale_log2;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kScores; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = scores_[i + h * 2 + e];
          x = simt::exp2_approx(fmaf(x, p_.scale_log2, -shift));
          sum += x;
        }
      }
      sum_[h] = fmaf(sum_[h], correction[h], sum);
    }
  }

  // Scores of unseen keys become -infinity by selection: they may be NaN.
  __device__ __forceinline__ void mask(int first_key) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int begin = first_key_[h] - first_key - column, end = last_key_[h] - first_key - column;
#pragma unroll
      for (int i = 0; i < kScores; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = i * 2 + e;
          float& x = scores_[i + h * 2 + e];
          x = key >= begin && key <= end ? x : -INFINITY;
        }
      }
    }
  }

  // Weights as the left operand: the accumulator's fragment of 16 columns is the operand's of 16 k.
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      weights_[i / 4][i % 4] = pack_pair(typename C::Tag(), scores_[i * 2], scores_[i * 2 + 1]);
    }
  }

  // Divides by the sum, the sink's share included, and writes 16 bytes a lane: four lanes that hold a row exchange four
  // groups of 8 columns.
  __device__ __forceinline__ void store() {
    const int member = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int token = row_[h] / p_.group, head = tile_.kv_head * p_.group + row_[h] % p_.group;
      const bool is_row = token < tile_.num_tokens;
      const float factor = is_row ? factor_of(max_[h] * p_.scale_log2, sum, head) : 0.0f;
      auto* out = static_cast<uint16_t*>(p_.out) + (tile_.first_token + token) * p_.out_stride + head * C::kHeadDim;
#pragma unroll
      for (int i = 0; i < kOutputs; i += 16) {
        uint32_t piece[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = i + j * 4 + h * 2;
          piece[j] = pack_pair(typename C::Tag(), out_[at] * factor, out_[at + 1] * factor);
        }
        exchange(piece, member);
        if (is_row) {
          *reinterpret_cast<uint4*>(out + i * 2 + member * 8) = make_uint4(piece[0], piece[1], piece[2], piece[3]);
        }
      }
    }
  }

  __device__ __forceinline__ float factor_of(float max, float sum, int head) const {
    if (p_.sinks == nullptr) return 1.0f / sum;
    const float sink = p_.sinks[head] * 1.44269504f, top = fmaxf(max, sink);
    const float mine = simt::exp2_approx(max - top);
    return mine / fmaf(sum, mine, simt::exp2_approx(sink - top));
  }

  // Transposes a 4 x 4 matrix of which each of four lanes holds a column, in two butterflies.
  __device__ static __forceinline__ void exchange(uint32_t (&piece)[4], int member) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j & bit) continue;
        const bool upper = (member & bit) != 0;
        const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? piece[j] : piece[j | bit], bit);
        if (upper) {
          piece[j] = got;
        } else {
          piece[j | bit] = got;
        }
      }
    }
  }

  const PrefillArgs& p_;
  typename C::Shared& s_;
  const int warpgroup_;
  RingPlace<C::kStages> k_, v_;
  PrefillTile tile_;
  int row_[2], first_key_[2], last_key_[2];
  float max_[2], sum_[2];
  float scores_[kScores], out_[kOutputs];
  uint32_t weights_[C::kBlockN / 16][4];
};

template <typename C>
__device__ __forceinline__ void init_prefill_barriers(typename C::Shared& s) {
  constexpr uint32_t kReaders = C::kConsumers * 4;  // warps
  simt::mbarrier_init(s.q_full, 1);
  simt::mbarrier_init(s.q_empty, kReaders);
  simt::mbarrier_init(s.landed, 1);
  for (int i = 0; i < 2 * C::kStages; ++i) {
    simt::mbarrier_init(s.full[i / C::kStages][i % C::kStages], 1);
    simt::mbarrier_init(s.empty[i / C::kStages][i % C::kStages], kReaders);
  }
  simt::mbarrier_fence_init();
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1) prefill_sm90_kernel(const __grid_constant__ PrefillArgs p) {
  auto& s = simt::block_shared<typename C::Shared>();
  if (threadIdx.x == 0) {
    simt::prefetch_tensor_map(p.q);
    simt::prefetch_tensor_map(p.k);
    simt::prefetch_tensor_map(p.v);
    init_prefill_barriers<C>(s);
  }
  __syncthreads();
  simt::grid_dependency_wait();
  if (threadIdx.x < 128) {
    simt::decrease_registers<C::kProducerRegisters>();
    if (threadIdx.x < 32) typename C::Producer(p, s).run();
    simt::grid_dependency_launch();
  } else {
    simt::increase_registers<C::kConsumerRegisters>();
    PrefillConsumer<C>(p, s).run();
  }
}

}  // namespace quire::cuda
