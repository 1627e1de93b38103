// A model directory's safetensors files as one Checkpoint: a single file, or the shards an index names.
#include <algorithm>
#include <map>
#include <set>

#include "base/file_map.h"
#include "base/json.h"
#include "model/safetensors.h"
#include "model/weight_loader.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

class MappedCheckpoint final : public Checkpoint {
 public:
  void add_file(const fs::path& path) {
    FileMap file(path);
    for (CheckpointTensor& tensor : parse_safetensors(file.bytes(), path.string())) {
      const auto [found, inserted] = file_of_.try_emplace(tensor.name, path.filename().string());
      if (!inserted) {
        throw InvalidArgument(str_cat("tensor \"", tensor.name, "\" is in both ", found->second, " and ",
                                      path.filename().string(), " of ", path.parent_path().string()));
      }
      tensors_.push_back(std::move(tensor));
    }
    files_.push_back(std::move(file));
    paths_.push_back(path.string());
  }

  // Name of tensor -> name of the file that holds it.
  const std::map<std::string, std::string>& file_of() const { return file_of_; }
  const std::vector<CheckpointTensor>& tensors() const override { return tensors_; }

  void release(const CheckpointTensor& tensor) const override {
    size_t num_bytes = dtype_bytes(tensor.dtype);
    for (const int64_t size : tensor.shape) num_bytes *= static_cast<size_t>(size);
    const auto* data = static_cast<const std::byte*>(tensor.data);
    for (const FileMap& file : files_) {
      const std::byte* begin = file.bytes().data();
      if (data < begin || data + num_bytes > begin + file.bytes().size()) continue;
      file.discard(static_cast<size_t>(data - begin), static_cast<size_t>(data - begin) + num_bytes);
      return;
    }
  }

  void release_all() const override {
    for (const FileMap& file : files_) file.discard(0, file.bytes().size());
  }

  std::string describe_files() const override {
    std::string text;
    for (size_t i = 0; i < files_.size(); ++i) {
      text += str_cat("file ", fs::weakly_canonical(paths_[i]).string(), " ", files_[i].bytes().size(), " bytes of ",
                      files_[i].modified_ns(), "\n");
    }
    return text;
  }

  std::string reread_problem() const override {
    for (size_t i = 0; i < files_.size(); ++i) {
      if (files_[i].was_written()) return str_cat(paths_[i], " was written to after it was loaded");
    }
    return {};
  }

 private:
  std::vector<FileMap> files_;
  std::vector<std::string> paths_;
  std::vector<CheckpointTensor> tensors_;
  std::map<std::string, std::string> file_of_;
};

[[noreturn]] void throw_no_weights(const fs::path& model_dir) {
  if (!fs::is_directory(model_dir)) {
    throw InvalidArgument(str_cat("model directory ", model_dir.string(), " does not exist"));
  }
  std::string others;
  for (const fs::directory_entry& entry : fs::directory_iterator(model_dir)) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".bin" && extension != ".safetensors" && extension != ".pt" && extension != ".gguf") continue;
    others += str_cat(others.empty() ? "" : ", ", entry.path().filename().string());
  }
  std::string message = str_cat("no safetensors weights in ", model_dir.string(), ": neither ", kSingleFile, " nor ",
                                kIndexFile, " is there");
  if (!others.empty()) {
    message += str_cat(" (found ", others,
                       "; .bin checkpoints are read through torch: pip install torch, or convert "
                       "the checkpoint with save_pretrained(..., safe_serialization=True))");
  }
  throw InvalidArgument(message);
}

// Name of tensor -> shard, as the index says.
std::map<std::string, std::string> read_weight_map(const fs::path& index_path) {
  const Json index = read_json_file(index_path);
  const auto found = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || found == index.end() || !found->is_object() || found->empty()) {
    throw InvalidArgument(str_cat(index_path.string(), " has no \"weight_map\" from tensor names to files"));
  }
  std::map<std::string, std::string> weight_map;
  for (const auto& [name, file] : found->items()) {
    const std::string file_name = file.is_string() ? file.get<std::string>() : std::string();
    if (file_name.empty() || file_name != fs::path(file_name).filename().string() || file_name == "..") {
      throw InvalidArgument(str_cat(index_path.string(), ": tensor \"", name, "\" is mapped to ", file.dump(),
                                    ", which is no file name in the model's directory"));
    }
    weight_map[name] = file_name;
  }
  return weight_map;
}

std::unique_ptr<Checkpoint> open_shards(const fs::path& model_dir) {
  const fs::path index_path = model_dir / kIndexFile;
  const std::map<std::string, std::string> weight_map = read_weight_map(index_path);
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  std::string missing;
  for (const std::string& shard : shards) {
    if (!fs::exists(model_dir / shard)) missing += str_cat(missing.empty() ? "" : ", ", shard);
  }
  if (!missing.empty()) {
    throw InvalidArgument(
        str_cat(index_path.string(), " names files that are not there: ", missing, "; is the download complete?"));
  }
  auto checkpoint = std::make_unique<MappedCheckpoint>();
  for (const std::string& shard : shards) checkpoint->add_file(model_dir / shard);
  std::string misplaced;
  for (const auto& [name, shard] : weight_map) {
    const auto found = checkpoint->file_of().find(name);
    if (found != checkpoint->file_of().end() && found->second == shard) continue;
    misplaced += str_cat("\n  ", name, ": the index says ", shard, ", but it is in ",
                         found == checkpoint->file_of().end() ? "no file" : found->second);
  }
  if (!misplaced.empty()) throw InvalidArgument(str_cat(index_path.string(), " does not fit its files:", misplaced));
  return checkpoint;
}

}  // namespace

std::unique_ptr<Checkpoint> open_safetensors(const fs::path& model_dir) {
  if (fs::exists(model_dir / kSingleFile)) {
    auto checkpoint = std::make_unique<MappedCheckpoint>();
    checkpoint->add_file(model_dir / kSingleFile);
    return checkpoint;
  }
  if (fs::exists(model_dir / kIndexFile)) return open_shards(model_dir);
  throw_no_weights(model_dir);
}

}  // namespace quire
