// Reading of JSON files; see json.h.
#include "base/json.h"

#include <fstream>

namespace quire {

Json read_json_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InvalidArgument(str_cat("cannot read ", path.string(), ": no such file or no permission"));
  try {
    return Json::parse(file);
  } catch (const Json::parse_error& error) {
    throw InvalidArgument(str_cat(path.string(), " is not valid JSON: ", error.what()));
  }
}

}  // namespace quire
