// An NCCL for emulated devices: sums, copies and waits as the real one does, on the streams it is given.
//
// The sum of an element goes round the ring of ranks from a place that depends on the element's, as in NCCL's ring
// algorithm, so its bits are not those of a sum in the order of the ranks. A collective reads what it needs when the
// first of its streams comes to it, which is after all streams have come to it, and writes a rank's result in that
// rank's stream alone. Calls must lie in a group that has every rank; what else NCCL allows is refused, and so are
// devices twice. A rank that was aborted writes nothing more.
#include "kernels_simt/stand_in/nccl_ring.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace quire::nccl_ring;

constexpr int kSuccess = 0, kUnhandledCudaError = 1, kInvalidArgument = 4, kInvalidUsage = 5;
constexpr int kUint8 = 1, kFloat32 = 7, kSum = 0;

struct Clique {
  int num_ranks = 0;
  bool is_aborted = false;  // guarded by the mutex of the state
};

}  // namespace

struct Communicator {  // what ncclComm_t points to
  std::shared_ptr<Clique> clique;
  int rank = 0;
};

namespace {

struct Call {
  enum class Kind { all_reduce, broadcast, send, receive } kind = Kind::all_reduce;
  const void* in = nullptr;
  void* out = nullptr;
  size_t count = 0;  // of floats, or of bytes for broadcasts
  int peer = 0;
  Communicator* communicator = nullptr;
  void* stream = nullptr;
};

struct State {
  std::mutex mutex;
  Runtime runtime;
  Counts counts;
  std::map<std::pair<std::string, int>, std::pair<int, int>> failures;  // call and rank: in how many, what it says
};
State& state() {
  static State* const it = new State;  // work that a stream still holds may come at the very end
  return *it;
}

thread_local int depth = 0, group_result = kSuccess;
thread_local std::vector<Call> group;
thread_local std::string last_error;

int fail(int result, std::string why) {
  last_error = std::move(why);
  if (depth > 0) group_result = result;
  return result;
}

int told_to_fail(const char* call, int rank) {
  const std::lock_guard lock(state().mutex);
  const auto it = state().failures.find({call, rank});
  if (it == state().failures.end() || --it->second.first > 0) return kSuccess;
  const int result = it->second.second;
  state().failures.erase(it);
  return fail(result, std::string("the stand-in was told to fail ") + call);
}

// One collective of all ranks: result[rank] is what that rank gets.
struct Collective {
  std::vector<Call> calls;  // a rank
  std::shared_ptr<Clique> clique;
  bool is_done = false;
  std::vector<std::vector<char>> results;

  void compute() {
    is_done = true;
    if (calls[0].kind == Call::Kind::all_reduce) return sum();
    results.assign(calls.size(), {});
    const char* const first = static_cast<const char*>(calls[0].in);
    for (auto& result : results) result.assign(first, first + calls[0].count);
  }
  void sum() {
    const size_t num_ranks = calls.size(), count = calls[0].count;
    std::vector<float> total(count);
    const size_t chunk = std::max<size_t>((count + num_ranks - 1) / num_ranks, 1);
    for (size_t i = 0; i < count; ++i) {
      const size_t start = i / chunk + 1;
      const auto term = [&](size_t step) { return static_cast<const float*>(calls[(start + step) % num_ranks].in)[i]; };
      float value = term(0);
      for (size_t step = 1; step < num_ranks; ++step) value = term(step) + value;
      total[i] = value;
    }
    std::vector<char> bytes(count * sizeof(float));
    if (count > 0) std::memcpy(bytes.data(), total.data(), bytes.size());
    results.assign(num_ranks, bytes);
  }
  void finish(size_t rank) {
    {
      const std::lock_guard lock(state().mutex);
      if (clique->is_aborted) return;
    }
    if (!is_done) compute();
    if (!results[rank].empty()) std::memcpy(calls[rank].out, results[rank].data(), results[rank].size());
  }
};

bool enqueue(const std::vector<Call>& calls, const std::function<void(size_t)>& work) {
  std::vector<void*> streams;
  for (const Call& call : calls) streams.push_back(call.stream);
  return state().runtime.enqueue_on_all(streams, work);
}

// The same call of every rank, in order of ranks; null: they do not belong together.
std::shared_ptr<Collective> match(std::vector<Call> calls) {
  std::ranges::sort(calls, {}, [](const Call& call) { return call.communicator->rank; });
  auto collective = std::make_shared<Collective>();
  collective->clique = calls[0].communicator->clique;
  if (std::ssize(calls) != collective->clique->num_ranks) return nullptr;
  for (size_t rank = 0; rank < calls.size(); ++rank) {
    const Call& call = calls[rank];
    if (call.communicator->rank != static_cast<int>(rank) || call.communicator->clique != collective->clique ||
        call.kind != calls[0].kind || call.count != calls[0].count) {
      return nullptr;
    }
  }
  collective->calls = std::move(calls);
  return collective;
}

// Sends with the receives they belong to, in the order of each pair of ranks.
struct Exchange {
  struct Transfer {
    Call send, receive;
    std::vector<char> bytes;
  };
  std::vector<Transfer> transfers;
  std::vector<Call> streams;  // one call of each rank that takes part
  bool is_done = false;

  bool match(std::vector<Call> calls) {
    std::set<int> ranks;
    for (const Call& call : calls) {
      if (ranks.insert(call.communicator->rank).second) streams.push_back(call);
    }
    for (const Call& send : calls) {
      if (send.kind != Call::Kind::send) continue;
      const auto receive = std::ranges::find_if(calls, [&](const Call& other) {
        return other.kind == Call::Kind::receive && other.communicator->rank == send.peer &&
               other.peer == send.communicator->rank && other.count == send.count &&
               other.communicator->clique == send.communicator->clique;
      });
      if (receive == calls.end()) return false;
      transfers.push_back({send, *receive, {}});
      receive->peer = -1;  // taken
    }
    return transfers.size() * 2 == calls.size();
  }
  void finish(size_t index) {
    if (!is_done) {
      is_done = true;
      for (Transfer& it : transfers) {
        const char* const from = static_cast<const char*>(it.send.in);
        it.bytes.assign(from, from + it.send.count * sizeof(float));
      }
    }
    for (const Transfer& it : transfers) {
      if (it.receive.stream != streams[index].stream || it.bytes.empty()) continue;
      std::memcpy(it.receive.out, it.bytes.data(), it.bytes.size());
    }
  }
};

int launch(std::vector<Call> calls) {
  if (calls.empty()) return kSuccess;
  const auto is_transfer = [](const Call& call) {
    return call.kind == Call::Kind::send || call.kind == Call::Kind::receive;
  };
  bool is_on = false;
  if (std::ranges::all_of(calls, is_transfer)) {
    const auto exchange = std::make_shared<Exchange>();
    if (!exchange->match(std::move(calls))) return fail(kInvalidUsage, "a send or a receive of this group is alone");
    is_on = enqueue(exchange->streams, [exchange](size_t index) { exchange->finish(index); });
  } else {
    const std::shared_ptr<Collective> collective = match(std::move(calls));
    if (!collective) return fail(kInvalidUsage, "the group does not have one equal call of every rank");
    is_on = enqueue(collective->calls, [collective](size_t rank) { collective->finish(rank); });
  }
  return is_on ? kSuccess : fail(kUnhandledCudaError, "a stream takes nothing more");
}

int take(const char* name, const Call& call) {
  if (call.communicator == nullptr) return fail(kInvalidArgument, "no communicator");
  if (const int result = told_to_fail(name, call.communicator->rank); result != kSuccess) return result;
  if (depth == 0) return fail(kInvalidUsage, "this stand-in takes calls of all ranks in a group");
  group.push_back(call);
  return kSuccess;
}

int end_communicator(Communicator* communicator, bool is_abort) {
  const std::lock_guard lock(state().mutex);
  --state().counts.communicators;
  if (is_abort) ++state().counts.aborts;
  if (is_abort) communicator->clique->is_aborted = true;
  delete communicator;
  return kSuccess;
}

const Control kControl = {
    .reset =
        [](const Runtime& runtime) {
          const std::lock_guard lock(state().mutex);
          state().runtime = runtime;
          state().failures.clear();
          state().counts = {.communicators = state().counts.communicators};
        },
    .fail =
        [](const char* call, int rank, int n, int result) {
          const std::lock_guard lock(state().mutex);
          state().failures[{call, rank}] = {n, result};
        },
    .counts =
        [] {
          const std::lock_guard lock(state().mutex);
          return state().counts;
        },
};

}  // namespace

extern "C" {

const Control* quire_nccl_ring_control() { return &kControl; }

int ncclGetVersion(int* version) {
  *version = 22703;
  return kSuccess;
}
const char* ncclGetErrorString(int result) {
  return result == kUnhandledCudaError ? "unhandled cuda error (stand-in)"
         : result == kInvalidUsage     ? "invalid usage (stand-in)"
                                       : "some error (stand-in)";
}
const char* ncclGetLastError(Communicator*) { return last_error.c_str(); }

int ncclCommInitAll(Communicator** communicators, int num_devices, const int* devices) {
  if (const int result = told_to_fail("ncclCommInitAll", 0); result != kSuccess) return result;
  if (std::set<int>(devices, devices + num_devices).size() != static_cast<size_t>(num_devices)) {
    return fail(kInvalidUsage, "Duplicate GPU detected");
  }
  const auto clique = std::make_shared<Clique>(Clique{.num_ranks = num_devices});
  for (int rank = 0; rank < num_devices; ++rank) communicators[rank] = new Communicator{clique, rank};
  const std::lock_guard lock(state().mutex);
  state().counts.communicators += num_devices;
  ++state().counts.inits;
  return kSuccess;
}
int ncclCommDestroy(Communicator* communicator) { return end_communicator(communicator, false); }
int ncclCommAbort(Communicator* communicator) { return end_communicator(communicator, true); }
int ncclCommGetAsyncError(Communicator* communicator, int* result) {
  *result = told_to_fail("ncclCommGetAsyncError", communicator->rank);
  return kSuccess;
}

int ncclGroupStart() {
  ++depth;
  return kSuccess;
}
int ncclGroupEnd() {
  if (depth == 0) return fail(kInvalidUsage, "no group was begun");
  if (--depth > 0) return kSuccess;
  const std::vector<Call> calls = std::exchange(group, {});
  if (const int result = std::exchange(group_result, kSuccess); result != kSuccess) return result;
  if (const int result = told_to_fail("ncclGroupEnd", 0); result != kSuccess) return result;
  {
    const std::lock_guard lock(state().mutex);
    if (!calls.empty()) ++state().counts.groups;
  }
  return launch(calls);
}

int ncclAllReduce(const void* in, void* out, size_t count, int type, int reduction, Communicator* communicator,
                  void* stream) {
  if (type != kFloat32 || reduction != kSum) return fail(kInvalidArgument, "sums of float32 only");
  return take("ncclAllReduce", {Call::Kind::all_reduce, in, out, count, 0, communicator, stream});
}
int ncclBroadcast(const void* in, void* out, size_t count, int type, int root, Communicator* communicator,
                  void* stream) {
  if (type != kUint8 || root != 0) return fail(kInvalidArgument, "the first rank's bytes only");
  return take("ncclBroadcast", {Call::Kind::broadcast, in, out, count, 0, communicator, stream});
}
int ncclSend(const void* in, size_t count, int type, int peer, Communicator* communicator, void* stream) {
  if (type != kFloat32) return fail(kInvalidArgument, "float32 only");
  return take("ncclSend", {Call::Kind::send, in, nullptr, count, peer, communicator, stream});
}
int ncclRecv(void* out, size_t count, int type, int peer, Communicator* communicator, void* stream) {
  if (type != kFloat32) return fail(kInvalidArgument, "float32 only");
  return take("ncclRecv", {Call::Kind::receive, nullptr, out, count, peer, communicator, stream});
}
}
