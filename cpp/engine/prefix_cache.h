// Full blocks of computed tokens, found again by content. Verb: plan.
//
// A node is one full block: (parent node, its tokens, salt) -> BlockRef; a chain of nodes from a root is a prefix. Lookup goes by a
// chained hash and then compares the tokens themselves, so a collision can never give a wrong block. Nodes whose block nobody else holds
// are evictable, least recently used first, leaves before their parents. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/block_pool.h"

namespace quire {

class PrefixCache {
 public:
  PrefixCache(BlockPool& pool, int32_t block_size, bool enabled);
  ~PrefixCache();

  // The longest cached prefix of `tokens` in whole blocks, at most max_blocks of them; marks them as used now.
  std::vector<BlockRef> match(std::span<const int32_t> tokens, uint64_t salt, int32_t max_blocks);
  // Offers the full block number `index` of a sequence (tokens[index * block_size ...]) whose blocks are `blocks`. When an equal block is
  // cached already, the caller's handle is replaced by the cached one only if that is safe for it (it is: contents are equal bit for bit);
  // returns whether the block is in the cache now.
  bool insert(std::span<const int32_t> tokens, uint64_t salt, std::span<BlockRef> blocks, int32_t index);
  // A block for new content: a free one, else the least recently used evictable one. Empty when all are held.
  BlockRef allocate();
  int32_t num_evictable() const;
  int32_t num_cached() const;
  // Drops everything that no sequence holds; true when the cache is empty afterwards.
  bool clear();
  // Checks its own books against the pool (tests; also when the engine goes idle).
  void check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quire
