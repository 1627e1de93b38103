// Launchers that note when they ran and what they had to do at least, in front of a table's own.
//
// Decides: the names and arguments of kernels' spans. Only for kernels that are done when their launcher returns and
// whose arrays the host can read. The table of a device is replaced while somebody records, so nobody else pays.
#pragma once

#include "base/recorder.h"
#include "base/threads.h"
#include "params/kernel_table.h"

namespace quire {

// The threads of the host's stream, and who records what they do. Stream::handle is its address as a ThreadPool*.
struct RecordedPool final : ThreadPool {
  using ThreadPool::ThreadPool;
  const KernelTable* kernels = nullptr;  // those that work
  Recorder* recorder = nullptr;          // both are read while a table of recorded_kernels() is in use
};

// `kernels` with launchers for streams of a RecordedPool; what is done at load is not recorded.
KernelTable recorded_kernels(const KernelTable& kernels);

}  // namespace quire
