// Collectives between threads that share memory: the ranks of a CPU.
//
// A rank publishes where its data lies, all meet, each does its share of the work in everybody's memory, all meet
// again. So a sum is computed once, in the order of the ranks, and every rank has the same bits. Whoever waits spins
// for a short while and then sleeps.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace quire {

// `time_limit` in seconds: a rank that the others wait for longer than that is given up.
std::unique_ptr<CommunicatorGroup> make_loopback_group(int num_ranks, double time_limit);

}  // namespace quire
