// Changes weights that are loaded: tensors come one at a time, in any order, all of a model's or a few.
//
// Decides: what is kept so that a failing update leaves no trace, and when weights count as changed. Does not know:
// requests, caches (engine_weights.cpp empties them), where tensors come from. Engine thread, while no step is under
// way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "model/layer_offload.h"
#include "model/weight_loader.h"
#include "model/weight_match.h"

namespace quire {

struct WeightState {
  uint64_t version = 0;        // how often weights were changed since they were loaded
  bool is_incomplete = false;  // dropped, or an update without a copy of the old values failed: neither old nor new
  SlotRows missing;            // what must come until they are whole again; empty: everything

  void forget() {
    is_incomplete = true;
    missing.clear();
  }
};

// The weights of one rank and what it takes to change or read them.
struct WeightAccess {
  const ArchSpec& arch;
  Device& device;
  Weights& weights;
  OffloadedLayers* offload;  // null: none
  WeightState& state;
  Region* region = nullptr;  // where they lie, if it may show a file
};

// Those of all ranks of a model, and how each rank is made to do something, on its own thread; the call waits for all.
struct WeightRanks {
  std::vector<WeightAccess> all;
  std::function<void(const std::function<void(size_t)>&)> each;
};
inline WeightRanks one_rank(const WeightAccess& access) {
  return {{access}, [](const std::function<void(size_t)>& work) { work(0); }};
}

// Gives the next tensor, which lives until the next call; false: there are no more.
using NextTensor = std::function<bool(CheckpointTensor&)>;

class WeightUpdate {
 public:
  // keeps_old: host memory takes the packed old value of everything that is written, until the update ends.
  WeightUpdate(const WeightAccess& access, bool keeps_old, Extent extent = Extent::whole);
  ~WeightUpdate();

  // Writes a tensor, or notes that it does not fit; after that nothing more is written.
  void add(const CheckpointTensor& tensor);
  // Throws InvalidArgument that lists all tensors that did not fit.
  void check() const { binder_.throw_if_misfits(); }
  // Returns when all is on the device.
  void finish();
  // Puts old values back. False when something was written whose old value was not kept.
  bool undo();
  // Notes in an incomplete state what has come, in as many updates as it takes.
  void complete(WeightState& state) const;

 private:
  struct Kept {
    std::byte* place = nullptr;  // on the device, or in the host memory of an offloaded layer
    bool is_host = false;
    std::vector<std::byte> bytes;
  };

  void write(const BoundRule& entry);
  void write_labels(const CheckpointTensor& tensor);
  void visit_layer(int32_t layer);
  void keep(const BoundRule& entry);
  void keep_bytes(std::byte* place, size_t num_bytes, bool is_host);

  WeightAccess access_;
  bool keeps_old_;
  bool wrote_ = false;
  int32_t offloaded_layer_ = -1;  // which is in its slot, to be stored
  std::unique_ptr<WeightWriter> writer_;
  TensorBinder binder_;
  std::vector<Kept> kept_;
};

// The whole of an update, with the state that it leaves. atomic: what fails changes nothing.
void update_weights(const WeightRanks& ranks, const NextTensor& next, bool atomic);
// The same for tensors that are parts already, some of each rank: all of them or none. A tensor that only the first
// rank has is taken from none of the others.
void update_shards(const WeightRanks& ranks, const std::vector<std::vector<CheckpointTensor>>& shards);
// Throws what update_weights() would say to tensors of these names, dtypes and shapes, without their data.
void check_tensors(const WeightAccess& access, const std::vector<CheckpointTensor>& tensors,
                   Extent extent = Extent::whole);
// A whole checkpoint in place of what is there; null: dummy values. One that does not fit changes nothing.
void reload_weights(const WeightRanks& ranks, const Checkpoint* checkpoint);

}  // namespace quire
