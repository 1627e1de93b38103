// Files of packed weights; see packed_copy.h.
//
// A file is a header, the description, and the bytes of the region from a multiple of 2 MiB on, so that they can be
// mapped in large pages. It gets its name when all of it is on disk.
#include "model/packed_copy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/file_map.h"
#include "base/hash.h"
#include "base/huge_pages.h"
#include "base/log.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'q', 'u', 'i', 'r', 'e', 'p', 'k', '1'};
constexpr const char* kSuffix = ".packed";
constexpr size_t kPieceBytes = size_t{8} << 20;  // written at once
constexpr auto kUnusedAge = std::chrono::hours(24 * 30);
constexpr auto kStaleAge = std::chrono::hours(24);  // of a file that nobody is writing any more

struct Header {
  char magic[8] = {};
  uint64_t description_bytes = 0;
  uint64_t data_offset = 0;
  uint64_t data_bytes = 0;
  uint64_t checksum = 0;  // of the data
};

size_t aligned(size_t num_bytes) { return (num_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes; }

struct OpenFile {
  int fd = -1;
  OpenFile() = default;
  explicit OpenFile(int descriptor) : fd(descriptor) {}
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() {
    if (fd >= 0) ::close(fd);
  }
};

// Four chains, since one would wait for its multiplications; memory is what limits it.
class Checksum {
 public:
  // All but the last piece are multiples of 32 bytes.
  void add(std::span<const std::byte> bytes) {
    size_t at = 0;
    for (; at + sizeof lanes_ <= bytes.size(); at += sizeof lanes_) {
      uint64_t words[4];
      std::memcpy(words, bytes.data() + at, sizeof words);
      for (int i = 0; i < 4; ++i) lanes_[i] = std::rotl((lanes_[i] ^ words[i]) * 0x9e3779b97f4a7c15ull, 29);
    }
    for (; at < bytes.size(); ++at) lanes_[0] = hash_combine(lanes_[0], static_cast<uint64_t>(bytes[at]));
  }
  uint64_t value() const {
    uint64_t sum = 0;
    for (const uint64_t lane : lanes_) sum = hash_combine(sum, lane);
    return sum;
  }

 private:
  uint64_t lanes_[4] = {1, 2, 3, 4};
};

std::string why() { return std::strerror(errno); }

void write_all(int fd, const void* data, size_t num_bytes, size_t offset) {
  const auto* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t written = ::pwrite(fd, bytes, num_bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw DeviceError(str_cat("writing failed: ", why()));
    bytes += written;
    offset += static_cast<size_t>(written);
    num_bytes -= static_cast<size_t>(written);
  }
}

bool read_all(int fd, void* data, size_t num_bytes, size_t offset) {
  return ::pread(fd, data, num_bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(num_bytes);
}

// What prevents the use of an open file with this description; empty: nothing, and the header is there.
std::string problem_of(int fd, Header& header, std::string& description) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) return why();
  // Whoever can write to the file decides about the weights.
  if (!S_ISREG(status.st_mode) || (status.st_uid != ::geteuid() && status.st_uid != 0) || (status.st_mode & 022) != 0) {
    return "it belongs to somebody else, or somebody else may write to it";
  }
  const auto num_bytes = static_cast<uint64_t>(status.st_size);
  if (!read_all(fd, &header, sizeof header, 0) || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    return "it is no file of packed weights of this version";
  }
  const bool fits = header.description_bytes <= num_bytes && header.data_bytes <= num_bytes &&
                    header.data_offset % kHugePageBytes == 0 &&
                    sizeof header + header.description_bytes <= header.data_offset &&
                    num_bytes == header.data_offset + header.data_bytes;
  if (!fits) return "its length is not what its header says";
  description.resize(header.description_bytes);
  return read_all(fd, description.data(), description.size(), sizeof header) ? "" : why();
}

// What is written is taken from the file from then on, so that the weights are in memory once, and shared.
void write_file(int fd, Region& region, const std::string& description) {
  Header header = {.description_bytes = description.size(), .data_bytes = region.num_bytes()};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.data_offset = aligned(sizeof header + description.size());
  Checksum checksum;
  for (size_t at = 0; at < region.num_bytes(); at += kPieceBytes) {
    const std::span piece(region.data() + at, std::min(kPieceBytes, region.num_bytes() - at));
    checksum.add(piece);
    write_all(fd, piece.data(), piece.size(), header.data_offset + at);
    region.show_file(fd, header.data_offset + at, at, piece.size());
  }
  header.checksum = checksum.value();
  write_all(fd, description.data(), description.size(), sizeof header);
  write_all(fd, &header, sizeof header, 0);
  if (::fsync(fd) != 0) throw DeviceError(str_cat("fsync failed: ", why()));
}

struct Stored {
  fs::path path;
  fs::file_time_type used;
  int64_t num_bytes = 0;
};

// Those of the folder, the one not used for longest first. Files that a process left unfinished go.
std::vector<Stored> stored_files(const fs::path& folder) {
  std::vector<Stored> files;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const fs::file_time_type used = entry.last_write_time(ignored);
    const auto num_bytes = static_cast<int64_t>(entry.file_size(ignored));
    if (entry.path().extension() == kSuffix) {
      files.push_back({entry.path(), used, num_bytes});
    } else if (entry.path().filename().string().starts_with(".packing-") &&
               fs::file_time_type::clock::now() - used > kStaleAge) {
      fs::remove(entry.path(), ignored);
    }
  }
  std::ranges::sort(files, {}, &Stored::used);
  return files;
}

// Whoever has a file mapped keeps it. Files of other builds of this library would never be used again.
void make_room(const fs::path& folder, int64_t num_bytes, int64_t limit) {
  const auto now = fs::file_time_type::clock::now();
  const std::vector<Stored> files = stored_files(folder);
  int64_t total = num_bytes;
  for (const Stored& file : files) total += file.num_bytes;
  std::error_code ignored;
  for (const Stored& file : files) {
    if (total <= limit && now - file.used < kUnusedAge) return;
    if (fs::remove(file.path, ignored)) total -= file.num_bytes;
  }
}

}  // namespace

fs::path PackedCopy::file_of(const std::string& description) const {
  uint64_t hashes[2] = {1, 2};
  for (uint64_t& hash : hashes) {
    for (const char letter : description) hash = hash_combine(hash, static_cast<unsigned char>(letter));
  }
  char name[40];
  std::snprintf(name, sizeof name, "%016llx%016llx%s", static_cast<unsigned long long>(hashes[0]),
                static_cast<unsigned long long>(hashes[1]), kSuffix);
  return folder_ / name;
}

bool PackedCopy::show(const std::string& description) {
  const fs::path path = file_of(description);
  const OpenFile file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.fd < 0) return false;
  Header header;
  std::string found;
  std::string problem = problem_of(file.fd, header, found);
  if (problem.empty() && (found != description || header.data_bytes != region_.num_bytes())) {
    problem = "it is of other weights";
  }
  if (!problem.empty()) {
    log_info("the packed weights in ", path.string(), " are not used: ", problem);
    return false;
  }
  if (!region_.show_file(file.fd, header.data_offset, 0, region_.num_bytes())) return false;
  ::futimens(file.fd, nullptr);  // used now
  log_info("the weights are mapped from ", path.string());
  return true;
}

std::string PackedCopy::problem_of_storing(int64_t num_bytes) const {
  if (num_bytes > limits_.folder_bytes) return str_cat("more than the ", limits_.folder_bytes, " bytes of all files");
  std::error_code error;
  const fs::space_info space = fs::space(folder_, error);
  if (error) return error.message();
  const auto reserve = static_cast<uint64_t>(limits_.free_share * static_cast<double>(space.capacity));
  if (space.available < static_cast<uint64_t>(num_bytes) + reserve) {
    return str_cat("the disk has ", space.available, " bytes left, of which ", reserve, " stay free");
  }
  return {};
}

void PackedCopy::store(const std::string& description) {
  const fs::path path = file_of(description);
  std::string temporary;
  try {
    if (!fs::exists(folder_)) {
      fs::create_directories(folder_);
      fs::permissions(folder_, fs::perms::owner_all);
    }
    const auto num_bytes = static_cast<int64_t>(region_.num_bytes() + kHugePageBytes);
    make_room(folder_, num_bytes, limits_.folder_bytes);
    const std::string problem = problem_of_storing(num_bytes);
    if (!problem.empty()) throw DeviceError(problem);
    temporary = (folder_ / ".packing-XXXXXX").string();
    const OpenFile file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (file.fd < 0) throw DeviceError(std::exchange(temporary, {}) + " cannot be made: " + why());
    log_info("the packed weights are written to ", path.string(), ": ", region_.num_bytes(),
             " bytes, once; the next start maps them");
    write_file(file.fd, region_, description);
    fs::rename(temporary, path);
    region_.show_file(file.fd, aligned(sizeof(Header) + description.size()), 0, region_.num_bytes());  // in one piece
  } catch (const std::exception& error) {
    log_info("the packed weights are not kept in ", path.string(), ": ", error.what());
    if (temporary.empty()) return;
    region_.copy_file();  // the disk may be full of it
    ::unlink(temporary.c_str());
  }
}

std::string problem_of_packed_file(const fs::path& path) {
  const OpenFile file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.fd < 0) return why();
  Header header;
  std::string description;
  std::string problem = problem_of(file.fd, header, description);
  if (!problem.empty()) return problem;
  const FileMap map(path);
  Checksum checksum;
  checksum.add(map.bytes().subspan(header.data_offset));
  return checksum.value() == header.checksum ? "" : "its bytes are not those that were written";
}

}  // namespace quire
