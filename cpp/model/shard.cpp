// Sizes of shards; see shard.h.
#include "model/shard.h"

#include <memory>

#include "base/check.h"
#include "params/collective.h"

namespace quire {
namespace {

// Parts that differ by one at most.
int64_t part_begin(int64_t count, int64_t rank, int64_t num_ranks) { return count * rank / num_ranks; }
int64_t part_size(int64_t count, int64_t rank, int64_t num_ranks) {
  return part_begin(count, rank + 1, num_ranks) - part_begin(count, rank, num_ranks);
}

// Every rank has as many heads as the others, and each of them as many queries a key as the whole model has, or fewer
// where several ranks hold the same key.
void check_heads(const AttnSpec& attn, int32_t num_ranks) {
  require(attn.num_heads % num_ranks == 0, str_cat("Total number of attention heads (", attn.num_heads,
                                                   ") must be divisible by tensor parallel size (", num_ranks, ")."));
  require(attn.num_kv_heads % num_ranks == 0 || num_ranks % attn.num_kv_heads == 0,
          str_cat("tensor_parallel_size=", num_ranks, " cannot share out ", attn.num_kv_heads,
                  " key/value heads: one of the two must divide the other."));
}

}  // namespace

ArchSpec shard_arch(const ArchSpec& whole, int32_t rank, int32_t num_ranks) {
  require(num_ranks >= 1 && num_ranks <= kMaxRanks,
          str_cat("tensor_parallel_size must be from 1 to ", kMaxRanks, ", got ", num_ranks));
  if (num_ranks == 1) return whole;
  require(whole.vocab_size >= num_ranks, str_cat("tensor_parallel_size=", num_ranks,
                                                 " cannot share out a vocabulary of ", whole.vocab_size, " tokens."));
  ArchSpec part = whole;
  part.shard = {.rank = rank,
                .num_ranks = num_ranks,
                .vocab_begin = part_begin(whole.vocab_size, rank, num_ranks),
                .vocab_rows = part_size(whole.vocab_size, rank, num_ranks),
                .whole = std::make_shared<const ArchSpec>(whole)};
  part.each_layer([&](LayerSpec& layer) {
    check_heads(layer.attn, num_ranks);
    layer.attn.num_heads /= num_ranks;
    layer.attn.num_kv_heads = std::max(1, layer.attn.num_kv_heads / num_ranks);
    auto& ffn = std::get<DenseFfn>(layer.ffn);
    require(ffn.width >= num_ranks, str_cat("tensor_parallel_size=", num_ranks,
                                            " cannot share out a feed-forward network of ", ffn.width, " columns."));
    ffn.width = part_size(ffn.width, rank, num_ranks);
  });
  return part;
}

LayerShard layer_shard(const ArchSpec& arch, int32_t layer) {
  if (arch.shard.num_ranks == 1 || layer < 0) return {};
  const LayerSpec& whole = whole_arch(arch).layers.at(static_cast<size_t>(layer));
  const int64_t rank = arch.shard.rank, num_ranks = arch.shard.num_ranks;
  return {.first_head = rank * whole.attn.num_heads / num_ranks,
          .first_kv_head = rank * whole.attn.num_kv_heads / num_ranks,
          .ffn_begin = part_begin(std::get<DenseFfn>(whole.ffn).width, rank, num_ranks)};
}

}  // namespace quire
