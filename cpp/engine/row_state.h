// The state of running sequences on an asynchronous device, and the one copy with which a step is told of. Verb:
// upload.
//
// Decides: what lies where in the inbox that a step's data is copied to, and when lists of sampling parameters need a
// larger home. Does not know: requests, policies. A decode step that nobody joined or left copies the list of its rows
// and nothing else. Engine thread only.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "device/device.h"
#include "engine/sampling_batch.h"
#include "engine/scheduler.h"
#include "model/batch.h"
#include "model/decoder.h"

namespace quire {

// The sizes that the launches of a step are made for; those of a captured graph are a bucket's.
struct StepShape {
  bool feeds_itself = false;  // Batch::feeds_itself()
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;
  int64_t num_samples = 0;
  int64_t max_kv_len = 0;
  int32_t logprobs_stride = 0;
};

// Addresses on the device: the rows, the arrays of a batch that prepare_batch makes, and the inbox.
struct RowBuffers {
  DeviceRows rows;
  int32_t *token_ids = nullptr, *query_start = nullptr;  // of decode steps
  int32_t *positions = nullptr, *slot_mapping = nullptr, *kv_lens = nullptr, *block_tables = nullptr;
  int32_t *sample_token_rows = nullptr, *sample_rows = nullptr;
  SamplingRow* sampling = nullptr;
  std::byte* inbox = nullptr;
  size_t inbox_bytes = 0;
};

// Returns the bytes it takes from `base` on (nullptr: only measure).
size_t place_row_buffers(const SchedulerOptions& options, std::byte* base, RowBuffers& buffers);

class RowState {
 public:
  // `device` and `kernels` are kept by reference.
  RowState(Device& device, const SchedulerOptions& options, const RowBuffers& buffers);

  // Tells the device of the step: its rows, new tokens, and what changed. Throws OutOfMemory, with nothing told, when
  // the lists of sampling parameters find no room. At most kSlots steps may be under way.
  static constexpr size_t kSlots = Scheduler::kMaxInFlight;
  void upload(const Batch& batch, const SamplingBatch& sampling);
  // Sends the masks of the step told last, which are filled by now.
  void upload_masks(const SamplingBatch& sampling);
  // Makes the arrays of the step told last. The launches depend on the shape alone where the step feeds itself.
  DeviceBatch prepare(const StepShape& shape) const;
  const SamplingRow* sampling_rows() const { return buffers_.sampling; }
  // The rows get the tokens that were sampled for them.
  void store_sampled(const int32_t* token_ids, int64_t num_samples) const;

 private:
  class Packer;
  // Where the parts of the step told last lie on the device.
  struct Inbox {
    const int32_t *num_seqs = nullptr, *seq_rows = nullptr;
    int32_t *query_start = nullptr, *token_ids = nullptr;  // null: the step feeds itself
    const int32_t* sample_of_seq = nullptr;
  };
  struct Slot {
    std::unique_ptr<HostBuffer> inbox, lists;
  };

  void reserve_lists(size_t num_bytes);
  void reserve_masks(size_t num_bytes);
  const SamplingRowUpdate* pack_sampling(const SamplingBatch& sampling, Packer& packer, Slot& slot);
  void pack_batch(const Batch& batch, Packer& packer);

  Device& device_;
  int32_t block_size_;
  int64_t table_stride_;
  RowBuffers buffers_;
  Inbox inbox_;
  std::array<Slot, kSlots> slots_;
  size_t next_slot_ = 0;
  std::unique_ptr<Region> lists_;
  // Masks of one step: while a request has a constraint no step is planned ahead.
  std::unique_ptr<Region> masks_;
  std::unique_ptr<HostBuffer> mask_staging_;
};

}  // namespace quire
