// The plan of an offload and the copies of a step; see layer_offload.h.
#include "model/layer_offload.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace quire {
namespace {

// One is read while the other is filled.
constexpr int32_t kSlots = 2;

// The last layer of each of `count` equal parts: there is time to fetch the first one.
std::vector<int32_t> spread(size_t count, size_t num_layers) {
  std::vector<int32_t> layers;
  for (size_t i = 1; i <= count; ++i) layers.push_back(static_cast<int32_t>(i * num_layers / count) - 1);
  return layers;
}

}  // namespace

OffloadPlan plan_offload(const ArchSpec& arch, WeightFormat format, const KernelTable& kernels, int64_t num_bytes) {
  if (num_bytes <= 0) return {};
  const std::vector<size_t> sizes = layer_weight_bytes(arch, format, kernels);
  OffloadPlan plan;
  for (size_t count = 1; count <= sizes.size(); ++count) {
    plan.layers = spread(count, sizes.size());
    plan.layer_bytes.clear();
    for (const int32_t layer : plan.layers) plan.layer_bytes.push_back(sizes[static_cast<size_t>(layer)]);
    if (plan.host_bytes() >= static_cast<size_t>(num_bytes)) break;
  }
  if (plan.empty()) return plan;
  plan.num_slots = std::min(kSlots, static_cast<int32_t>(plan.layers.size()));
  plan.slot_bytes = *std::ranges::max_element(plan.layer_bytes);
  return plan;
}

OffloadedLayers::OffloadedLayers(Device& device, OffloadPlan plan, std::byte* slots)
    : device_(device), plan_(std::move(plan)), slots_(slots), unread_(device.make_event()) {
  restore();
  for (int32_t i = 0; i < plan_.num_slots; ++i) copied_.push_back(device.make_event());
}

void OffloadedLayers::drop() {
  device_.synchronize();
  host_.clear();
}

void OffloadedLayers::restore() {
  if (!host_.empty()) return;
  std::vector<std::unique_ptr<HostBuffer>> host;
  for (const size_t num_bytes : plan_.layer_bytes) host.push_back(device_.allocate_host(num_bytes));
  host_ = std::move(host);  // all or none
}

void OffloadedLayers::store(int32_t layer) {
  const int32_t ordinal = plan_.ordinal(layer);
  if (ordinal < 0) return;
  HostBuffer& host = *host_[static_cast<size_t>(ordinal)];
  device_.copy_async(host.data(), slots_ + slot_of(ordinal) * plan_.slot_bytes, host.num_bytes(), device_.stream());
}

void OffloadedLayers::bring(int32_t layer) {
  const HostBuffer& host = host_memory(layer);
  const size_t slot = slot_of(plan_.ordinal(layer));
  device_.copy_async(slots_ + slot * plan_.slot_bytes, host.data(), host.num_bytes(), device_.stream());
}

void OffloadedLayers::fetch(int32_t ordinal) {
  const size_t slot = slot_of(ordinal);
  const HostBuffer& host = *host_[static_cast<size_t>(ordinal)];
  device_.copy_async(slots_ + slot * plan_.slot_bytes, host.data(), host.num_bytes(), device_.copy_stream());
  copied_[slot]->record(device_.copy_stream());
}

void OffloadedLayers::begin_step() {
  // The step before has read all slots by then.
  unread_->record(device_.stream());
  device_.wait_for(device_.copy_stream(), *unread_);
  for (int32_t ordinal = 0; ordinal < plan_.num_slots; ++ordinal) fetch(ordinal);
}

void OffloadedLayers::acquire(int32_t layer) {
  const int32_t ordinal = plan_.ordinal(layer);
  if (ordinal >= 0) device_.wait_for(device_.stream(), *copied_[slot_of(ordinal)]);
}

void OffloadedLayers::release(int32_t layer) {
  const int32_t ordinal = plan_.ordinal(layer);
  const int32_t next = ordinal + plan_.num_slots;
  if (ordinal < 0 || next >= static_cast<int32_t>(host_.size())) return;
  unread_->record(device_.stream());
  device_.wait_for(device_.copy_stream(), *unread_);
  fetch(next);
}

}  // namespace quire
