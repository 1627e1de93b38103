// Fills Weights from a checkpoint: safetensors files (mapped), tensors in memory, or dummy values.
//
// Runs once at load, on the caller's thread; packing uses the stream's threads. How tensors reach the device is decided
// in weight_sink.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/arch.h"
#include "model/layer_offload.h"
#include "model/row_ranges.h"
#include "model/weight_sink.h"
#include "model/weights.h"

namespace quire {

// One tensor of a checkpoint: a view, row-major and contiguous.
struct CheckpointTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// A set of tensors by name, with whatever keeps them alive.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual const std::vector<CheckpointTensor>& tensors() const = 0;
  // The loader is done with this tensor: mapped pages may be dropped.
  virtual void release(const CheckpointTensor&) const {}
  // The same for all of it.
  virtual void release_all() const {}
  // Which files it consists of, as they are now: paths, sizes, times. Empty: none.
  virtual std::string describe_files() const { return {}; }
  // Why its tensors cannot be read another time, after the load; empty: they can, and are what they were.
  virtual std::string reread_problem() const { return "they came from memory that is the caller's"; }
};

// Opens the safetensors of a model directory: model.safetensors, or the shards that model.safetensors.index.json names.
// Throws InvalidArgument: no such file (naming what was looked for, and .bin files if these are there), header length
// beyond the file, not JSON, unknown dtype, offsets out of bounds or overlapping or of the wrong size, duplicate names,
// shards missing.
std::unique_ptr<Checkpoint> open_safetensors(const std::filesystem::path& model_dir);
// Tensors the caller keeps alive during the load (checkpoints read by torch, weights built in memory).
std::unique_ptr<Checkpoint> checkpoint_in_memory(std::vector<CheckpointTensor> tensors);

class PackedCopy;
struct BoundRule;
struct WeightSlot;
enum class Extent : uint8_t;

struct LoadOptions {
  StagingOptions staging;              // of asynchronous devices
  OffloadedLayers* offload = nullptr;  // keeps the weights of its layers, which `weights` places in its slots
  PackedCopy* packed = nullptr;        // of the region of `weights`: taken from disk if it is there, else put there
};

// Both return when the weights are there. Throws InvalidArgument that lists ALL missing, unexpected and misshaped
// tensors (both shapes) at once, before anything is packed.
void load_weights(const ArchSpec& arch, const Checkpoint& checkpoint, Device& device, Weights& weights,
                  const LoadOptions& options = {});
// load_format="dummy": every matrix and norm uniform in [-1e-3, 1e-3], a fixed seed per slot, the same for every device
// and, before rounding, for every dtype. Nothing is copied from the host.
void load_dummy_weights(const ArchSpec& arch, Device& device, Weights& weights, const LoadOptions& options = {});
// Dummy values where there is no checkpoint.
void load_weights_or_dummy(const ArchSpec& arch, const Checkpoint* checkpoint, Device& device, Weights& weights,
                           const LoadOptions& options = {});

// Rows of slots, by slot and layer; those of an up half lie behind the gate half's.
using SlotRows = std::map<std::pair<Slot, int32_t>, RowRanges>;

// Writes matched tensors into weights that are there, one at a time.
class WeightWriter {
 public:
  virtual ~WeightWriter() = default;
  // Those that hold rows of the tensor.
  virtual std::vector<const WeightSlot*> slots_of(const BoundRule& entry) const = 0;
  // The tensor may go when it returns.
  virtual void write(const BoundRule& entry) = 0;
  // Everything written so far is on device.stream().
  virtual void flush() = 0;
  // Rows that nothing was written to yet.
  virtual const SlotRows& unfilled() const = 0;
};

// `extent`: of the tensors that it is given.
std::unique_ptr<WeightWriter> make_weight_writer(const ArchSpec& arch, Device& device, Weights& weights, Extent extent,
                                                 const StagingOptions& staging = {});

}  // namespace quire
