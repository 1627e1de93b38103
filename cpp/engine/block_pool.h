// A fixed set of KV block ids and the counted handle through which they are held. Verb: plan.
//
// A block is free (no content), held (by one handle or more) or idle (nobody holds it, its content is kept for whoever
// asks for it again). Copying a BlockRef shares the block, destroying the last one gives it back: nobody calls free().
// The pool knows ids only, not what is in the blocks. Engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace quire {

class BlockPool;

class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(const BlockRef& other) noexcept;
  BlockRef(BlockRef&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(std::exchange(other.id_, -1)) {}
  BlockRef& operator=(BlockRef other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~BlockRef();

  explicit operator bool() const { return pool_ != nullptr; }
  int32_t id() const { return id_; }
  int32_t use_count() const;

 private:
  friend class BlockPool;
  BlockRef(BlockPool* pool, int32_t id) : pool_(pool), id_(id) {}  // takes over one count
  BlockPool* pool_ = nullptr;
  int32_t id_ = -1;
};

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool();  // every handle must be gone; a handle without its pool would be a dangling pointer, so this terminates

  // A free block, or an empty handle when there is none.
  BlockRef allocate();
  // One more handle on a block that is held or idle.
  BlockRef share(int32_t id);

  // From now on the held block becomes idle, not free, when its last handle goes.
  void keep(int32_t id);
  // Undoes keep(); the block is held.
  void unkeep(int32_t id);
  // Frees an idle block: its content is given up.
  void drop(int32_t id);
  // The block that has been idle longest, -1 when there is none.
  int32_t oldest_idle() const;

  int32_t num_blocks() const { return static_cast<int32_t>(use_counts_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_ids_.size()); }
  int32_t num_idle() const { return num_idle_; }
  int32_t num_held() const { return num_blocks() - num_free() - num_idle(); }
  int32_t use_count(int32_t id) const { return use_counts_[static_cast<size_t>(id)]; }
  bool is_kept(int32_t id) const { return kept_[static_cast<size_t>(id)] != 0; }
  // The idle list against the counts, and every block in exactly one state. Throws InternalError.
  void check_integrity() const;

 private:
  friend class BlockRef;
  struct Link {
    int32_t previous, next;
  };
  void retain(int32_t id) { ++use_counts_[static_cast<size_t>(id)]; }
  void release(int32_t id);
  void unlink(int32_t id);
  Link& link(int32_t id) { return links_[static_cast<size_t>(id)]; }

  std::vector<int32_t> use_counts_;  // [num_blocks]
  std::vector<uint8_t> kept_;        // [num_blocks]
  std::vector<int32_t> free_ids_;    // a stack: the block freed last is taken first, its memory is warm
  std::vector<Link> links_;  // [num_blocks + 1], the ring of idle blocks, oldest first; the last entry is its anchor
  int32_t num_idle_ = 0;
};

}  // namespace quire
