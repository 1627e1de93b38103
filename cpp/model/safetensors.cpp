// Reading of safetensors headers; see safetensors.h. Nothing in the file is believed before it is checked.
#include "model/safetensors.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>

#include "base/json.h"

namespace quire {
namespace {

constexpr size_t kLengthBytes = 8;

std::optional<DType> dtype_of(const std::string& name) {
  if (name == "F32") return DType::f32;
  if (name == "F16") return DType::f16;
  if (name == "BF16") return DType::bf16;
  if (name == "F64") return DType::f64;
  if (name == "I64") return DType::i64;
  if (name == "I32") return DType::i32;
  if (name == "U8") return DType::u8;
  if (name == "BOOL") return DType::boolean;
  return std::nullopt;
}

uint64_t header_length(std::span<const std::byte> file, const std::string& file_name) {
  if (file.size() < kLengthBytes) {
    throw InvalidArgument(str_cat(file_name, " is truncated: ", file.size(), " bytes are no safetensors file"));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= static_cast<uint64_t>(file[i]) << (8 * i);
  if (length > file.size() - kLengthBytes) {
    throw InvalidArgument(str_cat(file_name, ": the header is said to be ", length, " bytes long, but the file has ",
                                  file.size() - kLengthBytes,
                                  " after the length; it is truncated or no safetensors file"));
  }
  return length;
}

// nlohmann::json keeps the last of two equal keys without a word, so keys are watched while they are parsed.
Json parse_header(std::span<const std::byte> bytes, const std::string& file_name) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch_keys = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key && !open_objects.back().insert(value.get<std::string>()).second) {
      throw InvalidArgument(str_cat(file_name, ": the header has the name ", value.dump(), " twice"));
    }
    return true;
  };
  const char* text = reinterpret_cast<const char*>(bytes.data());
  try {
    Json header = Json::parse(text, text + bytes.size(), watch_keys);
    if (header.is_object()) return header;
  } catch (const Json::exception& error) {
    throw InvalidArgument(str_cat(file_name, ": the header is not valid JSON: ", error.what()));
  }
  throw InvalidArgument(str_cat(file_name, ": the header is not a JSON object"));
}

std::vector<uint64_t> unsigned_list(const Json& entry, const char* key, const std::string& where) {
  const auto found = entry.find(key);
  const bool valid = found != entry.end() && found->is_array() &&
                     std::ranges::all_of(*found, [](const Json& value) { return value.is_number_unsigned(); });
  if (!valid) throw InvalidArgument(str_cat(where, ": \"", key, "\" is not a list of non-negative integers"));
  return found->get<std::vector<uint64_t>>();
}

struct PlacedTensor {
  CheckpointTensor tensor;
  uint64_t begin = 0;
  uint64_t end = 0;
};

PlacedTensor parse_entry(const std::string& name, const Json& entry, std::span<const std::byte> data,
                         const std::string& file_name) {
  const std::string where = str_cat(file_name, ": tensor \"", name, "\"");
  if (!entry.is_object()) throw InvalidArgument(str_cat(where, " is not described by a JSON object"));
  const auto dtype_entry = entry.find("dtype");
  if (dtype_entry == entry.end() || !dtype_entry->is_string()) throw InvalidArgument(str_cat(where, " has no dtype"));
  const auto dtype_string = dtype_entry->get<std::string>();
  const std::optional<DType> dtype = dtype_of(dtype_string);
  if (!dtype.has_value()) {
    throw InvalidArgument(str_cat(where, " has the dtype ", dtype_string,
                                  ", which quire cannot read (known: F64, F32, F16, BF16, I64, I32, U8, BOOL); "
                                  "quantized checkpoints are not supported"));
  }
  const std::vector<uint64_t> shape = unsigned_list(entry, "shape", where);
  const std::vector<uint64_t> offsets = unsigned_list(entry, "data_offsets", where);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size()) {
    throw InvalidArgument(str_cat(where, ": data_offsets ", entry["data_offsets"].dump(), " do not lie in the ",
                                  data.size(), " bytes of data; the file is truncated or damaged"));
  }
  uint64_t num_bytes = dtype_bytes(*dtype);
  const uint64_t limit = std::numeric_limits<int64_t>::max();
  for (const uint64_t size : shape) {
    if (size != 0 && num_bytes > limit / size) throw InvalidArgument(str_cat(where, ": the shape overflows"));
    num_bytes *= size;
  }
  if (num_bytes != offsets[1] - offsets[0]) {
    throw InvalidArgument(str_cat(where, ": shape ", entry["shape"].dump(), " of ", dtype_string, " takes ", num_bytes,
                                  " bytes, but its offsets span ", offsets[1] - offsets[0]));
  }
  PlacedTensor placed{.tensor = {.name = name, .dtype = *dtype, .data = data.data() + offsets[0]},
                      .begin = offsets[0],
                      .end = offsets[1]};
  placed.tensor.shape.assign(shape.begin(), shape.end());
  return placed;
}

}  // namespace

std::vector<CheckpointTensor> parse_safetensors(std::span<const std::byte> file, const std::string& file_name) {
  const uint64_t length = header_length(file, file_name);
  const Json header = parse_header(file.subspan(kLengthBytes, length), file_name);
  const std::span<const std::byte> data = file.subspan(kLengthBytes + length);
  std::vector<PlacedTensor> placed;
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") placed.push_back(parse_entry(name, entry, data, file_name));
  }
  std::ranges::sort(placed, {}, [](const PlacedTensor& t) { return std::pair(t.begin, t.end); });
  // The format has no holes, so a gap is as much a sign of a damaged header as an overlap.
  uint64_t covered = 0;
  std::vector<CheckpointTensor> tensors;
  for (PlacedTensor& next : placed) {
    if (next.begin != covered) {
      throw InvalidArgument(
          str_cat(file_name, ": tensor \"", next.tensor.name, "\" begins at ", next.begin,
                  next.begin < covered ? ", which overlaps" : ", which leaves a gap after",
                  tensors.empty() ? std::string(" the header") : str_cat(" tensor \"", tensors.back().name, "\""),
                  " that ends at ", covered));
    }
    covered = next.end;
    tensors.push_back(std::move(next.tensor));
  }
  if (covered != data.size()) {
    throw InvalidArgument(str_cat(file_name, ": the tensors end at ", covered, ", but the file has ", data.size(),
                                  " bytes of data; it is damaged"));
  }
  return tensors;
}

}  // namespace quire
