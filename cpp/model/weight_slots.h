// The slots of an architecture as a list: each matrix and vector with its size and the field of Weights it lives in.
//
// Decides: which slots an ArchSpec has. Placement, loading, dummy values and counting are loops over this list, so that
// none of them can forget a slot. Fused slots appear once: q, k, v as Slot::qkv; gate, up as Slot::gate_up (an ungated
// feed-forward's up projection too); likewise their biases. A tied head is no slot of
// its own, unless it is int8 and so a copy of the embedding.
#pragma once

#include <cstdint>
#include <vector>

#include "model/weights.h"

namespace quire {

struct WeightSlot {
  Slot slot = Slot::embedding;
  int32_t layer = -1;  // -1: not of a layer
  int64_t rows = 0;
  int64_t cols = 0;  // 0: a float32 vector of `rows` elements
  bool gated = false;
  bool plus_one = false;
  int64_t num_stored = 0;    // elements that a checkpoint has for it, where these are not `rows`
  DType dtype = DType::f32;  // of a matrix
  PackedWeight* matrix = nullptr;
  float** vector = nullptr;

  int64_t num_elements() const { return num_stored > 0 ? num_stored : cols == 0 ? rows : rows * cols; }
};

// In weights.format. Resizes weights.layers; the pointers point into `weights`.
std::vector<WeightSlot> weight_slots(const ArchSpec& arch, Weights& weights);

}  // namespace quire
