// The device memory of one model, going to sleep and coming back: weights, KV cache, workspace.
//
// Decides: what of it is kept, where, and how it comes back. Addresses stay, so tensors, tables and captured graphs
// need not be made again. Weights of an asynchronous device are copied to host memory. On the host that would free
// nothing: there they are packed again from where they came from, or, if that cannot be read again, stay as they are.
// Of the workspace what outlives a step is kept. Does not know: requests. Belongs to a worker, and its thread; nothing
// may be under way.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/device.h"
#include "engine/region_copy.h"
#include "model/layer_offload.h"
#include "model/weight_loader.h"

namespace quire {

class ModelMemory {
 public:
  struct Parts {
    Region* weights = nullptr;
    Region* kv_cache = nullptr;  // null: none
    Region* workspace = nullptr;
    std::vector<RegionSpan> kept;                           // of the workspace
    std::unique_ptr<OffloadedLayers>* offloaded = nullptr;  // where layers in host memory are, if any
  };
  // Where the weights can be had from again.
  struct Source {
    std::function<std::string()> problem;  // why they cannot; empty: they can
    std::function<void()> pack;            // into their region

    // Dummy values, which are always the same.
    static Source of_dummy(std::function<void()> pack);
    // Nothing where the checkpoint cannot be read again.
    static std::optional<Source> of_files(std::shared_ptr<const Checkpoint> checkpoint,
                                          std::function<void(const Checkpoint&)> pack);
  };
  struct Which {
    bool weights = false, kv_cache = false, workspace = false;
  };

  ModelMemory(Device& device, Parts parts) : device_(device), parts_(std::move(parts)) {}
  ModelMemory(const ModelMemory&) = delete;
  ModelMemory& operator=(const ModelMemory&) = delete;

  // The weights that are in memory now are those of `source`, or, without one, nowhere else.
  void set_source(std::optional<Source> source);
  // False: sleep dropped them, and nothing was loaded since.
  bool has_weights() const { return has_weights_; }
  bool weights_resident() const { return !asleep_.weights; }

  // Gives the memory back; it is free on return. keep_weights: they come back as they are, if there are any. Without it
  // also weights that sleep already are dropped. Throws OutOfMemory, and nothing of the call has happened, when there
  // is no room to keep them.
  void sleep(const Which& which, bool keep_weights);
  // Takes memory again, of all that sleeps; the contents come with wake(). What is claimed and not woken goes back with
  // release_claimed().
  void claim(const Which& which);
  void wake(const Which& which);
  void release_claimed();

 private:
  bool can_pack_again() const { return source_.has_value() && source_->problem().empty(); }
  OffloadedLayers* offloaded() const { return parts_.offloaded != nullptr ? parts_.offloaded->get() : nullptr; }
  std::unique_ptr<RegionCopy> copy_of_weights() const;
  void warn_that_weights_stay() const;
  void drop_weights();
  void wake_weights();

  Device& device_;
  Parts parts_;
  std::optional<Source> source_;
  bool has_weights_ = false;
  Which asleep_;
  bool stays_ = false;  // the weights sleep where they are
  std::unique_ptr<RegionCopy> weight_copy_, workspace_copy_;
};

}  // namespace quire
