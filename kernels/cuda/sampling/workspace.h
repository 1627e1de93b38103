// What the kernels of sampling leave for each other: a state, partial results and lists a row.
//
// A row is cut into slices of 4,096 tokens, whatever the batch and the vocabulary are, so that a row's sums are formed
// in one order. All arrays of the workspace are indexed by row first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/sampling.h"

namespace quire::cuda {

constexpr int kSamplingThreads = 256;
constexpr int kSamplingWarps = kSamplingThreads / 32;
constexpr int kGroups = 4;  // groups of four consecutive tokens that a thread holds of a slice
constexpr int kSliceTokens = kSamplingThreads * 4 * kGroups;
constexpr int kNumBins = 2048;       // of the distance from the largest logit: 128 an octave, from 2^-7 to 2^9
constexpr int kMaxListed = 4096;     // candidates of a row that are listed and sorted
constexpr int kMaxRawListed = 1024;  // the same for the most likely tokens of logprobs

// One slice's part of a row. Keys (keys.cuh) order tokens by value, then by id; 0 is "none".
struct SliceStats {
  uint64_t best;   // the largest logit
  uint64_t drawn;  // the largest logit + noise, of rows without filters
  float sum_exp;   // of exp(x - the slice's largest), of rows whose total mass is that of the whole row
  float raw_max;   // of the logits as they came, of rows that want logprobs
  float raw_sum_exp;
  float unused;
};

enum class RowPhase : uint32_t {
  done,    // the token is known
  select,  // candidates are to be found
  draw,    // too many: what lies in the bins before first_bin stays, what lies in [first_bin, end_bin) is to be sorted
  exact,   // too many in these bins, too
};

struct RowState {
  RowPhase phase;
  float max;    // of the edited and divided logits
  float bound;  // whatever is below it is filtered
  float raw_bound;
  float raw_normaliser;
  uint32_t num_listed;
  uint32_t num_raw_listed;
  uint32_t blocks_done;  // of the running kernel
  int32_t first_bin, end_bin;
  uint32_t count_before;  // tokens in the bins before first_bin
  uint32_t unused;
  uint64_t mass_before;
  uint64_t total_mass;  // 0: that of the tokens that top_k lets stay
  uint64_t drawn;       // the best of the bins before first_bin
  uint64_t cut;         // no key below it may be drawn
};

struct SamplingArgs {
  SamplingParamsBlock block;
  int32_t num_slices;
  bool is_wide;  // rows start at multiples of 16 bytes
  bool reports;  // whether this pass over the rows writes logprobs; else they are as rows that want none
  RowState* states;
  SliceStats* stats;        // [row, slice]
  float* run_max;           // [row, slice, warp]
  float* raw_run_max;       // [row, slice, warp]
  uint64_t* bin_masses;     // [row, kNumBins]
  uint32_t* bin_counts;     // [row, kNumBins]
  uint64_t* listed;         // [row, kMaxListed], in no order
  uint64_t* raw_listed;     // [row, kMaxRawListed], in no order
  SamplingRow* reports_of;  // [row], what the second pass of processed logprobs asks for
};

}  // namespace quire::cuda
