// Events, meetings and launches; see peer.h.
//
// A rank may be one collective ahead of another on the host too, so what it brings lies in two places by turns.
//
// What may be overwritten when: a rank that has passed the start of a collective knows that all others have done what
// they put on their streams before it, the reads of the collective before included. Hence partial sums in two buffers
// by turns, and no wait at the end of a one-shot.
#include "comm/peer.h"

#include <array>

#include "comm/meeting.h"

namespace quire {
namespace {

class PeerGroup;

class PeerRank final : public Communicator {
 public:
  PeerRank(PeerGroup& group, int rank, Device& device) : group_(group), rank_(rank), device_(device) {
    for (auto& event : starts_) event = device.make_event();
    end_ = device.make_event();
  }
  int rank() const override { return rank_; }
  int num_ranks() const override;
  bool fuses_norm() const override { return true; }
  void all_reduce(const AllReduceParams& params, Stream stream) override;
  void gather_columns(const GatherColumnsParams& params, Stream stream) override;
  void broadcast(void* data, size_t num_bytes, Stream stream) override;
  void barrier(Stream stream) override { start("barrier", stream); }
  void reset() { turn_ = 0; }

 private:
  // What all ranks put on their streams so far comes before what this one puts there from now on.
  void start(const char* what, Stream stream);
  void end(const char* what, Stream stream);
  ReduceRowsParams sum_of_rows(const std::array<AllReduceParams, kMaxRanks>& all, int64_t begin, int64_t end) const;

  PeerGroup& group_;
  int rank_;
  Device& device_;
  std::array<std::unique_ptr<Event>, 2> starts_;  // by turns: one rank may be a collective ahead
  std::unique_ptr<Event> end_;
  size_t turn_ = 0;
};

class PeerGroup final : public CommunicatorGroup {
 public:
  PeerGroup(const std::vector<Device*>& devices, double time_limit)
      : meeting(static_cast<int>(devices.size()), time_limit) {
    for (size_t i = 0; i < devices.size(); ++i) {
      ranks.push_back(std::make_unique<PeerRank>(*this, static_cast<int>(i), *devices[i]));
    }
  }
  int num_ranks() const override { return static_cast<int>(ranks.size()); }
  Communicator& rank(int rank) override { return *ranks.at(static_cast<size_t>(rank)); }
  void abort(const std::string& why) override { meeting.abort(why); }
  void reset() override {
    for (const auto& rank : ranks) rank->reset();
    meeting.reset();
  }

  Meeting meeting;
  std::vector<std::unique_ptr<PeerRank>> ranks;
  // What each rank brought; written before a meeting, read after it.
  std::array<std::array<AllReduceParams, kMaxRanks>, 2> reduced = {};  // by turns, as one rank may be ahead
  std::array<GatherColumnsParams, kMaxRanks> gathered = {};
  const void* broadcast_from = nullptr;
  std::array<std::array<const Event*, 2>, kMaxRanks> starts = {};
  std::array<const Event*, kMaxRanks> ends = {};
};

int PeerRank::num_ranks() const { return group_.num_ranks(); }

void PeerRank::start(const char* what, Stream stream) {
  const auto own = static_cast<size_t>(rank_);
  starts_[turn_]->record(stream);
  group_.starts[own][turn_] = starts_[turn_].get();
  group_.meeting.arrive(rank_, what);
  for (int other = 0; other < num_ranks(); ++other) {
    if (other != rank_) device_.wait_for(stream, *group_.starts[static_cast<size_t>(other)][turn_]);
  }
  turn_ ^= 1;
}

void PeerRank::end(const char* what, Stream stream) {
  end_->record(stream);
  group_.ends[static_cast<size_t>(rank_)] = end_.get();
  group_.meeting.arrive(rank_, what);
  for (int other = 0; other < num_ranks(); ++other) {
    if (other != rank_) device_.wait_for(stream, *group_.ends[static_cast<size_t>(other)]);
  }
}

ReduceRowsParams PeerRank::sum_of_rows(const std::array<AllReduceParams, kMaxRanks>& all, int64_t begin,
                                       int64_t end) const {
  const AllReduceParams& own = all[static_cast<size_t>(rank_)];
  ReduceRowsParams params;
  params.num_partials = num_ranks();
  for (int rank = 0; rank < num_ranks(); ++rank) {
    params.partials[rank] = all[static_cast<size_t>(rank)].partial + begin * own.dim;
  }
  params.partial_stride = params.out_stride = params.normed_stride = own.dim;
  params.rows = end - begin;
  params.dim = own.dim;
  params.base = own.accumulate ? own.out + begin * own.dim : nullptr;
  params.has_norm = own.has_norm;
  params.norm_kind = own.norm_kind;
  params.norm_weight = own.norm_weight;
  params.norm_bias = own.norm_bias;
  params.eps = own.eps;
  params.normed_dtype = own.normed_dtype;
  return params;
}

void PeerRank::all_reduce(const AllReduceParams& params, Stream stream) {
  std::array<AllReduceParams, kMaxRanks>& all = group_.reduced[turn_];
  all[static_cast<size_t>(rank_)] = params;
  start("all_reduce", stream);
  for (int other = 0; other < num_ranks(); ++other) {
    const AllReduceParams& theirs = all[static_cast<size_t>(other)];
    QUIRE_CHECK(theirs.rows == params.rows && theirs.dim == params.dim && theirs.accumulate == params.accumulate,
                "rank ", other, " reduces ", theirs.rows, " rows of ", theirs.dim, ", rank ", rank_, " ", params.rows,
                " of ", params.dim);
  }
  const bool shares_rows = is_two_shot(num_ranks(), params.rows, params.dim);
  const int64_t begin = shares_rows ? params.rows * rank_ / num_ranks() : 0;
  const int64_t last = shares_rows ? params.rows * (rank_ + 1) / num_ranks() : params.rows;
  ReduceRowsParams sum = sum_of_rows(all, begin, last);
  // Its own memory first: there it reads back what is to be normed.
  for (int i = 0; i < (shares_rows ? num_ranks() : 1); ++i) {
    const AllReduceParams& target = all[static_cast<size_t>((rank_ + i) % num_ranks())];
    const auto normed_bytes = static_cast<int64_t>(dtype_bytes(params.normed_dtype));
    sum.outs[i] = target.out + begin * params.dim;
    if (params.has_norm) sum.normed[i] = static_cast<std::byte*>(target.normed) + begin * params.dim * normed_bytes;
    sum.num_outs = i + 1;
  }
  device_.kernels().reduce_rows(sum, stream);
  if (shares_rows) end("all_reduce", stream);
}

// A copy is a sum of one.
void PeerRank::gather_columns(const GatherColumnsParams& params, Stream stream) {
  group_.gathered[static_cast<size_t>(rank_)] = params;
  start("gather_columns", stream);
  for (int rank = 0; rank_ == 0 && rank < num_ranks(); ++rank) {
    const GatherColumnsParams& part = group_.gathered[static_cast<size_t>(rank)];
    QUIRE_CHECK(part.rows == params.rows, "rank 0 gathers ", params.rows, " rows, rank ", rank, " ", part.rows);
    ReduceRowsParams copy;
    copy.partials[0] = part.part;
    copy.num_partials = copy.num_outs = 1;
    copy.partial_stride = copy.dim = part.columns;
    copy.rows = part.rows;
    copy.outs[0] = params.out + part.first_column;
    copy.out_stride = params.out_stride;
    device_.kernels().reduce_rows(copy, stream);
  }
  end("gather_columns", stream);
}

void PeerRank::broadcast(void* data, size_t num_bytes, Stream stream) {
  if (rank_ == 0) group_.broadcast_from = data;
  start("broadcast", stream);
  if (rank_ != 0) device_.copy_async(data, group_.broadcast_from, num_bytes, stream);
  end("broadcast", stream);
}

}  // namespace

std::unique_ptr<CommunicatorGroup> make_peer_group(const std::vector<Device*>& devices, double time_limit) {
  QUIRE_CHECK(!devices.empty() && devices.size() <= kMaxRanks, devices.size(), " ranks");
  return std::make_unique<PeerGroup>(devices, time_limit);
}

}  // namespace quire
