// The operations of a forward pass: each checks its contract, then launches one kernel of the table. Verb: forward.
//
// A dry run checks contracts and launches nothing; together with a measuring Arena it finds the size of a step's
// scratch.
#pragma once

#include "comm/communicator.h"
#include "device/arena.h"
#include "model/weights.h"
#include "params/kernel_table.h"
#include "tensor/match.h"
#include "tensor/tensor.h"

namespace quire {

struct GemmEpilogue {
  const float* bias = nullptr;
  Activation activation = Activation::none;
  float scale = 1.0f;
  float softcap = 0.0f;
  bool accumulate = false;
};

struct NormWeights {
  const float* weight = nullptr;
  const float* bias = nullptr;
};

// The norm that follows a sum.
struct NextNorm {
  const NormSpec* spec = nullptr;
  NormWeights weights;
  Tensor out;
};

// Hears which parts of a forward pass are launched when, on the thread that launches. Parts lie in one another or
// apart.
class PassObserver {
 public:
  virtual ~PassObserver() = default;
  // `part` is a literal; layer -1: there is one of it.
  virtual void begin(const char* part, int32_t layer) = 0;
  virtual void end() = 0;
};

// A part of a pass, in its scope; nothing where nobody observes.
class PartScope {
 public:
  PartScope(PassObserver* observer, const char* part, int32_t layer) : observer_(observer) {
    if (observer_ != nullptr) observer_->begin(part, layer);
  }
  ~PartScope() {
    if (observer_ != nullptr) observer_->end();
  }
  PartScope(const PartScope&) = delete;
  PartScope& operator=(const PartScope&) = delete;

 private:
  PassObserver* observer_;
};

class Ops {
 public:
  Ops(const KernelTable& kernels, Stream stream, Arena& arena) : kernels_(kernels), stream_(stream), arena_(arena) {}

  // What products may share sums through: zeros now, the same between steps. None: they do without.
  void set_gemm_workspace(void* workspace, size_t num_bytes) {
    gemm_workspace_ = workspace;
    gemm_workspace_bytes_ = num_bytes;
  }

  // false: results may depend on the rows beside them where that is faster.
  void set_batch_invariant(bool batch_invariant) { batch_invariant_ = batch_invariant; }
  bool batch_invariant() const { return batch_invariant_; }

  // The other ranks of a model that is shared out. Kept; null: there are none.
  void set_communicator(Communicator* communicator) { communicator_ = communicator; }
  bool is_first_rank() const { return communicator_ == nullptr || communicator_->rank() == 0; }

  // Who wants to know what is launched. Kept; null: nobody.
  void set_observer(PassObserver* observer) { observer_ = observer; }
  PartScope part(const char* name, int32_t layer = -1) const { return {observer_, name, layer}; }

  const KernelTable& kernels() const { return kernels_; }
  Arena& arena() const { return arena_; }
  bool dry() const { return arena_.measuring(); }

  // Scratch that lives until the enclosing Arena::Scope ends.
  Tensor scratch(DType dtype, int64_t rows, int64_t columns) const;
  // The same for what products read and write, whose rows lie as far apart as suits the device.
  Tensor activations(DType dtype, int64_t rows, int64_t columns) const;

  // out[m, n] = epilogue(a[m, k] * weight^T)
  void gemm(const Tensor& a, const PackedWeight& weight, const GemmEpilogue& epilogue, const Tensor& out) const;
  // out[r] (+)= norm(x[row_ids ? row_ids[r] : r]); spec == nullptr: a gather and cast.
  void norm(const Tensor& x, const NormSpec* spec, const NormWeights& weights, const int32_t* row_ids, bool accumulate,
            const Tensor& out) const;
  // out[g] = mean of rows [row_start[g], row_start[g + 1]) of x, both float32
  void mean_rows(const Tensor& x, const int32_t* row_start, const Tensor& out) const;
  void embedding(EmbeddingParams params, const Tensor& out) const;
  void rope_kv_write(const RopeKvWriteParams& params) const;
  void plan_attention(const PagedAttentionParams& params) const;
  void paged_attention(const PagedAttentionParams& params) const;
  // out (+)= the sum over ranks of `partial`, both float32; and next->out = norm(out), in the same launch where the
  // communicator can. `partial` is left alone until the collective after the next one.
  void all_reduce(const Tensor& partial, bool accumulate, const Tensor& out, const NextNorm* next = nullptr) const;
  // The first rank's out[:, first_column + c] = part[:, c] of each rank; `out` of the others is not touched.
  void gather_columns(const Tensor& part, int64_t first_column, const Tensor& out) const;
  // The first rank's bytes for all.
  void broadcast(void* data, size_t num_bytes) const;
  // All ranks have done what was put on their streams so far, before what comes.
  void barrier() const;

 private:
  const KernelTable& kernels_;
  Stream stream_;
  Arena& arena_;
  void* gemm_workspace_ = nullptr;
  size_t gemm_workspace_bytes_ = 0;
  bool batch_invariant_ = true;
  Communicator* communicator_ = nullptr;
  PassObserver* observer_ = nullptr;
};

}  // namespace quire
