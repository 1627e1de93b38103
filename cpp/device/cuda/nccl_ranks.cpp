// Calls of NCCL and what they say; see nccl_ranks.h and cuda/comm/nccl.h.
//
// All communicators are this process's, so ncclCommInitAll makes them and calls of several ranks from one thread lie
// between ncclGroupStart and ncclGroupEnd, as NCCL asks. They are blocking ones: ncclInProgress does not come. NCCL
// chooses the device of a communicator by itself and puts the calling thread's back.
#include "device/cuda/nccl_ranks.h"

#include <utility>

#include "cuda/comm/nccl.h"

namespace quire {
namespace {

class NcclRanks final : public CollectiveLibrary {
 public:
  NcclRanks(const nccl::Functions& nccl, std::vector<std::shared_ptr<CudaContext>> contexts)
      : nccl_(nccl), contexts_(std::move(contexts)) {}
  ~NcclRanks() override { close(nccl_.comm_destroy); }
  NcclRanks(const NcclRanks&) = delete;
  NcclRanks& operator=(const NcclRanks&) = delete;

  void open() override {
    std::vector<int> indices;
    for (const auto& context : contexts_) indices.push_back(context->index());
    std::vector<nccl::Communicator*> ranks(contexts_.size());
    check(nccl_.comm_init_all(ranks.data(), static_cast<int>(ranks.size()), indices.data()), "ncclCommInitAll", kAll);
    ranks_ = std::move(ranks);
  }
  bool is_open() const override { return !ranks_.empty(); }

  void check(int rank) override {
    nccl::Result result = nccl::kSuccess;
    check(nccl_.comm_get_async_error(of(rank), &result), "ncclCommGetAsyncError", rank);
    check(result, "an earlier call", rank);
  }

  void begin() override { check(nccl_.group_start(), "ncclGroupStart", kAll); }
  void all_reduce(int rank, const float* in, float* out, int64_t count, Stream stream) override {
    check(nccl_.all_reduce(in, out, static_cast<size_t>(count), nccl::kFloat32, nccl::kSum, of(rank), stream.handle),
          "ncclAllReduce", rank);
  }
  void broadcast(int rank, void* data, size_t num_bytes, Stream stream) override {
    check(nccl_.broadcast(data, data, num_bytes, nccl::kUint8, 0, of(rank), stream.handle), "ncclBroadcast", rank);
  }
  void send(int rank, int to, const float* data, int64_t count, Stream stream) override {
    check(nccl_.send(data, static_cast<size_t>(count), nccl::kFloat32, to, of(rank), stream.handle), "ncclSend", rank);
  }
  void receive(int rank, int from, float* data, int64_t count, Stream stream) override {
    check(nccl_.receive(data, static_cast<size_t>(count), nccl::kFloat32, from, of(rank), stream.handle), "ncclRecv",
          rank);
  }
  void end() override { check(nccl_.group_end(), "ncclGroupEnd", kAll); }
  void cancel() noexcept override { static_cast<void>(nccl_.group_end()); }  // says again what went wrong

  void abort() noexcept override { close(nccl_.comm_abort); }

 private:
  static constexpr int kAll = -1;

  nccl::Communicator* of(int rank) const { return ranks_.at(static_cast<size_t>(rank)); }

  // In a group, since one communicator's end may wait for that of another.
  void close(nccl::Result (*end)(nccl::Communicator*)) noexcept {
    if (ranks_.empty()) return;
    static_cast<void>(nccl_.group_start());
    for (nccl::Communicator* const rank : ranks_) static_cast<void>(end(rank));
    static_cast<void>(nccl_.group_end());
    ranks_.clear();
  }

  void check(nccl::Result result, const char* call, int rank) const {
    if (result == nccl::kSuccess) [[likely]]
      return;
    const std::string who =
        rank == kAll ? str_cat("all ", contexts_.size(), " ranks")
                     : str_cat("rank ", rank, " (device ", contexts_[static_cast<size_t>(rank)]->index(), ")");
    const char* const more = nccl_.get_last_error(nullptr);
    throw DeviceError(str_cat(call, " of ", who, " failed: ", nccl_.get_error_string(result), " (ncclResult_t ", result,
                              ")", more != nullptr && *more != '\0' ? ": " : "", more != nullptr ? more : ""));
  }

  const nccl::Functions& nccl_;
  const std::vector<std::shared_ptr<CudaContext>> contexts_;
  std::vector<nccl::Communicator*> ranks_;
};

}  // namespace

std::unique_ptr<CollectiveLibrary> make_nccl_ranks(std::vector<std::shared_ptr<CudaContext>> contexts) {
  const nccl::Functions* const nccl = cuda::nccl_functions();
  if (nccl == nullptr) throw NotSupported(cuda::nccl_status());
  return std::make_unique<NcclRanks>(*nccl, std::move(contexts));
}

}  // namespace quire
