// Writing, keeping and putting back; see weight_update.h.
#include "model/weight_update.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "model/token_labels.h"
#include "model/weight_slots.h"

namespace quire {

namespace {

const BoundRule* bind_one(const CheckpointTensor& tensor, const ArchSpec& arch, TensorBinder& binder) {
  const BoundRule* entry = binder.bind(tensor);
  if (!is_label_source(tensor.name, arch)) return entry;
  if (std::string problem = label_source_problem(tensor, arch); !problem.empty()) binder.refuse(std::move(problem));
  return entry;
}

}  // namespace

WeightUpdate::WeightUpdate(const WeightAccess& access, bool keeps_old, Extent extent)
    : access_(access),
      keeps_old_(keeps_old),
      writer_(make_weight_writer(access.arch, access.device, access.weights, extent)),
      binder_(access.arch, access.weights.spelling, extent) {
  access_.device.synchronize();  // nothing reads what is about to change
  // Pages that are written one by one would be copied one by one, and never be large ones.
  if (access_.region != nullptr) access_.region->copy_file();
}

WeightUpdate::~WeightUpdate() = default;

void WeightUpdate::add(const CheckpointTensor& tensor) {
  const BoundRule* entry = bind_one(tensor, access_.arch, binder_);
  if (binder_.has_misfits()) return;
  if (entry != nullptr) write(*entry);
  write_labels(tensor);
}

void WeightUpdate::write(const BoundRule& entry) {
  visit_layer(entry.layer);
  if (keeps_old_) keep(entry);
  wrote_ = true;
  writer_->write(entry);
}

// A classifier that is made of rows of the head for text follows it.
void WeightUpdate::write_labels(const CheckpointTensor& tensor) {
  if (!is_label_source(tensor.name, access_.arch)) return;
  const std::vector<float> labels = label_weights(tensor, access_.arch);
  const int64_t cols = access_.arch.hidden;
  const CheckpointTensor made = {
      "score.weight", DType::f32, {static_cast<int64_t>(labels.size()) / cols, cols}, labels.data()};
  if (const BoundRule* entry = binder_.bind(made); entry != nullptr) write(*entry);
}

// The weights of an offloaded layer pass through a slot, which they leave when another layer's come.
void WeightUpdate::visit_layer(int32_t layer) {
  const bool is_offloaded = access_.offload != nullptr && access_.offload->plan().ordinal(layer) >= 0;
  const int32_t wanted = is_offloaded ? layer : -1;
  if (access_.offload == nullptr || wanted == offloaded_layer_ || (!is_offloaded && layer >= 0)) return;
  if (offloaded_layer_ >= 0) {
    writer_->flush();
    access_.offload->store(offloaded_layer_);
  }
  if (is_offloaded) {
    if (keeps_old_) {
      const HostBuffer& host = access_.offload->host_memory(layer);
      access_.device.synchronize();
      keep_bytes(host.data(), host.num_bytes(), true);
    }
    access_.offload->bring(layer);
  }
  offloaded_layer_ = wanted;
}

void WeightUpdate::keep(const BoundRule& entry) {
  if (access_.offload != nullptr && access_.offload->plan().ordinal(entry.layer) >= 0) return;  // kept as a whole
  for (const WeightSlot* slot : writer_->slots_of(entry)) {
    if (slot->matrix == nullptr) {
      keep_bytes(reinterpret_cast<std::byte*>(*slot->vector), static_cast<size_t>(slot->rows) * sizeof(float), false);
      continue;
    }
    const PackedWeight& weight = *slot->matrix;
    keep_bytes(static_cast<std::byte*>(weight.data),
               access_.device.kernels().packed_weight_bytes(weight.rows, weight.cols, weight.dtype, weight.gated),
               false);
  }
}

void WeightUpdate::keep_bytes(std::byte* place, size_t num_bytes, bool is_host) {
  if (std::ranges::any_of(kept_, [&](const Kept& kept) { return kept.place == place; })) return;
  Kept& kept = kept_.emplace_back(Kept{.place = place, .is_host = is_host, .bytes = std::vector<std::byte>(num_bytes)});
  if (is_host) {
    std::memcpy(kept.bytes.data(), place, num_bytes);
  } else {
    access_.device.copy_to_host(kept.bytes.data(), place, num_bytes);
  }
}

void WeightUpdate::finish() {
  writer_->flush();
  if (offloaded_layer_ >= 0) access_.offload->store(std::exchange(offloaded_layer_, -1));
  access_.device.synchronize();
}

void WeightUpdate::complete(WeightState& state) const {
  if (!state.is_incomplete) return;
  if (state.missing.empty()) state.missing = writer_->unfilled();
  for (auto& [slot, rows] : state.missing) rows.intersect(writer_->unfilled().at(slot));
  if (!std::ranges::all_of(state.missing, [](const auto& item) { return item.second.empty(); })) return;
  state.is_incomplete = false;
  state.missing.clear();
}

bool WeightUpdate::undo() {
  if (!wrote_) return true;
  if (!keeps_old_) return false;
  writer_->flush();
  access_.device.synchronize();
  for (const Kept& kept : kept_) {
    if (kept.is_host) {
      std::memcpy(kept.place, kept.bytes.data(), kept.bytes.size());
    } else {
      access_.device.copy_to_device(kept.place, kept.bytes.data(), kept.bytes.size());
    }
  }
  return true;
}

namespace {

// What undo() says of all ranks. One that fails has said so by what it threw before, which is the error to tell.
bool undo_all(const WeightRanks& ranks, const std::vector<std::unique_ptr<WeightUpdate>>& updates) {
  std::vector<char> is_undone(updates.size(), 0);
  try {
    ranks.each([&](size_t rank) { is_undone[rank] = updates[rank] == nullptr || updates[rank]->undo(); });
  } catch (const std::exception&) {
    return false;
  }
  return std::ranges::all_of(is_undone, [](char undone) { return undone != 0; });
}

using Updates = std::vector<std::unique_ptr<WeightUpdate>>;

// What write(updates) does, with all that is around it.
template <typename Write>
void update_all(const WeightRanks& ranks, Extent extent, bool atomic, const Write& write) {
  Updates updates(ranks.all.size());
  try {
    ranks.each([&](size_t rank) {
      const WeightAccess& access = ranks.all[rank];
      // Of what is not whole nothing is kept.
      updates[rank] = std::make_unique<WeightUpdate>(access, atomic && !access.state.is_incomplete, extent);
    });
    write(updates);
    ranks.each([&](size_t rank) { updates[rank]->finish(); });
  } catch (...) {
    if (!undo_all(ranks, updates)) {
      for (const WeightAccess& access : ranks.all) {
        access.state.forget();
        ++access.state.version;
      }
    }
    throw;
  }
  for (size_t rank = 0; rank < updates.size(); ++rank) {
    updates[rank]->complete(ranks.all[rank].state);
    ++ranks.all[rank].state.version;
  }
}

}  // namespace

void update_weights(const WeightRanks& ranks, const NextTensor& next, bool atomic) {
  update_all(ranks, Extent::whole, atomic, [&](Updates& updates) {
    CheckpointTensor tensor;
    while (next(tensor)) ranks.each([&](size_t rank) { updates[rank]->add(tensor); });
    updates.front()->check();
  });
}

void update_shards(const WeightRanks& ranks, const std::vector<std::vector<CheckpointTensor>>& shards) {
  QUIRE_CHECK(shards.size() == ranks.all.size(), shards.size(), " shards for ", ranks.all.size(), " ranks");
  for (size_t rank = 0; rank < shards.size(); ++rank) check_tensors(ranks.all[rank], shards[rank], Extent::shard);
  update_all(ranks, Extent::shard, true, [&](Updates& updates) {
    ranks.each([&](size_t rank) {
      for (const CheckpointTensor& tensor : shards[rank]) updates[rank]->add(tensor);
      updates[rank]->check();
    });
  });
}

void check_tensors(const WeightAccess& access, const std::vector<CheckpointTensor>& tensors, Extent extent) {
  TensorBinder binder(access.arch, access.weights.spelling, extent);
  for (const CheckpointTensor& tensor : tensors) bind_one(tensor, access.arch, binder);
  binder.throw_if_misfits();
}

void reload_weights(const WeightRanks& ranks, const Checkpoint* checkpoint) {
  if (checkpoint != nullptr)
    (void)match_weights(ranks.all.front().arch, *checkpoint);  // told before anything is packed
  for (const WeightAccess& access : ranks.all) access.state.forget();
  ranks.each([&](size_t rank) {
    const WeightAccess& access = ranks.all[rank];
    access.device.synchronize();
    if (access.region != nullptr && access.region->shows_file()) {
      access.region->release();
      access.region->restore();
    }
    load_weights_or_dummy(access.arch, checkpoint, access.device, access.weights, {.offload = access.offload});
  });
  for (const WeightAccess& access : ranks.all) {
    access.state.is_incomplete = false;
    access.state.missing.clear();
    ++access.state.version;
  }
}

}  // namespace quire
