// What packed bytes follow from, as text; see packed_copy.h.
#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "model/packed_copy.h"
#include "model/shard.h"

namespace quire {
namespace {

constexpr size_t kSampleBytes = 256;

// Another build may pack in another way, and need not have another version.
std::string describe_library() {
  Dl_info info{};
  struct stat status{};
  if (::dladdr(reinterpret_cast<const void*>(&describe_packed), &info) == 0 || info.dli_fname == nullptr ||
      ::stat(info.dli_fname, &status) != 0) {
    return {};
  }
  return str_cat("library ", status.st_size, " bytes of ", status.st_mtim.tv_sec, ".", status.st_mtim.tv_nsec, "\n");
}

uint64_t hash_bytes(const std::byte* data, size_t num_bytes) {
  uint64_t hash = num_bytes;
  for (size_t i = 0; i < num_bytes; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, std::min(sizeof word, num_bytes - i));
    hash = hash_combine(hash, word);
  }
  return hash;
}

// A file can be replaced by another of the same size and time.
std::string describe_tensor(const CheckpointTensor& tensor) {
  size_t num_bytes = dtype_bytes(tensor.dtype);
  std::string text = str_cat("tensor ", tensor.name, " ", dtype_name(tensor.dtype));
  for (const int64_t size : tensor.shape) {
    num_bytes *= static_cast<size_t>(size);
    text += str_cat(" ", size);
  }
  const auto* data = static_cast<const std::byte*>(tensor.data);
  const size_t sample = std::min(num_bytes, kSampleBytes);
  return text + str_cat(" ", hash_bytes(data, sample), " ", hash_bytes(data + num_bytes - sample, sample), "\n");
}

std::string describe_rule(const ArchSpec& arch, const BoundRule& entry) {
  const bool transposed = entry.rule->transposed;
  std::string text = str_cat(" to ", static_cast<int>(entry.rule->slot), " of ", entry.layer, transposed ? " t" : "");
  if (entry.rule->slot == Slot::relative_bias) return text + "\n";
  for (const Piece& piece : pieces_of(arch, entry.rule->slot, entry.layer, entry.shape[transposed ? 1 : 0])) {
    text += str_cat(" | ", static_cast<int>(piece.target), " ", static_cast<int>(piece.part), " ", piece.source_row,
                    " ", piece.rows, " ", piece.row_begin, " ", piece.source_col, " ", piece.cols);
  }
  return text + "\n";
}

std::string describe_slot(const WeightSlot& slot, const std::byte* base) {
  const auto* data = static_cast<const std::byte*>(slot.vector != nullptr ? *slot.vector : slot.matrix->data);
  return str_cat("slot ", static_cast<int>(slot.slot), " of ", slot.layer, " at ", data - base, " ", slot.rows, " ",
                 slot.cols, " ", dtype_name(slot.dtype), slot.gated ? " gated" : "", slot.plus_one ? " plus one" : "",
                 "\n");
}

}  // namespace

std::string describe_packed(const ArchSpec& arch, const Checkpoint& checkpoint, const std::vector<BoundRule>& found,
                            const std::vector<WeightSlot>& slots, const char* kernels, const Region& region) {
  const std::string files = checkpoint.describe_files();
  const std::string library = describe_library();
  if (files.empty() || library.empty()) return {};
  std::string text = str_cat(files, library, "kernels ", kernels, "\nmodel ", arch.name, " rank ", arch.shard.rank,
                             " of ", arch.shard.num_ranks, " in ", region.num_bytes(), " bytes\n");
  if (arch.relative_bias.has_value()) {
    text += str_cat("relative bias ", arch.relative_bias->num_buckets, " ", arch.relative_bias->max_distance, "\n");
  }
  for (const WeightSlot& slot : slots) text += describe_slot(slot, region.data());
  for (const BoundRule& entry : found) text += describe_tensor(*entry.tensor) + describe_rule(arch, entry);
  return text;
}

}  // namespace quire
