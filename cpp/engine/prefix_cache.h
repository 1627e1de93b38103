// Full blocks of computed tokens, found again by content. Verb: plan.
//
// A node is one full block: (parent node, its tokens, salt); a chain of nodes from a root is a prefix. Lookup goes by a
// chained hash and then compares the tokens themselves, so a collision can never give a wrong block. Blocks that nobody
// holds stay idle in the pool and are evicted least recently held first. Knows token ids, not sequences. Engine thread
// only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"
#include "engine/block_pool.h"

namespace quire {

// Sequences hold a prefix whole and give blocks back last one first. So a parent is held as long as a child is, becomes
// idle after it and is evicted after it: a node's parent is always there, and eviction never searches.
class PrefixCache {
 public:
  // (hash of the parent, tokens of the block) -> hash; tests pass one that always collides.
  using HashFunction = uint64_t (*)(uint64_t parent, std::span<const int32_t> tokens);

  PrefixCache(BlockPool& pool, int32_t block_size, bool enabled, HashFunction hash = &hash_tokens);

  // Appends the longest cached prefix of `tokens` in whole blocks, at most max_blocks of them, to the empty `blocks`.
  void match(std::span<const int32_t> tokens, uint64_t salt, int32_t max_blocks, std::vector<BlockRef>& blocks);
  // Offers full block number `index` of a sequence (tokens[index * block_size ...]) whose blocks are `blocks`; those
  // before it were offered already. When an equal block is cached, the caller's handle is replaced by that one: equal
  // content is equal bit for bit. Returns whether the block is in the cache now.
  bool insert(std::span<const int32_t> tokens, uint64_t salt, std::span<BlockRef> blocks, int32_t index);
  // Offers a block that the step being planned will fill, so that others of the same step can have it. False, and
  // nothing changes, when an equal one is cached: insert() tells the two apart once both are computed.
  bool promise(std::span<const int32_t> tokens, uint64_t salt, std::span<const BlockRef> blocks, int32_t index);
  // Takes back what was promised, held or not, the newest first; nothing when the block is not cached any more.
  void retract(int32_t id);
  // Whether the block is in the cache.
  bool contains(int32_t id) const { return enabled_ && node(id).cached; }
  // A block for new content: a free one, else the least recently held idle one. Empty when all are held.
  BlockRef allocate();

  bool enabled() const { return enabled_; }
  int32_t num_evictable() const { return pool_.num_idle(); }
  int32_t num_allocatable() const { return pool_.num_free() + pool_.num_idle(); }
  int32_t num_cached() const { return num_cached_; }  // held or evictable
  // Drops everything that no sequence holds; true when the cache is empty afterwards.
  bool clear();
  // Checks its own books against the pool (tests; also when the engine goes idle). Throws InternalError.
  void check_integrity() const;

 private:
  // Of the block with the same id.
  struct Node {
    uint64_t hash = 0;
    uint64_t salt = 0;
    int32_t parent = -1;  // -1: a root
    int32_t next_in_bucket = -1;
    int32_t num_children = 0;
    bool cached = false;
  };

  Node& node(int32_t id) { return nodes_[static_cast<size_t>(id)]; }
  const Node& node(int32_t id) const { return nodes_[static_cast<size_t>(id)]; }
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  std::span<const int32_t> block_tokens(std::span<const int32_t> tokens, int32_t index) const;
  uint64_t hash_of(int32_t parent, uint64_t salt, std::span<const int32_t> tokens) const;
  // The node with this content, -1 when there is none.
  int32_t find(uint64_t hash, int32_t parent, uint64_t salt, std::span<const int32_t> tokens) const;
  // A node in front of which lies `parent`, of the held block `id`.
  void add(int32_t id, uint64_t hash, int32_t parent, uint64_t salt, std::span<const int32_t> tokens);
  void remove(int32_t id);
  void evict(int32_t id);

  BlockPool& pool_;
  int32_t block_size_;
  bool enabled_;
  HashFunction hash_;
  std::vector<Node> nodes_;       // [num_blocks]
  std::vector<int32_t> tokens_;   // [num_blocks, block_size]
  std::vector<int32_t> buckets_;  // [a power of two]; first node of each, -1: none
  int32_t num_cached_ = 0;
};

}  // namespace quire
