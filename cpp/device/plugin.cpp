// Finding and loading plugins; see plugin.h.
#include "device/plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// The folder of the library or program that holds this function.
fs::path own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&plugin_file), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code error;
  const fs::path file = fs::canonical(info.dli_fname, error);
  return error ? fs::path() : file.parent_path();
}

std::string how_to_get(const std::string& backend) {
  if (backend == "simt") {
    return "It is built with the tests (QUIRE_BUILD_TESTS=ON) and never installed: set QUIRE_PLUGIN_PATH to the folder "
           "\"testing\" of the build";
  }
  return str_cat("Install it with `pip install quire[", backend,
                 "]`, build quire with QUIRE_CUDA=ON, or use device=\"cpu\"");
}

// Where the file may be, before the loader is asked.
std::vector<fs::path> places_of(const std::string& file) {
  std::vector<fs::path> places;
  if (const char* const folder = std::getenv("QUIRE_PLUGIN_PATH"); folder != nullptr && *folder != '\0') {
    places.push_back(fs::path(folder) / file);
  }
  if (const fs::path folder = own_folder(); !folder.empty()) places.push_back(folder / file);
  return places;
}

void* open_library(const std::string& backend) {
  const std::string file = plugin_file(backend);
  std::string looked_for;
  // Never unloaded: an error that it threw may outlive the device.
  constexpr int kFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;
  for (const fs::path& place : places_of(file)) {
    looked_for += place.string() + ", ";
    std::error_code error;
    if (!fs::exists(place, error)) continue;
    if (void* const library = ::dlopen(place.c_str(), kFlags)) return library;
    throw DeviceError(str_cat("the plugin of device=\"", backend, "\" cannot be loaded: ", ::dlerror()));
  }
  if (void* const library = ::dlopen(file.c_str(), kFlags)) return library;
  throw NotSupported(str_cat("device=\"", backend, "\" needs the plugin ", file, ", which was not found; looked for ",
                             looked_for, "and where the loader looks (", ::dlerror(), "). ", how_to_get(backend)));
}

struct LibraryFolders {
  std::mutex mutex;
  std::vector<std::string> folders;
};

LibraryFolders& library_folders() {
  static LibraryFolders it;
  return it;
}

const DevicePlugin* load(const std::string& backend) {
  void* const library = open_library(backend);
  void* const symbol = ::dlsym(library, kPluginEntry);
  Dl_info info{};
  const std::string path = symbol != nullptr && ::dladdr(symbol, &info) != 0 ? info.dli_fname : plugin_file(backend);
  if (symbol == nullptr) throw DeviceError(str_cat(path, " is no plugin of quire: it has no ", kPluginEntry));
  static const PluginHost host = {.log = log_message};
  const DevicePlugin* const plugin = reinterpret_cast<PluginEntry>(symbol)(&host);
  if (plugin->abi != kPluginAbi || plugin->kernel_table_bytes != sizeof(KernelTable) ||
      std::string(plugin->version) != QUIRE_BUILD_VERSION) {
    throw DeviceError(str_cat(path, " is of another build of quire: found ABI ", plugin->abi, ", version ",
                              plugin->abi == kPluginAbi ? plugin->version : "unknown", ", table of ",
                              plugin->kernel_table_bytes, " bytes; needed ABI ", kPluginAbi, ", version ",
                              QUIRE_BUILD_VERSION, ", table of ", sizeof(KernelTable),
                              " bytes. Install both from one build"));
  }
  LibraryFolders& libraries = library_folders();
  const std::lock_guard lock(libraries.mutex);
  plugin->set_library_folders(libraries.folders);
  return plugin;
}

}  // namespace

std::string plugin_file(const std::string& backend) { return str_cat("libquire_", backend, ".so"); }

std::string plugin_path(const DevicePlugin& plugin) {
  Dl_info info{};
  return ::dladdr(&plugin, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

std::string find_plugin_file(const std::string& backend) {
  for (const fs::path& place : places_of(plugin_file(backend))) {
    std::error_code error;
    if (fs::exists(place, error)) return place.string();
  }
  return "";
}

void set_plugin_library_folders(std::vector<std::string> folders) {
  LibraryFolders& libraries = library_folders();
  const std::lock_guard lock(libraries.mutex);
  libraries.folders = std::move(folders);
}

const DevicePlugin& load_plugin(const std::string& backend) {
  static std::mutex mutex;
  static std::map<std::string, const DevicePlugin*> loaded;
  const std::lock_guard lock(mutex);
  const auto it = loaded.find(backend);
  if (it != loaded.end()) return *it->second;
  return *loaded.emplace(backend, load(backend)).first->second;
}

}  // namespace quire
