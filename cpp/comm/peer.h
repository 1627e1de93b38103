// Collectives between devices that reach each other's memory, by quire's own kernel (KernelTable::reduce_rows).
//
// Decides: which rank sums which rows, and what waits for what. No kernel waits for another rank: a rank records an
// event, the host threads of all ranks meet, and each stream waits for the others' events. So ranks may share a GPU,
// and one that fails leaves no kernel spinning. It costs a meeting a collective, and steps that cannot be captured.
//
// One-shot, for few bytes: every rank sums all rows into its own memory, one wait. Two-shot: every rank sums its share
// of the rows into everybody's memory, one wait more. Both in the order of the ranks: the bits are the same.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "device/device.h"

namespace quire {

// The devices are used by the ranks' threads and must live as long as these call; `time_limit` in seconds.
std::unique_ptr<CommunicatorGroup> make_peer_group(const std::vector<Device*>& devices, double time_limit);

// Bytes of a sum from which on ranks share its rows out; two ranks never do, since they would move as much.
constexpr int64_t kTwoShotBytes = int64_t{256} << 10;
constexpr bool is_two_shot(int num_ranks, int64_t rows, int64_t dim) {
  return num_ranks > 2 && rows >= num_ranks && rows * dim * static_cast<int64_t>(sizeof(float)) > kTwoShotBytes;
}

}  // namespace quire
