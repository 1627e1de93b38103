// Layers whose weights stay in host memory and pass through two slots on the device, ahead of the computation.
//
// Decides: which layers, how many slots, when a copy may start. Does not know: the forward pass (Decoder calls the
// three verbs of LayerWeightSource), files. The plan is pure; OffloadedLayers belongs to a Worker and its thread.
//
// Every step begins by fetching the first layers itself and ends with every copy waited for, so nothing passes from one
// step to the next and a captured step can be replayed as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/device.h"
#include "model/weight_sink.h"
#include "model/weights.h"

namespace quire {

// As few layers as hold num_bytes, spread over the depth, the last one among them; all when there are not that many
// bytes. num_bytes <= 0: none.
OffloadPlan plan_offload(const ArchSpec& arch, WeightFormat format, const KernelTable& kernels, int64_t num_bytes);

class OffloadedLayers final : public LayerWeightSource {
 public:
  // `slots`: where place_weights was given the plan, the base of the weights. Allocates the host memory of all layers.
  OffloadedLayers(Device& device, OffloadPlan plan, std::byte* slots);

  const OffloadPlan& plan() const { return plan_; }
  // At load: takes the packed weights of an offloaded layer, which work on device.stream() puts into its slot, to host
  // memory. The next layer of the slot may be packed behind it.
  void store(int32_t layer);
  // Gives the host memory back, and takes as much again, elsewhere and with nothing in it.
  void drop();
  void restore();
  // For changing and reading weights between steps: puts a copy into the layer's slot on device.stream(), and where
  // they stay otherwise.
  void bring(int32_t layer);
  const HostBuffer& host_memory(int32_t layer) const { return *host_.at(static_cast<size_t>(plan_.ordinal(layer))); }

  void begin_step() override;
  void acquire(int32_t layer) override;
  void release(int32_t layer) override;

 private:
  void fetch(int32_t ordinal);
  size_t slot_of(int32_t ordinal) const { return static_cast<size_t>(ordinal) % copied_.size(); }

  Device& device_;
  OffloadPlan plan_;
  std::byte* slots_;
  std::vector<std::unique_ptr<HostBuffer>> host_;  // one an offloaded layer
  std::vector<std::unique_ptr<Event>> copied_;     // one a slot
  std::unique_ptr<Event> unread_;                  // the work that read a slot is done
  SynchronizeAtEnd synchronize_{device_};          // the last member: it goes before the buffers
};

}  // namespace quire
