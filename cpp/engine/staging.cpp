// Buffers and copies; see staging.h.
#include "engine/staging.h"

#include <bit>

#include "base/check.h"

namespace quire {

Staging::Staging(Device& device, size_t num_bytes) : device_(device) { begin(num_bytes); }

void Staging::begin(size_t num_bytes) {
  used_ = 0;
  if (host_ != nullptr && num_bytes <= host_->num_bytes()) return;
  const size_t capacity = host_ == nullptr ? num_bytes : std::bit_ceil(num_bytes);
  std::unique_ptr<Region> region;
  if (device_.is_asynchronous()) region = device_.allocate(RegionTag::workspace, capacity);
  std::unique_ptr<HostBuffer> host = device_.allocate_host(capacity);
  device_.synchronize();
  region_ = std::move(region);
  host_ = std::move(host);
}

void Staging::check_room() const {
  QUIRE_CHECK(used_ <= host_->num_bytes(), "a step's data takes ", used_, " bytes of ", host_->num_bytes());
}

void Staging::send() {
  if (region_ == nullptr || used_ == 0) return;
  device_.copy_async(region_->data(), host_->data(), used_, device_.stream());
}

size_t staged_list_bytes(const SamplingRow& row) {
  return Staging::bytes<int32_t>(row.num_allowed_ids) + Staging::bytes<int32_t>(row.num_banned_ids) +
         Staging::bytes<TokenBias>(row.num_biases) + Staging::bytes<TokenCount>(row.num_counts);
}

SamplingRow with_staged_lists(SamplingRow row, Staging& staging) {
  row.allowed_ids = staging.put(row.allowed_ids, static_cast<size_t>(row.num_allowed_ids));
  row.banned_ids = staging.put(row.banned_ids, static_cast<size_t>(row.num_banned_ids));
  row.biases = staging.put(row.biases, static_cast<size_t>(row.num_biases));
  row.counts = staging.put(row.counts, static_cast<size_t>(row.num_counts));
  return row;
}

void SamplingUpload::reserve(const SamplingBatch& sampling) {
  size_t num_bytes =
      Staging::bytes<SamplingRow>(std::ssize(sampling.rows())) + Staging::bytes<uint32_t>(std::ssize(sampling.masks()));
  for (const SamplingRow& row : sampling.rows()) num_bytes += staged_list_bytes(row);
  staging_.begin(num_bytes);
}

const SamplingRow* SamplingUpload::send(const SamplingBatch& sampling) {
  const std::span<const uint32_t> masks = sampling.masks();
  const auto [rows, device_rows] = staging_.take<SamplingRow>(sampling.rows().size());
  const uint32_t* const device_masks = staging_.put(masks.data(), masks.size());
  for (size_t i = 0; i < sampling.rows().size(); ++i) {
    rows[i] = with_staged_lists(sampling.rows()[i], staging_);
    if (rows[i].allowed_mask != nullptr) rows[i].allowed_mask = device_masks + (rows[i].allowed_mask - masks.data());
  }
  staging_.send();
  return device_rows;
}

}  // namespace quire
