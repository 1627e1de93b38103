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
  ::close(fd);
  if (mapped == MAP_FAILED) {
    throw DeviceError(str_cat("mmap of ", path.string(), " failed: ", std::strerror(map_error)));
  }
  data_ = static_cast<const std::byte*>(mapped);
}

FileMap::~FileMap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), num_bytes_);
}

FileMap::FileMap(FileMap&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

FileMap& FileMap::operator=(FileMap&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

void FileMap::discard(size_t begin, size_t end) const {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace quire
