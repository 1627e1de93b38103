// A file mapped read-only into memory; unmapped by the destructor.
//
// The file stays open, so that somebody who wants to read it again can ask whether it is what it was. One that was
// deleted or replaced under its name is still there for whoever has mapped it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace quire {

class FileMap {
 public:
  // Throws InvalidArgument naming the file when it cannot be opened or is empty.
  explicit FileMap(const std::filesystem::path& path);
  ~FileMap();
  FileMap(FileMap&& other) noexcept;
  FileMap& operator=(FileMap&& other) noexcept;
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;

  std::span<const std::byte> bytes() const { return {data_, num_bytes_}; }
  // Tells the kernel that these pages will not be read again, so that a packed copy does not cost memory twice.
  void discard(size_t begin, size_t end) const;
  // Somebody wrote to the file after it was mapped, or cut it: its bytes may be others now, or not there at all. Goes
  // by size and time of modification.
  bool was_written() const;
  int64_t modified_ns() const { return modified_ns_; }  // when it was mapped

 private:
  const std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
  int fd_ = -1;
  int64_t modified_ns_ = 0;
};

}  // namespace quire
