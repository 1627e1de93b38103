// mmap of checkpoint files; see file_map.h.
#include "base/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace quire {
namespace {

int64_t modification_ns(const struct stat& status) {
#if defined(__APPLE__)
  const timespec& time = status.st_mtimespec;
#else
  const timespec& time = status.st_mtim;
#endif
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

FileMap::FileMap(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw InvalidArgument(str_cat("cannot open ", path.string(), ": ", std::strerror(errno)));
  struct stat status{};
  if (::fstat(fd, &status) != 0 || status.st_size <= 0) {
    ::close(fd);
    throw InvalidArgument(str_cat(path.string(), " is empty or not a regular file"));
  }
  num_bytes_ = static_cast<size_t>(status.st_size);
  void* mapped = ::mmap(nullptr, num_bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_error = errno;
  if (mapped == MAP_FAILED) {
    ::close(fd);
    throw DeviceError(str_cat("mmap of ", path.string(), " failed: ", std::strerror(map_error)));
  }
  data_ = static_cast<const std::byte*>(mapped);
  fd_ = fd;
  modified_ns_ = modification_ns(status);
}

FileMap::~FileMap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), num_bytes_);
  if (fd_ >= 0) ::close(fd_);
}

FileMap::FileMap(FileMap&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      fd_(std::exchange(other.fd_, -1)),
      modified_ns_(other.modified_ns_) {}

FileMap& FileMap::operator=(FileMap&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(fd_, other.fd_);
  std::swap(modified_ns_, other.modified_ns_);
  return *this;
}

bool FileMap::was_written() const {
  struct stat status{};
  if (fd_ < 0 || ::fstat(fd_, &status) != 0) return true;
  return static_cast<size_t>(status.st_size) != num_bytes_ || modification_ns(status) != modified_ns_;
}

void FileMap::discard(size_t begin, size_t end) const {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace quire
