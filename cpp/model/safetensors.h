// The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes.
//
// Decides: what a valid file is (length, JSON without duplicate names, known dtypes, offsets that cover the data
// exactly once). Does not know: models, shards. open_safetensors (weight_loader.h) puts files together to a checkpoint.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "model/weight_loader.h"

namespace quire {

// The tensors of a mapped file, by their place in it. `file_name` is for messages. Throws InvalidArgument.
std::vector<CheckpointTensor> parse_safetensors(std::span<const std::byte> file, const std::string& file_name);

}  // namespace quire
