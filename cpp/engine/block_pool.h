// A fixed set of KV block ids and the counted handle through which they are held. Verb: plan.
//
// Copying a BlockRef shares the block, destroying the last one gives it back: nobody calls free(). The pool knows ids
// only. Engine thread only.
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
  ~BlockPool();  // checks that every handle is gone

  // A block nobody holds, or an empty handle when there is none.
  BlockRef allocate();
  int32_t num_blocks() const { return static_cast<int32_t>(use_counts_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_ids_.size()); }
  int32_t use_count(int32_t id) const { return use_counts_[static_cast<size_t>(id)]; }

 private:
  friend class BlockRef;
  void retain(int32_t id) { ++use_counts_[static_cast<size_t>(id)]; }
  void release(int32_t id);

  std::vector<int32_t> use_counts_;  // [num_blocks]
  std::vector<int32_t> free_ids_;    // a stack: the block freed last is taken first, its memory is warm
};

}  // namespace quire
