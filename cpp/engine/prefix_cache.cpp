// A hash table of block contents with its links inside the nodes, so that it never allocates; see prefix_cache.h.
#include "engine/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace quire {

PrefixCache::PrefixCache(BlockPool& pool, int32_t block_size, bool enabled, HashFunction hash)
    : pool_(pool), block_size_(block_size), enabled_(enabled), hash_(hash) {
  QUIRE_CHECK(block_size > 0, "block_size ", block_size);
  if (!enabled) return;
  const auto num_blocks = static_cast<size_t>(pool.num_blocks());
  nodes_.resize(num_blocks);
  tokens_.resize(num_blocks * static_cast<size_t>(block_size));
  buckets_.assign(std::bit_ceil(num_blocks), -1);
}

void PrefixCache::match(std::span<const int32_t> tokens, uint64_t salt, int32_t max_blocks,
                        std::vector<BlockRef>& blocks) {
  QUIRE_CHECK(blocks.empty(), "a prefix is matched from its beginning");
  if (!enabled_) return;
  const auto num_full = static_cast<int32_t>(tokens.size()) / block_size_;
  int32_t parent = -1;
  for (int32_t index = 0; index < std::min(num_full, max_blocks); ++index) {
    const std::span<const int32_t> content = block_tokens(tokens, index);
    const int32_t found = find(hash_of(parent, salt, content), parent, salt, content);
    if (found < 0) return;
    blocks.push_back(pool_.share(found));
    parent = found;
  }
}

bool PrefixCache::insert(std::span<const int32_t> tokens, uint64_t salt, std::span<BlockRef> blocks, int32_t index) {
  if (!enabled_) return false;
  const std::span<const int32_t> content = block_tokens(tokens, index);
  const int32_t parent = index > 0 ? blocks[static_cast<size_t>(index) - 1].id() : -1;
  QUIRE_CHECK(parent < 0 || node(parent).cached, "block ", index, " was offered before the one in front of it");
  BlockRef& block = blocks[static_cast<size_t>(index)];
  const uint64_t hash = hash_of(parent, salt, content);
  const int32_t found = find(hash, parent, salt, content);
  if (found >= 0) {
    if (found != block.id()) block = pool_.share(found);
    return true;
  }
  add(block.id(), hash, parent, salt, content);
  return true;
}

bool PrefixCache::promise(std::span<const int32_t> tokens, uint64_t salt, std::span<const BlockRef> blocks,
                          int32_t index) {
  if (!enabled_) return false;
  const std::span<const int32_t> content = block_tokens(tokens, index);
  const int32_t parent = index > 0 ? blocks[static_cast<size_t>(index) - 1].id() : -1;
  QUIRE_CHECK(parent < 0 || node(parent).cached, "block ", index, " was promised before the one in front of it");
  const uint64_t hash = hash_of(parent, salt, content);
  if (find(hash, parent, salt, content) >= 0) return false;
  add(blocks[static_cast<size_t>(index)].id(), hash, parent, salt, content);
  return true;
}

void PrefixCache::retract(int32_t id) {
  if (!contains(id)) return;
  if (pool_.use_count(id) == 0) {
    evict(id);
    return;
  }
  remove(id);
  pool_.unkeep(id);
}

void PrefixCache::add(int32_t id, uint64_t hash, int32_t parent, uint64_t salt, std::span<const int32_t> tokens) {
  QUIRE_CHECK(!node(id).cached, "block ", id, " is cached with other content");
  node(id) = {.hash = hash, .salt = salt, .parent = parent, .next_in_bucket = bucket(hash), .cached = true};
  bucket(hash) = id;
  std::ranges::copy(tokens, tokens_.begin() + static_cast<int64_t>(id) * block_size_);
  if (parent >= 0) ++node(parent).num_children;
  pool_.keep(id);
  ++num_cached_;
}

BlockRef PrefixCache::allocate() {
  if (pool_.num_free() == 0 && pool_.num_idle() > 0) evict(pool_.oldest_idle());
  return pool_.allocate();
}

bool PrefixCache::clear() {
  while (pool_.num_idle() > 0) evict(pool_.oldest_idle());
  return num_cached_ == 0;
}

void PrefixCache::remove(int32_t id) {
  Node& removed = node(id);
  QUIRE_CHECK(removed.cached && removed.num_children == 0, "block ", id, " goes before its ", removed.num_children,
              " children");
  int32_t* link = &bucket(removed.hash);
  while (*link != id) link = &node(*link).next_in_bucket;
  *link = removed.next_in_bucket;
  if (removed.parent >= 0) --node(removed.parent).num_children;
  removed = {};
  --num_cached_;
}

void PrefixCache::evict(int32_t id) {
  remove(id);
  pool_.drop(id);
}

std::span<const int32_t> PrefixCache::block_tokens(std::span<const int32_t> tokens, int32_t index) const {
  return tokens.subspan(static_cast<size_t>(index) * static_cast<size_t>(block_size_),
                        static_cast<size_t>(block_size_));
}

uint64_t PrefixCache::hash_of(int32_t parent, uint64_t salt, std::span<const int32_t> tokens) const {
  return hash_(parent >= 0 ? node(parent).hash : mix64(salt), tokens);
}

int32_t PrefixCache::find(uint64_t hash, int32_t parent, uint64_t salt, std::span<const int32_t> tokens) const {
  for (int32_t id = buckets_[hash & (buckets_.size() - 1)]; id >= 0; id = node(id).next_in_bucket) {
    const Node& candidate = node(id);
    if (candidate.hash == hash && candidate.parent == parent && candidate.salt == salt &&
        std::ranges::equal(block_tokens(tokens_, id), tokens)) {
      return id;
    }
  }
  return -1;
}

void PrefixCache::check_integrity() const {
  pool_.check_integrity();
  std::vector<int32_t> num_children(nodes_.size(), 0);
  int32_t num_cached = 0;
  for (size_t slot = 0; slot < nodes_.size(); ++slot) {
    const Node& each = nodes_[slot];
    const auto id = static_cast<int32_t>(slot);
    QUIRE_CHECK(each.cached == pool_.is_kept(id), "block ", id, " is kept by the pool: ", pool_.is_kept(id));
    if (!each.cached) continue;
    ++num_cached;
    QUIRE_CHECK(find(each.hash, each.parent, each.salt, block_tokens(tokens_, id)) == id, "node ", id, " is not found");
    if (each.parent < 0) continue;
    QUIRE_CHECK(node(each.parent).cached, "the parent of node ", id, " is gone");
    QUIRE_CHECK(pool_.use_count(each.parent) >= std::min(1, pool_.use_count(id)), "a child outlives parent ",
                each.parent);
    ++num_children[static_cast<size_t>(each.parent)];
  }
  QUIRE_CHECK(num_cached == num_cached_, num_cached, " nodes, counted ", num_cached_);
  for (size_t slot = 0; slot < nodes_.size(); ++slot) {
    QUIRE_CHECK(num_children[slot] == nodes_[slot].num_children, "node ", slot, " has ", num_children[slot],
                " children, counted ", nodes_[slot].num_children);
  }
}

}  // namespace quire
