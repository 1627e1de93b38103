// Meetings, and calls of the library by the last to come; see library.h.
//
// What a rank brings is written before a meeting and read by the last to come, while all others wait. What the last to
// come leaves for the others (the block of columns, an error) is written there alone, so nobody reads it too late.
#include "comm/library.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <mutex>

#include "comm/meeting.h"

namespace quire {
namespace {

// How long an abort waits for a thread that is in the library before it leaves both to themselves.
constexpr auto kGrace = std::chrono::seconds(2);

class LibraryGroup;

class LibraryRank final : public Communicator {
 public:
  LibraryRank(LibraryGroup& group, int rank, Device& device) : group_(group), rank_(rank), device_(device) {
    for (auto& event : events_) event = device.make_event();
  }
  int rank() const override { return rank_; }
  int num_ranks() const override;
  bool fuses_norm() const override { return false; }
  void all_reduce(const AllReduceParams& params, Stream stream) override;
  void gather_columns(const GatherColumnsParams& params, Stream stream) override;
  void broadcast(void* data, size_t num_bytes, Stream stream) override;
  void barrier(Stream stream) override;
  void reset() { turn_ = 0; }
  const Event& event(size_t turn) const { return *events_[turn]; }

 private:
  void place_columns(Stream stream) const;

  LibraryGroup& group_;
  int rank_;
  Device& device_;
  std::array<std::unique_ptr<Event>, 2> events_;  // by turns: one rank may be a barrier ahead
  size_t turn_ = 0;
};

// What a rank brings to a meeting.
struct Brought {
  Stream stream;
  AllReduceParams sum;
  GatherColumnsParams columns;
  int64_t first_row = 0;  // of the columns
  void* data = nullptr;
  size_t num_bytes = 0;
};

// Rows of all ranks' columns that are gathered at once.
struct Block {
  std::array<GatherColumnsParams, kMaxRanks> parts = {};
  std::array<float*, kMaxRanks> staged = {};  // of the first rank's memory; its own part stays where it is
  int64_t first_row = 0, num_rows = 0;
};

class LibraryGroup final : public CommunicatorGroup {
 public:
  LibraryGroup(const std::vector<Device*>& devices, double time_limit, size_t gather_bytes)
      : meeting_(static_cast<int>(devices.size()), time_limit),
        time_limit_(time_limit),
        library_(devices.front()->open_collectives(devices)),
        staging_(devices.front()->allocate(RegionTag::workspace, gather_bytes)) {
    for (size_t i = 0; i < devices.size(); ++i) {
      ranks_.push_back(std::make_unique<LibraryRank>(*this, static_cast<int>(i), *devices[i]));
    }
    library_->open();
  }
  int num_ranks() const override { return static_cast<int>(ranks_.size()); }
  LibraryRank& rank(int rank) override { return *ranks_.at(static_cast<size_t>(rank)); }
  void abort(const std::string& why) override;
  void reset() override;

  using Put = void (LibraryGroup::*)(int rank);
  // Returns when all ranks have come and `put` was called for each, by the last to come; null: for none.
  void meet(int rank, const char* what, Put put);
  void put_sum(int rank);
  void put_columns(int rank);
  void put_bytes(int rank);
  const Block& block() const { return block_; }
  Brought& brought(int rank) { return brought_[static_cast<size_t>(rank)]; }

 private:
  void launch(Put put);
  void begin_block();

  Meeting meeting_;
  const double time_limit_;
  std::timed_mutex calls_;  // of the library
  std::unique_ptr<CollectiveLibrary> library_;
  std::unique_ptr<Region> staging_;
  std::vector<std::unique_ptr<LibraryRank>> ranks_;
  std::array<Brought, kMaxRanks> brought_ = {};
  Block block_;
  std::exception_ptr error_;  // of the last to come
  int failed_rank_ = -1;      // -1: of all ranks
};

// ------------------------------------------------------------------------------------------------------- the group

void LibraryGroup::meet(int rank, const char* what, Put put) {
  if (meeting_.come(rank, what)) {
    if (put != nullptr) launch(put);
    meeting_.proceed();
  }
  if (error_ == nullptr) return;
  if (failed_rank_ < 0 || failed_rank_ == rank) std::rethrow_exception(error_);
  throw CollectiveAborted(str_cat("given up: rank ", failed_rank_, " failed in ", what));
}

void LibraryGroup::launch(Put put) {
  int rank = -1;
  try {
    const std::unique_lock lock(calls_, std::chrono::duration<double>(time_limit_));
    if (!lock.owns_lock()) throw DeviceError("the library of collectives has not come back from an earlier call");
    meeting_.throw_if_aborted();
    if (!library_->is_open()) library_->open();
    for (rank = 0; rank < num_ranks(); ++rank) library_->check(rank);
    rank = -1;
    library_->begin();
    try {
      for (rank = 0; rank < num_ranks(); ++rank) (this->*put)(rank);
    } catch (...) {
      library_->cancel();
      throw;
    }
    rank = -1;
    library_->end();
  } catch (...) {
    error_ = std::current_exception();
    failed_rank_ = rank;
  }
}

// Who is in the library may be waiting there for what never comes. It keeps the lock, so everybody else is told.
void LibraryGroup::abort(const std::string& why) {
  meeting_.abort(why);
  const std::unique_lock lock(calls_, kGrace);
  if (lock.owns_lock()) library_->abort();
}

// The next collective opens the library again, so that what fails then is that one's error.
void LibraryGroup::reset() {
  for (const auto& rank : ranks_) rank->reset();
  error_ = nullptr;
  meeting_.reset();
}

void LibraryGroup::put_sum(int rank) {
  const AllReduceParams &own = brought(rank).sum, &first = brought(0).sum;
  QUIRE_CHECK(own.rows == first.rows && own.dim == first.dim && own.accumulate == first.accumulate, "rank ", rank,
              " reduces ", own.rows, " rows of ", own.dim, ", rank 0 ", first.rows, " of ", first.dim);
  library_->all_reduce(rank, own.partial, own.accumulate ? own.partial : own.out, own.rows * own.dim,
                       brought(rank).stream);
}

void LibraryGroup::put_bytes(int rank) {
  const Brought& own = brought(rank);
  QUIRE_CHECK(own.num_bytes == brought(0).num_bytes, "rank ", rank, " takes ", own.num_bytes, " bytes of ",
              brought(0).num_bytes);
  library_->broadcast(rank, own.data, own.num_bytes, own.stream);
}

void LibraryGroup::begin_block() {
  const Brought& first = brought(0);
  int64_t columns = 0;  // of the other ranks
  for (int rank = 0; rank < num_ranks(); ++rank) {
    block_.parts[static_cast<size_t>(rank)] = brought(rank).columns;
    if (rank > 0) columns += brought(rank).columns.columns;
  }
  const auto room = static_cast<int64_t>(staging_->num_bytes() / sizeof(float));
  QUIRE_CHECK(columns <= room, "a row of ", columns, " columns of other ranks in memory for ", room);
  block_.first_row = first.first_row;
  block_.num_rows = std::min(first.columns.rows - first.first_row, room / std::max<int64_t>(columns, 1));
  float* to = reinterpret_cast<float*>(staging_->data());
  for (size_t rank = 1; rank < ranks_.size(); ++rank) {
    block_.staged[rank] = to;
    to += block_.num_rows * block_.parts[rank].columns;
  }
}

void LibraryGroup::put_columns(int rank) {
  if (rank == 0) begin_block();
  const Brought& own = brought(rank);
  QUIRE_CHECK(own.columns.rows == brought(0).columns.rows && own.first_row == block_.first_row, "rank 0 gathers ",
              brought(0).columns.rows, " rows, rank ", rank, " ", own.columns.rows);
  if (rank > 0) {
    library_->send(rank, 0, own.columns.part + block_.first_row * own.columns.columns,
                   block_.num_rows * own.columns.columns, own.stream);
    return;
  }
  for (int other = 1; other < num_ranks(); ++other) {
    const auto index = static_cast<size_t>(other);
    library_->receive(0, other, block_.staged[index], block_.num_rows * block_.parts[index].columns, own.stream);
  }
}

// -------------------------------------------------------------------------------------------------------- the ranks

int LibraryRank::num_ranks() const { return group_.num_ranks(); }

void LibraryRank::all_reduce(const AllReduceParams& params, Stream stream) {
  QUIRE_CHECK(!params.has_norm, "a norm behind a sum that does not fuse it");
  group_.brought(rank_).stream = stream;
  group_.brought(rank_).sum = params;
  group_.meet(rank_, "all_reduce", &LibraryGroup::put_sum);
  if (!params.accumulate) return;
  ReduceRowsParams add;
  add.partials[0] = params.partial;
  add.outs[0] = params.out;
  add.base = params.out;
  add.num_partials = add.num_outs = 1;
  add.partial_stride = add.out_stride = add.dim = params.dim;
  add.rows = params.rows;
  device_.kernels().reduce_rows(add, stream);
}

void LibraryRank::gather_columns(const GatherColumnsParams& params, Stream stream) {
  Brought& own = group_.brought(rank_);
  own.stream = stream;
  own.columns = params;
  for (own.first_row = 0; own.first_row < params.rows; own.first_row += group_.block().num_rows) {
    group_.meet(rank_, "gather_columns", &LibraryGroup::put_columns);
    if (rank_ == 0) place_columns(stream);
  }
}

// A copy is a sum of one.
void LibraryRank::place_columns(Stream stream) const {
  const Block& block = group_.block();
  for (size_t rank = 0; rank < static_cast<size_t>(num_ranks()); ++rank) {
    const GatherColumnsParams& part = block.parts[rank];
    ReduceRowsParams copy;
    copy.partials[0] = rank == 0 ? part.part + block.first_row * part.columns : block.staged[rank];
    copy.num_partials = copy.num_outs = 1;
    copy.partial_stride = copy.dim = part.columns;
    copy.rows = block.num_rows;
    copy.outs[0] = block.parts[0].out + block.first_row * block.parts[0].out_stride + part.first_column;
    copy.out_stride = block.parts[0].out_stride;
    device_.kernels().reduce_rows(copy, stream);
  }
}

void LibraryRank::broadcast(void* data, size_t num_bytes, Stream stream) {
  Brought& own = group_.brought(rank_);
  own.stream = stream;
  own.data = data;
  own.num_bytes = num_bytes;
  group_.meet(rank_, "broadcast", &LibraryGroup::put_bytes);
}

void LibraryRank::barrier(Stream stream) {
  events_[turn_]->record(stream);
  group_.meet(rank_, "barrier", nullptr);
  for (int other = 0; other < num_ranks(); ++other) {
    if (other != rank_) device_.wait_for(stream, group_.rank(other).event(turn_));
  }
  turn_ ^= 1;
}

}  // namespace

std::unique_ptr<CommunicatorGroup> make_library_group(const std::vector<Device*>& devices, double time_limit,
                                                      size_t gather_bytes) {
  QUIRE_CHECK(!devices.empty() && devices.size() <= kMaxRanks, devices.size(), " ranks");
  return std::make_unique<LibraryGroup>(devices, time_limit, gather_bytes);
}

}  // namespace quire
