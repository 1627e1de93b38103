// A checkpoint that several ranks read at once: its pages may go when the last one is done with them.
//
// Decides: when. Does not know: who reads what. Any thread.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "model/weight_loader.h"

namespace quire {

class SharedCheckpoint final : public Checkpoint {
 public:
  SharedCheckpoint(const Checkpoint& checkpoint, int32_t num_readers)
      : checkpoint_(checkpoint), num_readers_(num_readers) {}
  const std::vector<CheckpointTensor>& tensors() const override { return checkpoint_.tensors(); }
  std::string describe_files() const override { return checkpoint_.describe_files(); }
  void release(const CheckpointTensor& tensor) const override {
    const std::lock_guard lock(mutex_);
    if (++num_done_[&tensor] % num_readers_ == 0) checkpoint_.release(tensor);
  }

 private:
  const Checkpoint& checkpoint_;
  const int32_t num_readers_;
  mutable std::mutex mutex_;
  mutable std::map<const CheckpointTensor*, int32_t> num_done_;
};

}  // namespace quire
