// The host as a device: mmap'ed regions, a thread pool as its stream, CPU kernels.
//
// Regions reserve addresses once (PROT_NONE after release) and ask for huge pages, which is worth 40% of read
// bandwidth on weights. Physical pages come on first touch; those of a file that is shown are the page cache's.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include "base/check.h"
#include "base/huge_pages.h"
#include "cpu/cpu_kernels.h"
#include "device/device.h"
#include "device/host/recorded_kernels.h"

namespace quire {
namespace {

class HostRegion final : public Region {
 public:
  HostRegion(RegionTag tag, size_t num_bytes) : tag_(tag), num_bytes_(num_bytes) {
    // One huge page more than asked for, so that the start can be aligned to one.
    mapped_bytes_ = (num_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes + kHugePageBytes;
    mapping_ = ::mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) {
      throw DeviceError(str_cat("mmap of ", num_bytes, " bytes for the region \"", region_tag_name(tag),
                                "\" failed: ", std::strerror(errno)));
    }
    const auto address = reinterpret_cast<uintptr_t>(mapping_);
    data_ = reinterpret_cast<std::byte*>((address + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes);
    restore();
  }
  ~HostRegion() override { ::munmap(mapping_, mapped_bytes_); }
  HostRegion(const HostRegion&) = delete;
  HostRegion& operator=(const HostRegion&) = delete;

  std::byte* data() const override { return data_; }
  size_t num_bytes() const override { return num_bytes_; }
  RegionTag tag() const override { return tag_; }
  bool resident() const override { return resident_; }

  void release() override {
    if (!resident_) return;
    if (shows_file_) {
      map_memory(data_, PROT_NONE, MAP_FIXED);
    } else {
      check(::madvise(data_, rounded_bytes(), MADV_DONTNEED), "madvise(MADV_DONTNEED)");
      check(::mprotect(data_, rounded_bytes(), PROT_NONE), "mprotect(PROT_NONE)");
    }
    resident_ = false;
    shows_file_ = false;
  }

  void restore() override {
    if (resident_ || num_bytes_ == 0) return;
    check(::mprotect(data_, rounded_bytes(), PROT_READ | PROT_WRITE), "mprotect(PROT_READ | PROT_WRITE)");
    // Advice only: kernels without transparent huge pages say no, and everything still works.
    if (num_bytes_ >= kHugePageBytes) ::madvise(data_, rounded_bytes(), MADV_HUGEPAGE);
    resident_ = true;
  }

  bool show_file(int fd, size_t offset, size_t begin, size_t count) override {
    QUIRE_CHECK(resident_ && begin + count <= num_bytes_, "a file in place of what is not there");
    if (count == 0) return false;
    // A failed mmap over the region may have taken away what was there; so it is mapped elsewhere first, and moved.
    void* const view =
        ::mmap(nullptr, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, static_cast<off_t>(offset));
    if (view == MAP_FAILED) return false;
    ::madvise(view, count, MADV_HUGEPAGE);  // file systems with large pages read them so
    move(view, count, data_ + begin);
    shows_file_ = true;
    return true;
  }

  bool shows_file() const override { return shows_file_; }

  void copy_file() override {
    if (!shows_file_) return;
    // Aligned as the region is, so that huge pages can be moved as such.
    const size_t num_bytes = rounded_bytes();
    auto* const mapping = static_cast<std::byte*>(map_memory(nullptr, PROT_READ | PROT_WRITE, 0, kHugePageBytes));
    const auto address = reinterpret_cast<uintptr_t>(mapping);
    std::byte* const copy = mapping + (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes;
    if (num_bytes_ >= kHugePageBytes) ::madvise(copy, num_bytes, MADV_HUGEPAGE);
    std::memcpy(copy, data_, num_bytes_);
    move(copy, num_bytes, data_);
    // What of the mapping lay before and behind the copy.
    if (copy > mapping) ::munmap(mapping, static_cast<size_t>(copy - mapping));
    const auto behind = static_cast<size_t>(mapping + kHugePageBytes - copy);
    if (behind > 0) ::munmap(copy + num_bytes, behind);
    shows_file_ = false;
  }

 private:
  void* map_memory(void* where, int protection, int flags, size_t more_bytes = 0) const {
    void* const mapped = ::mmap(where, rounded_bytes() + more_bytes, protection,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (mapped != MAP_FAILED) return mapped;
    throw DeviceError(str_cat("mmap of ", rounded_bytes(), " bytes for the region \"", region_tag_name(tag_),
                              "\" failed: ", std::strerror(errno)));
  }
  void move(void* mapping, size_t num_bytes, std::byte* where) const {
    if (::mremap(mapping, num_bytes, num_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, where) != MAP_FAILED) return;
    const int error = errno;
    ::munmap(mapping, num_bytes);
    throw DeviceError(str_cat("mremap of ", num_bytes, " bytes to the region \"", region_tag_name(tag_),
                              "\" failed: ", std::strerror(error)));
  }
  size_t rounded_bytes() const {
    const size_t page = num_bytes_ >= kHugePageBytes ? kHugePageBytes : static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    return (num_bytes_ + page - 1) / page * page;
  }
  void check(int result, const char* call) const {
    if (result == 0) return;
    throw DeviceError(str_cat(call, " on the region \"", region_tag_name(tag_), "\" of ", num_bytes_,
                              " bytes failed: ", std::strerror(errno)));
  }

  RegionTag tag_;
  size_t num_bytes_;
  size_t mapped_bytes_ = 0;
  void* mapping_ = nullptr;
  std::byte* data_ = nullptr;
  bool resident_ = false;
  bool shows_file_ = false;
};

// A line "MemAvailable:   123 kB" of /proc/meminfo in bytes; 0 when it is not there.
int64_t meminfo_bytes(const char* key) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kilobytes = 0;
  std::string rest;
  while (file >> name >> kilobytes && std::getline(file, rest)) {
    if (name == key) return kilobytes * 1024;
  }
  return 0;
}

// The memory limit of the control group, where one is set (containers); 0 otherwise.
int64_t read_bytes(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : 0;
}

class PlainBuffer final : public HostBuffer {
 public:
  explicit PlainBuffer(size_t num_bytes) : num_bytes_(num_bytes), data_(new (kAlignment) std::byte[num_bytes]) {}
  std::byte* data() const override { return data_.get(); }
  size_t num_bytes() const override { return num_bytes_; }

 private:
  static constexpr auto kAlignment = std::align_val_t{64};
  struct Free {
    void operator()(std::byte* data) const { ::operator delete[](data, kAlignment); }
  };
  size_t num_bytes_;
  std::unique_ptr<std::byte[], Free> data_;
};

// Nothing is ever left to do.
class DoneEvent final : public Event {
 public:
  void record(Stream) override {}
  void wait() override {}
};

class HostDevice final : public Device {
 public:
  explicit HostDevice(const HostDeviceOptions& options)
      : selected_(cpu::select_kernels(options.isa)),
        kernels_(selected_),
        pool_(options.num_threads > 0 ? options.num_threads : default_num_threads()) {}

  std::string name() const override { return "cpu"; }
  const KernelTable& kernels() const override { return kernels_; }
  Stream stream() const override { return {.handle = static_cast<ThreadPool*>(const_cast<RecordedPool*>(&pool_))}; }
  int num_threads() const override { return pool_.num_threads(); }

  DeviceMemory memory() const override {
    DeviceMemory memory{.total_bytes = meminfo_bytes("MemTotal:"), .available_bytes = meminfo_bytes("MemAvailable:")};
    const int64_t limit = read_bytes("/sys/fs/cgroup/memory.max");
    if (limit > 0 && limit < memory.total_bytes) {
      memory.total_bytes = limit;
      memory.available_bytes = std::min(memory.available_bytes, limit - read_bytes("/sys/fs/cgroup/memory.current"));
    }
    return memory;
  }

  std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) override {
    return std::make_unique<HostRegion>(tag, num_bytes);
  }
  void copy_to_device(void* destination, const void* source, size_t num_bytes) override {
    std::memcpy(destination, source, num_bytes);
  }
  void copy_to_host(void* destination, const void* source, size_t num_bytes) override {
    std::memcpy(destination, source, num_bytes);
  }
  std::unique_ptr<HostBuffer> allocate_host(size_t num_bytes) override {
    return std::make_unique<PlainBuffer>(num_bytes);
  }
  void copy_async(void* destination, const void* source, size_t num_bytes, Stream) override {
    std::memcpy(destination, source, num_bytes);
  }
  void fill_async(void* destination, std::byte value, size_t num_bytes, Stream) override {
    std::memset(destination, static_cast<int>(value), num_bytes);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<DoneEvent>(); }
  void wait_for(Stream, const Event&) override {}
  std::unique_ptr<Graph> capture(const std::function<void()>&) override { return nullptr; }
  void synchronize() override {}  // launchers of the CPU complete on return
  void set_recorder(Recorder* recorder) override {
    pool_.kernels = &selected_;
    pool_.recorder = recorder;
    kernels_ = recorder != nullptr ? recorded_kernels(selected_) : selected_;
  }

 private:
  const KernelTable& selected_;
  KernelTable kernels_;  // those, or what records them
  RecordedPool pool_;
};

}  // namespace

std::unique_ptr<Device> make_host_device(const HostDeviceOptions& options) {
  return std::make_unique<HostDevice>(options);
}

}  // namespace quire
