// Packed weights on disk: what a region held after a load, for the next start to map instead of packing again.
//
// Decides: a file's format and name, when it is believed, which files go when their folder is full. A file is believed
// when it says of itself, word for word, what describe_packed() says of the weights wanted: the checkpoint's files and
// samples of every tensor, where each tensor goes, the layout, the kernels and the library that packed. Does not know:
// how weights are packed. For host memory; one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/device.h"
#include "device/region.h"
#include "model/arch.h"
#include "model/weight_match.h"
#include "model/weight_slots.h"

namespace quire {

struct PackedLimits {
  int64_t folder_bytes = int64_t{64} << 30;  // of all files in the folder; those not used for longest go, and for 30
                                             // days in any case
  int64_t min_bytes = int64_t{16} << 20;     // of weights: fewer are packed before a file is found
  double free_share = 0.1;                   // of the disk, that stays free
};

class PackedCopy {
 public:
  // The region is that of the weights. The folder is made when something is stored.
  PackedCopy(Region& region, std::filesystem::path folder, PackedLimits limits = {})
      : region_(region), folder_(std::move(folder)), limits_(limits) {}

  const Region& region() const { return region_; }
  bool is_worth_it() const { return static_cast<int64_t>(region_.num_bytes()) >= limits_.min_bytes; }
  // The region shows the file that was stored under this description. False: there is none, or it is damaged.
  bool show(const std::string& description);
  // Writes the region to disk, whole or not at all. What prevents it is logged: the weights are there, nothing is lost.
  void store(const std::string& description);
  std::filesystem::path file_of(const std::string& description) const;

 private:
  std::string problem_of_storing(int64_t num_bytes) const;

  Region& region_;
  std::filesystem::path folder_;
  PackedLimits limits_;
};

// Of weights in host memory; null for those of other devices, or without a folder.
inline std::unique_ptr<PackedCopy> packed_copy_in(const std::string& folder, const Device& device, Region& region) {
  if (folder.empty() || device.is_asynchronous()) return nullptr;
  return std::make_unique<PackedCopy>(region, folder);
}

// All that the packed bytes follow from. Empty: the checkpoint is not one of files, which could be known again.
std::string describe_packed(const ArchSpec& arch, const Checkpoint& checkpoint, const std::vector<BoundRule>& found,
                            const std::vector<WeightSlot>& slots, const char* kernels, const Region& region);

// What is wrong with a file that store() wrote, all of its bytes read; empty: nothing.
std::string problem_of_packed_file(const std::filesystem::path& file);

}  // namespace quire
