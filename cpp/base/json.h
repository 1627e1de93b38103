// JSON for configuration files: nlohmann::json, plus reads whose errors name the file and the key.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/check.h"

namespace quire {

using Json = nlohmann::json;

// Throws InvalidArgument naming the file: missing, unreadable, or not JSON (with the parser's position).
Json read_json_file(const std::filesystem::path& path);

// object[key] as T; a missing or null key gives `fallback`; a value of another type throws InvalidArgument.
template <typename T>
T json_get(const Json& object, const char* key, T fallback) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  try {
    return found->template get<T>();
  } catch (const Json::exception&) {
    throw InvalidArgument(
        str_cat("config key \"", key, "\" has the value ", found->dump(), ", which is of the wrong type"));
  }
}

// object[key] as T; a missing or null key throws InvalidArgument.
template <typename T>
T json_require(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) {
    throw InvalidArgument(str_cat("config key \"", key, "\" is missing; is this the config.json of a model?"));
  }
  return json_get<T>(object, key, T{});
}

}  // namespace quire
