// Shares of sums and copies between meetings; see loopback.h.
#include "comm/loopback.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/threads.h"
#include "comm/meeting.h"

namespace quire {
namespace {

constexpr int64_t kTaskElements = 4096;  // of one loop task: some microseconds of work
constexpr int64_t kLine = 16;            // floats of a cache line, which ranks do not share

class LoopbackGroup;

class LoopbackRank final : public Communicator {
 public:
  LoopbackRank(LoopbackGroup& group, int rank) : group_(group), rank_(rank) {}
  int rank() const override { return rank_; }
  int num_ranks() const override;
  bool fuses_norm() const override { return false; }
  void all_reduce(const AllReduceParams& params, Stream stream) override;
  void gather_columns(const GatherColumnsParams& params, Stream stream) override;
  void broadcast(void* data, size_t num_bytes, Stream stream) override;
  void barrier(Stream) override {}  // every collective is done on return

 private:
  void sum_range(int64_t begin, int64_t end) const;

  LoopbackGroup& group_;
  int rank_;
};

class LoopbackGroup final : public CommunicatorGroup {
 public:
  LoopbackGroup(int num_ranks, double time_limit) : meeting(num_ranks, time_limit) {
    QUIRE_CHECK(num_ranks >= 1 && num_ranks <= kMaxRanks, num_ranks, " ranks");
    for (int i = 0; i < num_ranks; ++i) ranks_.emplace_back(*this, i);
  }
  int num_ranks() const override { return static_cast<int>(ranks_.size()); }
  Communicator& rank(int rank) override { return ranks_.at(static_cast<size_t>(rank)); }
  void abort(const std::string& why) override { meeting.abort(why); }
  void reset() override { meeting.reset(); }

  Meeting meeting;
  // What each rank brought; written before a meeting, read after it.
  std::array<AllReduceParams, kMaxRanks> reduced = {};
  std::array<GatherColumnsParams, kMaxRanks> gathered = {};
  const void* broadcast_from = nullptr;  // of the first rank

 private:
  std::vector<LoopbackRank> ranks_;
};

int LoopbackRank::num_ranks() const { return group_.num_ranks(); }

ThreadPool& pool_of(Stream stream) { return *static_cast<ThreadPool*>(stream.handle); }

// Calls part(begin, end) for pieces of [begin, end) on the stream's threads.
template <typename Part>
void for_each_piece(Stream stream, int64_t begin, int64_t end, const Part& part) {
  const int64_t num_tasks = (end - begin + kTaskElements - 1) / kTaskElements;
  const auto task = [&](int64_t i) {
    const int64_t from = begin + i * kTaskElements;
    part(from, std::min(end, from + kTaskElements));
  };
  if (stream.handle != nullptr) return pool_of(stream).parallel_for(num_tasks, task);
  for (int64_t i = 0; i < num_tasks; ++i) task(i);
}

void LoopbackRank::all_reduce(const AllReduceParams& params, Stream stream) {
  group_.reduced[static_cast<size_t>(rank_)] = params;
  group_.meeting.arrive(rank_, "all_reduce");
  for (int other = 0; other < num_ranks(); ++other) {
    const AllReduceParams& theirs = group_.reduced[static_cast<size_t>(other)];
    QUIRE_CHECK(theirs.rows == params.rows && theirs.dim == params.dim && theirs.accumulate == params.accumulate,
                "rank ", other, " reduces ", theirs.rows, " rows of ", theirs.dim, ", rank ", rank_, " ", params.rows,
                " of ", params.dim);
  }
  const int64_t count = params.rows * params.dim;
  // A rank's share begins at a line of its own.
  const int64_t num_lines = (count + kLine - 1) / kLine;
  const auto share_begin = [&](int rank) { return std::min(count, num_lines * rank / num_ranks() * kLine); };
  for_each_piece(stream, share_begin(rank_), share_begin(rank_ + 1),
                 [&](int64_t begin, int64_t end) { sum_range(begin, end); });
  group_.meeting.arrive(rank_, "all_reduce");
}

void LoopbackRank::sum_range(int64_t begin, int64_t end) const {
  const std::array<AllReduceParams, kMaxRanks>& all = group_.reduced;
  const auto count = static_cast<size_t>(end - begin);
  std::array<float, kTaskElements> sum;
  std::memcpy(sum.data(), all[0].partial + begin, count * sizeof(float));
  for (int rank = 1; rank < num_ranks(); ++rank) {
    const float* const partial = all[static_cast<size_t>(rank)].partial + begin;
    for (size_t i = 0; i < count; ++i) sum[i] += partial[i];
  }
  const AllReduceParams& own = all[static_cast<size_t>(rank_)];
  if (own.accumulate) {
    for (size_t i = 0; i < count; ++i) sum[i] = own.out[begin + static_cast<int64_t>(i)] + sum[i];
  }
  for (int rank = 0; rank < num_ranks(); ++rank) {
    std::memcpy(all[static_cast<size_t>(rank)].out + begin, sum.data(), count * sizeof(float));
  }
}

void LoopbackRank::gather_columns(const GatherColumnsParams& params, Stream stream) {
  group_.gathered[static_cast<size_t>(rank_)] = params;
  group_.meeting.arrive(rank_, "gather_columns");
  const GatherColumnsParams& first = group_.gathered[0];
  QUIRE_CHECK(first.rows == params.rows, "rank 0 gathers ", first.rows, " rows, rank ", rank_, " ", params.rows);
  const int64_t rows_a_piece = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, params.columns));
  const auto copy = [&](int64_t piece) {
    const int64_t end = std::min(params.rows, (piece + 1) * rows_a_piece);
    for (int64_t row = piece * rows_a_piece; row < end; ++row) {
      std::memcpy(first.out + row * first.out_stride + params.first_column, params.part + row * params.columns,
                  static_cast<size_t>(params.columns) * sizeof(float));
    }
  };
  const int64_t num_pieces = (params.rows + rows_a_piece - 1) / rows_a_piece;
  if (stream.handle != nullptr) {
    pool_of(stream).parallel_for(num_pieces, copy);
  } else {
    for (int64_t piece = 0; piece < num_pieces; ++piece) copy(piece);
  }
  group_.meeting.arrive(rank_, "gather_columns");
}

void LoopbackRank::broadcast(void* data, size_t num_bytes, Stream) {
  if (rank_ == 0) group_.broadcast_from = data;
  group_.meeting.arrive(rank_, "broadcast");
  if (rank_ != 0) std::memcpy(data, group_.broadcast_from, num_bytes);
  group_.meeting.arrive(rank_, "broadcast");
}

}  // namespace

std::unique_ptr<CommunicatorGroup> make_loopback_group(int num_ranks, double time_limit) {
  return std::make_unique<LoopbackGroup>(num_ranks, time_limit);
}

}  // namespace quire
