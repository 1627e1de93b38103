// Packed weights on disk: what is mapped is what was packed, anything else is packed again, and a disk that cannot take
// them costs nothing but the file.
#include "model/packed_copy.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <map>
#include <numeric>

#include "base/log.h"
#include "model/shard.h"
#include "model/tiny_families.h"
#include "model/weight_update.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using test::RandomCheckpoint;
using test::Stored;
using test::tiny_families;

constexpr PackedLimits kAnySize = {.min_bytes = 0, .free_share = 0.0};
constexpr size_t kLarge = (size_t{20} << 20) + 12345;  // several pieces, and no whole pages

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "quire-packed-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  fs::path path() const { return path_ / "weights"; }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    if (fs::exists(path())) {
      for (const fs::directory_entry& entry : fs::directory_iterator(path())) found.push_back(entry.path());
    }
    return found;
  }

 private:
  fs::path path_;
};

// Tensors as if they came from files.
class FiledCheckpoint final : public Checkpoint {
 public:
  FiledCheckpoint(const ArchSpec& arch, uint32_t seed, std::string files = "file a\n")
      : tensors_(arch, Stored::bf16, seed), files_(std::move(files)) {}
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_.tensors(); }
  std::string describe_files() const override { return files_; }

 private:
  RandomCheckpoint tensors_;
  std::string files_;
};

std::unique_ptr<Region> filled_region(Device& device, uint32_t seed, size_t num_bytes = kLarge) {
  std::unique_ptr<Region> region = device.allocate(RegionTag::weights, num_bytes);
  for (size_t i = 0; i < num_bytes; ++i) region->data()[i] = static_cast<std::byte>((i * 31 + i / 4096 + seed) % 251);
  return region;
}

std::vector<std::byte> bytes_of(const Region& region) { return {region.data(), region.data() + region.num_bytes()}; }

// The weights of a model, loaded with a copy on disk.
struct Model {
  Model(const ArchSpec& arch, const Checkpoint& checkpoint, const fs::path& folder, const std::string& isa = "portable",
        WeightFormat format = WeightFormat(DType::bf16))
      : arch(arch), device(make_host_device({.num_threads = 2, .isa = isa})) {
    region = device->allocate(RegionTag::weights, place_weights(arch, format, device->kernels(), nullptr, weights));
    place_weights(arch, format, device->kernels(), region->data(), weights);
    PackedCopy packed(*region, folder, kAnySize);
    load_weights(arch, checkpoint, *device, weights, {.packed = &packed});
  }
  WeightAccess access() { return {arch, *device, weights, nullptr, state, region.get()}; }

  ArchSpec arch;
  std::unique_ptr<Device> device;
  std::unique_ptr<Region> region;
  Weights weights;
  WeightState state;
};

ArchSpec arch_of(const std::string& family) {
  for (const test::TinyFamily& tiny : tiny_families()) {
    if (tiny.name == family) return arch_registry().build(tiny.config);
  }
  throw std::logic_error(family);
}

// What the region of a model without any copy on disk holds.
std::vector<std::byte> packed_bytes(const ArchSpec& arch, const Checkpoint& checkpoint,
                                    WeightFormat format = WeightFormat(DType::bf16)) {
  const std::unique_ptr<Device> device = make_host_device({.num_threads = 2, .isa = "portable"});
  Weights weights;
  const std::unique_ptr<Region> region =
      device->allocate(RegionTag::weights, place_weights(arch, format, device->kernels(), nullptr, weights));
  place_weights(arch, format, device->kernels(), region->data(), weights);
  load_weights(arch, checkpoint, *device, weights);
  return bytes_of(*region);
}

TEST(PackedCopy, ShowsWhatWasStored) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1);
  const std::vector<std::byte> stored = bytes_of(*region);
  PackedCopy(*region, folder.path(), kAnySize).store("these\nweights");
  EXPECT_EQ(bytes_of(*region), stored);
  EXPECT_TRUE(region->shows_file()) << "the copy in memory would be a second one";

  const auto other = device->allocate(RegionTag::weights, kLarge);
  PackedCopy copy(*other, folder.path(), kAnySize);
  EXPECT_FALSE(copy.show("those\nweights"));
  ASSERT_TRUE(copy.show("these\nweights"));
  EXPECT_EQ(bytes_of(*other), stored);
  EXPECT_EQ(problem_of_packed_file(copy.file_of("these\nweights")), "");
  ASSERT_EQ(folder.files().size(), 1u);
  EXPECT_EQ(fs::status(folder.files().front()).permissions() & fs::perms::all,
            fs::perms::owner_read | fs::perms::owner_write);
}

TEST(PackedCopy, WhatIsWrittenToTheWeightsDoesNotReachTheFile) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1);
  std::vector<std::byte> expected = bytes_of(*region);
  PackedCopy copy(*region, folder.path(), kAnySize);
  copy.store("weights");
  region->data()[0] = expected[0] = std::byte{255};
  region->data()[kLarge - 1] = expected[kLarge - 1] = std::byte{255};
  EXPECT_EQ(bytes_of(*region), expected);
  region->copy_file();
  EXPECT_FALSE(region->shows_file());
  EXPECT_EQ(bytes_of(*region), expected) << "changes are part of the contents";
  EXPECT_EQ(problem_of_packed_file(copy.file_of("weights")), "");
}

TEST(PackedCopy, ReleaseAndRestoreEndTheView) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1);
  const std::vector<std::byte> stored = bytes_of(*region);
  std::byte* const data = region->data();
  PackedCopy copy(*region, folder.path(), kAnySize);
  copy.store("weights");
  region->release();
  EXPECT_FALSE(region->shows_file());
  region->restore();
  EXPECT_EQ(region->data(), data);
  EXPECT_EQ(bytes_of(*region), std::vector<std::byte>(kLarge)) << "restored memory is zero";
  ASSERT_TRUE(copy.show("weights"));
  EXPECT_EQ(bytes_of(*region), stored);
}

TEST(PackedCopy, DamagedFilesAreNotUsed) {
  const auto device = make_host_device({.num_threads = 1});
  const std::map<std::string, std::function<void(const fs::path&)>> damages = {
      {"cut", [](const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }},
      {"longer", [](const fs::path& file) { fs::resize_file(file, fs::file_size(file) + 1); }},
      {"empty", [](const fs::path& file) { fs::resize_file(file, 0); }},
      {"header",
       [](const fs::path& file) { std::fstream(file, std::ios::in | std::ios::out | std::ios::binary) << "QUIRE"; }},
      {"description",
       [](const fs::path& file) {
         std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
         stream.seekp(40);
         stream << "W";
       }},
      {"writable", [](const fs::path& file) { fs::permissions(file, fs::perms::all); }},
  };
  for (const auto& [name, damage] : damages) {
    SCOPED_TRACE(name);
    const Folder folder;
    const auto region = filled_region(*device, 1, 5000);
    PackedCopy copy(*region, folder.path(), kAnySize);
    copy.store("weights");
    const auto other = filled_region(*device, 2, 5000);
    const std::vector<std::byte> before = bytes_of(*other);
    PackedCopy reader(*other, folder.path(), kAnySize);
    damage(copy.file_of("weights"));
    EXPECT_FALSE(reader.show("weights"));
    EXPECT_EQ(bytes_of(*other), before);
    if (name == "description") continue;  // a good file of other weights
    EXPECT_NE(problem_of_packed_file(copy.file_of("weights")), "");
  }
}

TEST(PackedCopy, AChangedByteIsFoundByTheChecksum) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1);
  PackedCopy copy(*region, folder.path(), kAnySize);
  copy.store("weights");
  const fs::path file = copy.file_of("weights");
  for (const size_t from_end : {size_t{1}, size_t{5000}, kLarge}) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(fs::file_size(file) - from_end);
    stream.seekg(at);
    const int byte = stream.get();
    stream.seekp(at);
    stream.put(static_cast<char>(byte ^ 1)).flush();
    EXPECT_EQ(problem_of_packed_file(file), "its bytes are not those that were written") << from_end;
    stream.seekp(at);
    stream.put(static_cast<char>(byte)).flush();
    EXPECT_EQ(problem_of_packed_file(file), "");
  }
}

TEST(PackedCopy, ADiskThatIsFullLeavesTheWeightsAndNoFile) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1);
  const std::vector<std::byte> before = bytes_of(*region);
  // A limit on the size of files fails in the middle of writing, as a full disk does.
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit low = {.rlim_cur = rlim_t{12} << 20, .rlim_max = limit.rlim_max};
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &low), 0);
  PackedCopy(*region, folder.path(), kAnySize).store("weights");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  ::signal(SIGXFSZ, handler);
  EXPECT_TRUE(folder.files().empty());
  EXPECT_FALSE(region->shows_file()) << "it would keep a file that has no name on the disk";
  EXPECT_EQ(bytes_of(*region), before);
}

TEST(PackedCopy, AFolderThatCannotBeMadeIsLoggedOnly) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1, 5000);
  std::ofstream(folder.path()) << "a file";
  std::string told;
  set_log_sink([&](LogLevel level, const std::string& message) {
    EXPECT_EQ(level, LogLevel::info);
    told += message;
  });
  PackedCopy(*region, folder.path() / "below", kAnySize).store("weights");
  set_log_sink({});
  EXPECT_NE(told.find("not kept"), std::string::npos) << told;
}

TEST(PackedCopy, TheFileThatWasNotUsedForLongestGoes) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1, 5000);
  const int64_t file_bytes = 5000 + (int64_t{2} << 20);
  PackedCopy copy(*region, folder.path(), {.folder_bytes = 3 * file_bytes, .min_bytes = 0, .free_share = 0.0});
  const auto now = fs::file_time_type::clock::now();
  for (const int i : {0, 1, 2}) {
    const std::string name = std::to_string(i);
    copy.store(name);
    fs::last_write_time(copy.file_of(name), now - std::chrono::hours(3 - i));
  }
  ASSERT_EQ(folder.files().size(), 3u);
  ASSERT_TRUE(copy.show("0"));  // used now; "1" is the oldest
  copy.store("3");
  EXPECT_EQ(folder.files().size(), 3u);
  EXPECT_TRUE(fs::exists(copy.file_of("0")));
  EXPECT_FALSE(fs::exists(copy.file_of("1")));
  fs::last_write_time(copy.file_of("3"), now - std::chrono::hours(24 * 31));
  copy.store("4");
  EXPECT_FALSE(fs::exists(copy.file_of("3"))) << "not used for a month";
  PackedCopy small(*region, folder.path(), {.folder_bytes = 4000, .min_bytes = 0});
  small.store("5");
  EXPECT_FALSE(fs::exists(copy.file_of("5"))) << "larger than all files may be";
}

TEST(PackedCopy, KeepsAShareOfTheDiskFree) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1, 5000);
  PackedCopy(*region, folder.path(), {.min_bytes = 0, .free_share = 1.0}).store("weights");
  EXPECT_TRUE(folder.files().empty());
}

TEST(PackedCopy, FilesThatNobodyFinishedGo) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = filled_region(*device, 1, 5000);
  fs::create_directories(folder.path());
  for (const char* name : {".packing-old", ".packing-new"}) std::ofstream(folder.path() / name) << "begun";
  fs::last_write_time(folder.path() / ".packing-old", fs::file_time_type::clock::now() - std::chrono::hours(25));
  PackedCopy(*region, folder.path(), kAnySize).store("weights");
  EXPECT_FALSE(fs::exists(folder.path() / ".packing-old"));
  EXPECT_TRUE(fs::exists(folder.path() / ".packing-new"));
}

class PackedModels : public ::testing::TestWithParam<std::string> {};

TEST_P(PackedModels, TheNextLoadMapsTheBitsOfTheFirst) {
  const Folder folder;
  const ArchSpec arch = arch_of(GetParam());
  for (const WeightFormat format : {WeightFormat(DType::bf16), WeightFormat(DType::bf16, true)}) {
    SCOPED_TRACE(format.int8);
    const std::vector<std::byte> expected = packed_bytes(arch, FiledCheckpoint(arch, 1), format);
    const FiledCheckpoint checkpoint(arch, 1);
    const Model first(arch, checkpoint, folder.path(), "portable", format);
    EXPECT_EQ(bytes_of(*first.region), expected);
    const size_t num_files = folder.files().size();
    // Bytes that no sample of a tensor covers say where the weights came from: the file has them, this one does not.
    const FiledCheckpoint emptied(arch, 1);
    for (const CheckpointTensor& tensor : emptied.tensors()) {
      const size_t num_bytes = 2 * static_cast<size_t>(std::accumulate(tensor.shape.begin(), tensor.shape.end(),
                                                                       int64_t{1}, std::multiplies()));
      if (num_bytes <= 512) continue;
      std::memset(static_cast<std::byte*>(const_cast<void*>(tensor.data)) + 256, 0, num_bytes - 512);
    }
    const Model second(arch, emptied, folder.path(), "portable", format);
    EXPECT_TRUE(second.region->shows_file());
    EXPECT_EQ(bytes_of(*second.region), expected);
    EXPECT_EQ(folder.files().size(), num_files);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PackedModels,
                         ::testing::Values("llama", "llama_biases_tied", "phi3", "gpt2", "opt_projected"),
                         [](const auto& info) { return info.param; });

TEST(PackedModel, WhateverThePackedBytesFollowFromMakesAnotherFile) {
  const Folder folder;
  const ArchSpec arch = arch_of("llama");
  size_t num_files = 0;
  const auto expect_new = [&](const char* what, const ArchSpec& spec, const Checkpoint& checkpoint,
                              const std::string& isa = "portable", WeightFormat format = WeightFormat(DType::bf16)) {
    SCOPED_TRACE(what);
    const Model model(spec, checkpoint, folder.path(), isa, format);
    EXPECT_EQ(folder.files().size(), ++num_files);
  };
  expect_new("the first", arch, FiledCheckpoint(arch, 1));
  expect_new("other values", arch, FiledCheckpoint(arch, 2));
  expect_new("other files", arch, FiledCheckpoint(arch, 1, "file b\n"));
  const std::unique_ptr<Device> best = make_host_device({.num_threads = 1});
  if (std::string("portable") != best->kernels().name) {
    expect_new("other kernels", arch, FiledCheckpoint(arch, 1), best->kernels().name);
  }
  expect_new("another dtype", arch, FiledCheckpoint(arch, 1), "portable", WeightFormat(DType::f32));
  expect_new("int8", arch, FiledCheckpoint(arch, 1), "portable", WeightFormat(DType::bf16, true));
  for (const int rank : {0, 1}) {
    expect_new("a rank", shard_arch(arch, rank, 2), FiledCheckpoint(arch, 1));
  }
  const Model again(arch, FiledCheckpoint(arch, 1), folder.path());
  EXPECT_EQ(folder.files().size(), num_files) << "the same weights found no file";
}

TEST(PackedModel, CheckpointsThatAreNoFilesLeaveNone) {
  const Folder folder;
  const ArchSpec arch = arch_of("llama");
  const Model model(arch, FiledCheckpoint(arch, 1, ""), folder.path());
  EXPECT_TRUE(folder.files().empty());
}

TEST(PackedModel, SmallOnesLeaveNone) {
  const Folder folder;
  const auto device = make_host_device({.num_threads = 1});
  const auto region = device->allocate(RegionTag::weights, (size_t{16} << 20) - 1);
  EXPECT_FALSE(PackedCopy(*region, folder.path()).is_worth_it());
}

TEST(PackedModel, AnUpdateChangesTheWeightsAndNotTheFile) {
  const Folder folder;
  const ArchSpec arch = arch_of("llama");
  const FiledCheckpoint checkpoint(arch, 1);
  Model model(arch, checkpoint, folder.path());
  ASSERT_TRUE(model.region->shows_file());
  const FiledCheckpoint others(arch, 2);
  size_t next = 0;
  update_weights(
      one_rank(model.access()),
      [&](CheckpointTensor& tensor) {
        if (next == others.tensors().size()) return false;
        tensor = others.tensors()[next++];
        return true;
      },
      true);
  EXPECT_FALSE(model.region->shows_file());
  EXPECT_EQ(bytes_of(*model.region), packed_bytes(arch, FiledCheckpoint(arch, 2)));
  ASSERT_EQ(folder.files().size(), 1u);
  EXPECT_EQ(problem_of_packed_file(folder.files().front()), "");

  const Model fresh(arch, FiledCheckpoint(arch, 1), folder.path());
  EXPECT_EQ(bytes_of(*fresh.region), packed_bytes(arch, FiledCheckpoint(arch, 1)));
  reload_weights(one_rank(model.access()), &checkpoint);
  EXPECT_EQ(bytes_of(*model.region), packed_bytes(arch, FiledCheckpoint(arch, 1)));
}

}  // namespace
}  // namespace quire
