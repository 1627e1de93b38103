// One rank's part of a model: which heads, which columns of the feed-forward network, which rows of the vocabulary.
//
// Decides: what is split and where. Queries, keys, values, gate and up are split by outputs, o and down by inputs, so
// that between them nothing has to be exchanged; embedding and head by tokens; what pools and the layers behind it the
// first rank has; the rest every rank has whole. A shard is an ArchSpec again, with a rank's sizes, so whatever reads
// one (weights, KV cache, decoder) knows nothing of ranks. Pure; load time.
#pragma once

#include <cstdint>

#include "model/arch.h"

namespace quire {

// The part of `rank` when `num_ranks` share a model. Throws InvalidArgument when heads cannot be shared out evenly.
ArchSpec shard_arch(const ArchSpec& whole, int32_t rank, int32_t num_ranks);

// The model that `arch` is a part of; itself with one rank.
inline const ArchSpec& whole_arch(const ArchSpec& arch) {
  return arch.shard.whole != nullptr ? *arch.shard.whole : arch;
}

// Where a rank's part begins in a layer of the whole model.
struct LayerShard {
  int64_t first_head = 0;
  int64_t first_kv_head = 0;
  int64_t ffn_begin = 0;
};
LayerShard layer_shard(const ArchSpec& arch, int32_t layer);

}  // namespace quire
