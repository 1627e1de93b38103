// The pages and the ring; see region_copy.h.
#include "engine/region_copy.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/huge_pages.h"
#include "base/threads.h"
#include "model/weight_sink.h"

namespace quire {
namespace {

constexpr size_t kSlotBytes = size_t{16} << 20;  // as in StagingOptions
constexpr size_t kTaskBytes = size_t{1} << 20;   // of one thread's copy
constexpr int kMostThreads = 16;                 // more would wait for the bus or for host memory

void copy_in_parallel(std::byte* to, const std::byte* from, size_t num_bytes, ThreadPool& threads) {
  const size_t num_tasks = (num_bytes + kTaskBytes - 1) / kTaskBytes;
  threads.parallel_for(static_cast<int64_t>(num_tasks), [&](int64_t task) {
    const size_t begin = static_cast<size_t>(task) * kTaskBytes;
    std::memcpy(to + begin, from + begin, std::min(kTaskBytes, num_bytes - begin));
  });
}

// Pinned slots between plain memory and an asynchronous device: while threads copy from or to one, others are on the
// bus.
class Ring {
 public:
  Ring(Device& device, size_t most_bytes)
      : device_(device), threads_(std::min(default_num_threads(), kMostThreads)), synchronize_(device) {
    slot_bytes_ = std::clamp<size_t>(most_bytes, 1, kSlotBytes);
    for (Slot& slot : slots_) slot = {.host = device.allocate_host(slot_bytes_), .done = device.make_event()};
  }

  void to_host(std::byte* to, const std::byte* from, size_t num_bytes) {
    const size_t num_chunks = (num_bytes + slot_bytes_ - 1) / slot_bytes_;
    for (size_t sent = 0, taken = 0; taken < num_chunks; ++taken) {
      for (; sent < num_chunks && sent < taken + slots_.size(); ++sent) {
        Slot& slot = slots_[sent % slots_.size()];
        const size_t begin = sent * slot_bytes_;
        device_.copy_async(slot.host->data(), from + begin, chunk_bytes(num_bytes, begin), device_.stream());
        slot.done->record(device_.stream());
      }
      Slot& slot = slots_[taken % slots_.size()];
      const size_t begin = taken * slot_bytes_;
      slot.done->wait();
      copy_in_parallel(to + begin, slot.host->data(), chunk_bytes(num_bytes, begin), threads_);
    }
  }

  void to_device(std::byte* to, const std::byte* from, size_t num_bytes) {
    for (size_t begin = 0, chunk = 0; begin < num_bytes; begin += slot_bytes_, ++chunk) {
      Slot& slot = slots_[chunk % slots_.size()];
      slot.done->wait();
      copy_in_parallel(slot.host->data(), from + begin, chunk_bytes(num_bytes, begin), threads_);
      device_.copy_async(to + begin, slot.host->data(), chunk_bytes(num_bytes, begin), device_.stream());
      slot.done->record(device_.stream());
    }
    device_.synchronize();
  }

 private:
  struct Slot {
    std::unique_ptr<HostBuffer> host;
    std::unique_ptr<Event> done;
  };
  size_t chunk_bytes(size_t num_bytes, size_t begin) const { return std::min(slot_bytes_, num_bytes - begin); }

  Device& device_;
  size_t slot_bytes_ = 0;
  ThreadPool threads_;
  std::array<Slot, 4> slots_;
  SynchronizeAtEnd synchronize_;  // the last member: it goes before the buffers
};

}  // namespace

PlainPages::PlainPages(size_t num_bytes) : num_bytes_(num_bytes) {
  if (num_bytes_ == 0) return;
  void* const mapped = ::mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw OutOfMemory(str_cat("mmap of ", num_bytes_, " bytes of host memory, for what sleeps, failed: ",
                              std::strerror(errno), ". sleep(level=2) keeps no copy of the weights."));
  }
  if (num_bytes_ >= kHugePageBytes) ::madvise(mapped, num_bytes_, MADV_HUGEPAGE);  // advice only
  data_ = static_cast<std::byte*>(mapped);
}

PlainPages::~PlainPages() {
  if (data_ != nullptr) ::munmap(data_, num_bytes_);
}

RegionCopy::RegionCopy(Device& device, const Region& region, std::vector<RegionSpan> spans)
    : device_(device), region_(region), spans_(std::move(spans)) {
  for (const RegionSpan& span : spans_) {
    QUIRE_CHECK(span.begin + span.num_bytes <= region.num_bytes(), "bytes from ", span.begin, " on, ", span.num_bytes,
                ", of a region of ", region.num_bytes());
    pages_.push_back(std::make_unique<PlainPages>(span.num_bytes));
  }
  if (!device.is_asynchronous()) {
    for (size_t i = 0; i < spans_.size(); ++i) {
      device.copy_to_host(pages_[i]->data(), region.data() + spans_[i].begin, spans_[i].num_bytes);
    }
    return;
  }
  Ring ring(device, num_bytes());
  for (size_t i = 0; i < spans_.size(); ++i) {
    ring.to_host(pages_[i]->data(), region.data() + spans_[i].begin, spans_[i].num_bytes);
  }
}

void RegionCopy::write_back() const {
  if (!device_.is_asynchronous()) {
    for (size_t i = 0; i < spans_.size(); ++i) {
      device_.copy_to_device(region_.data() + spans_[i].begin, pages_[i]->data(), spans_[i].num_bytes);
    }
    return;
  }
  Ring ring(device_, num_bytes());
  for (size_t i = 0; i < spans_.size(); ++i) {
    ring.to_device(region_.data() + spans_[i].begin, pages_[i]->data(), spans_[i].num_bytes);
  }
}

size_t RegionCopy::num_bytes() const {
  size_t total = 0;
  for (const RegionSpan& span : spans_) total += span.num_bytes;
  return total;
}

}  // namespace quire
