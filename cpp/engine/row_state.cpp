// Layouts and copies of a step's data; see row_state.h.
#include "engine/row_state.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/placer.h"

namespace quire {
namespace {

constexpr size_t kPartAlignment = 16;
constexpr size_t kFirstListBytes = size_t{64} << 10;

size_t part_bytes(size_t num_bytes) { return (num_bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment; }

int64_t blocks_of(const SchedulerOptions& options) {
  return (options.max_model_len + options.block_size - 1) / options.block_size;
}

// The largest step: every row is new, with all its blocks and other sampling parameters.
size_t inbox_capacity(const SchedulerOptions& options) {
  const auto seqs = static_cast<size_t>(options.max_num_seqs);
  const auto tokens = static_cast<size_t>(options.max_num_batched_tokens);
  const auto blocks = static_cast<size_t>(blocks_of(options));
  return part_bytes(sizeof(int32_t)) + 2 * part_bytes(seqs * sizeof(int32_t)) +
         part_bytes((seqs + 1) * sizeof(int32_t)) + part_bytes(tokens * sizeof(int32_t)) +
         part_bytes(seqs * sizeof(RowUpdate)) + part_bytes(seqs * blocks * sizeof(int32_t)) +
         part_bytes(seqs * sizeof(SamplingRowUpdate));
}

size_t list_bytes(const SamplingRow& row) {
  const auto bytes = [](int32_t count, size_t size) { return part_bytes(static_cast<size_t>(count) * size); };
  return bytes(row.num_allowed_ids, sizeof(int32_t)) + bytes(row.num_banned_ids, sizeof(int32_t)) +
         bytes(row.num_biases, sizeof(TokenBias)) + bytes(row.num_counts, sizeof(TokenCount));
}

}  // namespace

size_t place_row_buffers(const SchedulerOptions& options, std::byte* base, RowBuffers& buffers) {
  Placer placer(base);
  const int64_t seqs = options.max_num_seqs, tokens = options.max_num_batched_tokens, blocks = blocks_of(options);
  buffers.rows.last_token_ids = placer.take<int32_t>(seqs);
  buffers.rows.num_computed = placer.take<int32_t>(seqs);
  buffers.rows.num_prompt = placer.take<int32_t>(seqs);
  buffers.rows.tables = placer.take<int32_t>(seqs * blocks);
  buffers.rows.table_stride = blocks;
  buffers.rows.sampling = placer.take<SamplingRow>(seqs);
  buffers.token_ids = placer.take<int32_t>(seqs);
  buffers.query_start = placer.take<int32_t>(seqs + 1);
  buffers.positions = placer.take<int32_t>(tokens);
  buffers.slot_mapping = placer.take<int32_t>(tokens);
  buffers.kv_lens = placer.take<int32_t>(seqs);
  buffers.block_tables = placer.take<int32_t>(seqs * blocks);
  buffers.sample_token_rows = placer.take<int32_t>(seqs);
  buffers.sample_rows = placer.take<int32_t>(seqs);
  buffers.sampling = placer.take<SamplingRow>(seqs);
  buffers.inbox_bytes = inbox_capacity(options);
  buffers.inbox = placer.take<std::byte>(static_cast<int64_t>(buffers.inbox_bytes));
  return placer.used();
}

// Puts arrays one after the other into host memory and tells where they will lie on the device.
class RowState::Packer {
 public:
  Packer(const HostBuffer& host, std::byte* device) : host_(host), device_(device) {}

  // Room for `count` elements: where the host writes them, and where the device will read them.
  template <typename T>
  std::pair<T*, T*> take(size_t count) {
    const size_t begin = used_;
    used_ += part_bytes(count * sizeof(T));
    QUIRE_CHECK(used_ <= host_.num_bytes(), "a step's data takes ", used_, " bytes of ", host_.num_bytes());
    return {reinterpret_cast<T*>(host_.data() + begin), reinterpret_cast<T*>(device_ + begin)};
  }
  template <typename T>
  T* put(const T* values, size_t count) {
    const auto [host, device] = take<T>(count);
    if (count > 0) std::memcpy(host, values, count * sizeof(T));
    return device;
  }
  template <typename T>
  T* put(const std::vector<T>& values) {
    return put(values.data(), values.size());
  }
  size_t used() const { return used_; }

 private:
  const HostBuffer& host_;
  std::byte* device_;
  size_t used_ = 0;
};

RowState::RowState(Device& device, const SchedulerOptions& options, const RowBuffers& buffers)
    : device_(device), block_size_(options.block_size), table_stride_(blocks_of(options)), buffers_(buffers) {
  for (Slot& slot : slots_) slot.inbox = device.allocate_host(buffers.inbox_bytes);
  reserve_lists(kFirstListBytes);
}

// Both slots get the room, so that the addresses on the device are the same for every step.
void RowState::reserve_lists(size_t num_bytes) {
  if (lists_ != nullptr && num_bytes <= lists_->num_bytes()) return;
  const size_t capacity = std::bit_ceil(num_bytes);
  std::unique_ptr<Region> lists = device_.allocate(RegionTag::workspace, capacity);
  std::array<std::unique_ptr<HostBuffer>, kSlots> staging;
  for (auto& buffer : staging) buffer = device_.allocate_host(capacity);
  device_.synchronize();  // steps under way read the old ones
  lists_ = std::move(lists);
  for (size_t i = 0; i < kSlots; ++i) slots_[i].lists = std::move(staging[i]);
}

void RowState::reserve_masks(size_t num_bytes) {
  if (num_bytes == 0 || (masks_ != nullptr && num_bytes <= masks_->num_bytes())) return;
  const size_t capacity = std::bit_ceil(num_bytes);
  std::unique_ptr<Region> masks = device_.allocate(RegionTag::workspace, capacity);
  std::unique_ptr<HostBuffer> staging = device_.allocate_host(capacity);
  device_.synchronize();  // a step under way may read the old ones
  masks_ = std::move(masks);
  mask_staging_ = std::move(staging);
}

void RowState::upload_masks(const SamplingBatch& sampling) {
  const std::span<const uint32_t> masks = sampling.masks();
  if (masks.empty()) return;
  std::memcpy(mask_staging_->data(), masks.data(), masks.size_bytes());
  device_.copy_async(masks_->data(), mask_staging_->data(), masks.size_bytes(), device_.stream());
}

void RowState::upload(const Batch& batch, const SamplingBatch& sampling) {
  size_t needed = 0;
  for (const SamplingRow& row : sampling.rows()) needed += list_bytes(row);
  reserve_lists(needed);
  reserve_masks(sampling.masks().size_bytes());
  Slot& slot = slots_[next_slot_];
  next_slot_ = (next_slot_ + 1) % kSlots;
  Packer packer(*slot.inbox, buffers_.inbox);
  pack_batch(batch, packer);
  UpdateRowsParams update = {.rows = buffers_.rows,
                             .updates = packer.put(batch.row_updates),
                             .num_updates = static_cast<int32_t>(batch.row_updates.size()),
                             .block_ids = packer.put(batch.row_block_ids),
                             .num_sampling = static_cast<int32_t>(sampling.rows().size())};
  update.sampling = pack_sampling(sampling, packer, slot);
  device_.copy_async(buffers_.inbox, slot.inbox->data(), packer.used(), device_.stream());
  if (update.num_updates + update.num_sampling > 0) device_.kernels().update_rows(update, device_.stream());
}

void RowState::pack_batch(const Batch& batch, Packer& packer) {
  const int32_t num_seqs = batch.num_seqs();
  inbox_ = {};
  // These two are at the same place in every step: captured graphs read them.
  inbox_.num_seqs = packer.put(&num_seqs, 1);
  inbox_.seq_rows = packer.put(batch.rows);
  if (batch.feeds_itself()) return;
  inbox_.query_start = packer.put(batch.query_start);
  inbox_.token_ids = packer.put(batch.token_ids);
  const auto [host, device] = packer.take<int32_t>(static_cast<size_t>(num_seqs));
  std::fill_n(host, num_seqs, -1);
  for (size_t i = 0; i < batch.sample_seqs.size(); ++i) host[batch.sample_seqs[i]] = static_cast<int32_t>(i);
  inbox_.sample_of_seq = device;
}

const SamplingRowUpdate* RowState::pack_sampling(const SamplingBatch& sampling, Packer& packer, Slot& slot) {
  const auto [updates, device] = packer.take<SamplingRowUpdate>(sampling.rows().size());
  Packer lists(*slot.lists, lists_->data());
  for (size_t i = 0; i < sampling.rows().size(); ++i) {
    SamplingRow row = sampling.rows()[i];
    row.allowed_ids = lists.put(row.allowed_ids, static_cast<size_t>(row.num_allowed_ids));
    row.banned_ids = lists.put(row.banned_ids, static_cast<size_t>(row.num_banned_ids));
    row.biases = lists.put(row.biases, static_cast<size_t>(row.num_biases));
    row.counts = lists.put(row.counts, static_cast<size_t>(row.num_counts));
    if (row.allowed_mask != nullptr) {
      row.allowed_mask =
          reinterpret_cast<const uint32_t*>(masks_->data()) + (row.allowed_mask - sampling.masks().data());
    }
    updates[i] = {sampling.device_rows()[i], row};
  }
  if (lists.used() > 0) device_.copy_async(lists_->data(), slot.lists->data(), lists.used(), device_.stream());
  return device;
}

DeviceBatch RowState::prepare(const StepShape& shape) const {
  int32_t* const token_ids = shape.feeds_itself ? buffers_.token_ids : inbox_.token_ids;
  int32_t* const query_start = shape.feeds_itself ? buffers_.query_start : inbox_.query_start;
  device_.kernels().prepare_batch({.rows = buffers_.rows,
                                   .block_size = block_size_,
                                   .num_seqs = inbox_.num_seqs,
                                   .seq_rows = inbox_.seq_rows,
                                   .max_seqs = static_cast<int32_t>(shape.num_seqs),
                                   .sample_of_seq = shape.feeds_itself ? nullptr : inbox_.sample_of_seq,
                                   .token_ids = token_ids,
                                   .positions = buffers_.positions,
                                   .slot_mapping = buffers_.slot_mapping,
                                   .kv_lens = buffers_.kv_lens,
                                   .query_start = query_start,
                                   .block_tables = buffers_.block_tables,
                                   .block_table_stride = table_stride_,
                                   .sample_token_rows = buffers_.sample_token_rows,
                                   .sample_rows = buffers_.sample_rows,
                                   .sampling = buffers_.sampling},
                                  device_.stream());
  return {.num_tokens = shape.num_tokens,
          .num_seqs = shape.num_seqs,
          .num_samples = shape.num_samples,
          .max_kv_len = shape.max_kv_len,
          .token_ids = token_ids,
          .positions = buffers_.positions,
          .slot_mapping = buffers_.slot_mapping,
          .query_start = query_start,
          .kv_lens = buffers_.kv_lens,
          .block_tables = buffers_.block_tables,
          .block_table_stride = table_stride_,
          .sample_token_rows = buffers_.sample_token_rows};
}

void RowState::store_sampled(const int32_t* token_ids, int64_t num_samples) const {
  device_.kernels().store_sampled({.rows = buffers_.rows,
                                   .sample_rows = buffers_.sample_rows,
                                   .token_ids = token_ids,
                                   .num_samples = static_cast<int32_t>(num_samples)},
                                  device_.stream());
}

}  // namespace quire
