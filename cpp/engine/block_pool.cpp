// Counts, the stack of free blocks and the ring of idle ones; see block_pool.h.
#include "engine/block_pool.h"

#include <exception>

#include "base/check.h"
#include "base/log.h"

namespace quire {

BlockRef::BlockRef(const BlockRef& other) noexcept : pool_(other.pool_), id_(other.id_) {
  if (pool_ != nullptr) pool_->retain(id_);
}

BlockRef::~BlockRef() {
  if (pool_ != nullptr) pool_->release(id_);
}

int32_t BlockRef::use_count() const { return pool_ != nullptr ? pool_->use_count(id_) : 0; }

BlockPool::BlockPool(int32_t num_blocks) {
  QUIRE_CHECK(num_blocks > 0, "a pool of ", num_blocks, " blocks");
  const auto count = static_cast<size_t>(num_blocks);
  use_counts_.assign(count, 0);
  kept_.assign(count, 0);
  links_.assign(count + 1, {-1, -1});
  link(num_blocks) = {num_blocks, num_blocks};
  free_ids_.reserve(count);
  for (int32_t id = num_blocks - 1; id >= 0; --id) free_ids_.push_back(id);
}

BlockPool::~BlockPool() {
  if (num_held() == 0) return;
  log_message(LogLevel::error, str_cat("a block pool ends while ", num_held(), " of its blocks are still held"));
  std::terminate();
}

BlockRef BlockPool::allocate() {
  if (free_ids_.empty()) return {};
  const int32_t id = free_ids_.back();
  free_ids_.pop_back();
  use_counts_[static_cast<size_t>(id)] = 1;
  return {this, id};
}

BlockRef BlockPool::share(int32_t id) {
  if (use_count(id) == 0) {
    QUIRE_CHECK(is_kept(id), "block ", id, " is free");
    unlink(id);
  }
  retain(id);
  return {this, id};
}

void BlockPool::keep(int32_t id) {
  QUIRE_CHECK(use_count(id) > 0, "block ", id, " is not held");
  kept_[static_cast<size_t>(id)] = 1;
}

void BlockPool::unkeep(int32_t id) {
  QUIRE_CHECK(use_count(id) > 0 && is_kept(id), "block ", id, " is not held and kept: count ", use_count(id));
  kept_[static_cast<size_t>(id)] = 0;
}

void BlockPool::drop(int32_t id) {
  QUIRE_CHECK(use_count(id) == 0 && is_kept(id), "block ", id, " is not idle: count ", use_count(id));
  unlink(id);
  kept_[static_cast<size_t>(id)] = 0;
  free_ids_.push_back(id);
}

int32_t BlockPool::oldest_idle() const { return num_idle_ > 0 ? links_.back().next : -1; }

void BlockPool::release(int32_t id) {
  if (--use_counts_[static_cast<size_t>(id)] > 0) return;
  if (!is_kept(id)) {
    free_ids_.push_back(id);
    return;
  }
  const int32_t anchor = num_blocks();
  const int32_t newest = link(anchor).previous;
  link(id) = {newest, anchor};
  link(newest).next = id;
  link(anchor).previous = id;
  ++num_idle_;
}

void BlockPool::unlink(int32_t id) {
  const auto [previous, next] = link(id);
  link(previous).next = next;
  link(next).previous = previous;
  link(id) = {-1, -1};
  --num_idle_;
}

void BlockPool::check_integrity() const {
  enum State : uint8_t { unseen, free, idle };
  std::vector<State> states(use_counts_.size(), unseen);
  for (const int32_t id : free_ids_) {
    QUIRE_CHECK(states[static_cast<size_t>(id)] == unseen, "block ", id, " is free twice");
    QUIRE_CHECK(use_count(id) == 0 && !is_kept(id), "block ", id, " is free, but its count is ", use_count(id));
    states[static_cast<size_t>(id)] = free;
  }
  int32_t count = 0;
  for (int32_t id = links_.back().next; id != num_blocks(); id = links_[static_cast<size_t>(id)].next) {
    QUIRE_CHECK(states[static_cast<size_t>(id)] == unseen, "block ", id, " is idle, and free or idle a second time");
    QUIRE_CHECK(use_count(id) == 0 && is_kept(id), "block ", id, " is idle, but its count is ", use_count(id));
    states[static_cast<size_t>(id)] = idle;
    ++count;
  }
  QUIRE_CHECK(count == num_idle_, count, " idle blocks are linked, ", num_idle_, " counted");
  for (int32_t id = 0; id < num_blocks(); ++id) {
    const bool held = use_count(id) > 0;
    QUIRE_CHECK(held == (states[static_cast<size_t>(id)] == unseen), "block ", id, " is lost: count ", use_count(id));
  }
}

}  // namespace quire
