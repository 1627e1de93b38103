// A file mapped read-only into memory; unmapped by the destructor.
#pragma once

#include <cstddef>
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

 private:
  const std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

}  // namespace quire
