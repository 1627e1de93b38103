// What the files of a sentence-transformers model say: modules.json and the folders it names.
//
// Decides: which modules are understood, and what is missing. Does not know: architectures, devices. Load time.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/arch.h"
#include "model/weight_loader.h"

namespace quire {

struct SentenceTransformersConfig {
  struct Dense {
    std::string folder;  // "2_Dense"
    HeadLayer layer;
  };

  std::optional<PoolingType> pooling;  // none: there is no modules.json, or no Pooling in it
  std::vector<PoolingMode> modes;      // what it is made of
  bool normalizes = false;
  bool is_late_interaction = false;  // modules of PyLate: every token has a vector
  std::vector<Dense> dense;
  int64_t max_seq_length = 0;  // 0: not said
};

// Throws InvalidArgument naming what is missing or wrong, NotSupported naming a module that is not there.
SentenceTransformersConfig read_sentence_transformers(const std::filesystem::path& model_dir);

// `main` together with the weights of the dense modules, as "<folder>/linear.weight".
std::unique_ptr<Checkpoint> with_dense_weights(std::unique_ptr<Checkpoint> main, const std::filesystem::path& model_dir,
                                               const std::vector<std::string>& folders);

}  // namespace quire
