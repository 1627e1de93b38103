// Host code only; a .cu, so that both builds of the kernels have it. See library_finder.h.
#include "cuda/library_finder.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <utility>

#include "base/check.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {
namespace {

bool is_folder(const std::string& path) {
  struct stat status = {};
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool exists(const std::string& path) {
  struct stat status = {};
  return stat(path.c_str(), &status) == 0;
}

class Finder {
 public:
  Finder(const LibraryName& name, const std::function<void(SymbolBinder&)>& bind) : name_(name), bind_(bind) {}

  // True, and found() is what it was, when one of the places has a library with every function.
  bool seek(const LibrarySearch& search) {
    for (const char* file : name_.files) {
      if (search.takes_loaded && open(file, RTLD_NOLOAD, str_cat(file, " of this process"))) return true;
    }
    if (!search.named.empty() && open_below(search.named, str_cat(name_.variable, "="))) return true;
    for (const std::string& folder : search.own_folders) {
      if (open_below(folder, "")) return true;
    }
    for (const std::string& folder : search.folders) {
      for (const char* below : name_.wheel_folders) {
        if (open_below(folder + "/" + below, "")) return true;
      }
    }
    for (const char* file : name_.files) {
      if (search.asks_loader && open(file, 0, str_cat(file, " of the loader's path"))) return true;
    }
    return false;
  }

  const std::string& found() const { return found_; }
  std::string tried() const { return tried_.empty() ? "nothing" : tried_; }

 private:
  bool open(const std::string& path, int flags, const std::string& what) {
    void* const library = dlopen(path.c_str(), flags | RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const error = dlerror();
      note(what, (flags & RTLD_NOLOAD) != 0 ? "not loaded" : error != nullptr ? error : "does not open");
      return false;
    }
    SymbolBinder binder(library);
    bind_(binder);
    if (binder.missing() != nullptr) {
      note(what, str_cat("has no ", binder.missing()));
      return false;
    }
    found_ = what;
    return true;
  }

  // A file, or a folder that holds one of the names.
  bool open_below(const std::string& path, const std::string& what) {
    if (!is_folder(path)) {
      if (exists(path)) return open(path, 0, what + path);
      note(what + path, "is not there");
      return false;
    }
    bool is_any = false;
    for (const char* name : name_.files) {
      const std::string file = path + "/" + name;
      if (!exists(file)) continue;
      is_any = true;
      if (open(file, 0, what + file)) return true;
    }
    if (!is_any) note(what + path, has_none());
    return false;
  }

  std::string has_none() const {
    if (name_.files.size() == 1) return str_cat("has no ", name_.files.front());
    std::string text = str_cat("has neither ", name_.files.front());
    for (size_t i = 1; i < name_.files.size(); ++i) text += str_cat(" nor ", name_.files[i]);
    return text;
  }

  void note(const std::string& what, const std::string& why) {
    if (!tried_.empty()) tried_ += "; ";
    tried_ += what + ": " + why;
  }

  const LibraryName& name_;
  const std::function<void(SymbolBinder&)>& bind_;
  std::string found_;
  std::string tried_;
};

struct Folders {
  std::mutex mutex;
  LibraryFolders folders;
};

Folders& folders_of_process() {
  static Folders* const it = new Folders;  // never destroyed: other statics may ask at the end of the process
  return *it;
}

}  // namespace

void* SymbolBinder::find(const char* name) {
  void* const symbol = dlsym(library_, name);
  if (symbol == nullptr && missing_ == nullptr) missing_ = name;
  return symbol;
}

std::string find_library(const LibraryName& name, const LibrarySearch& search,
                         const std::function<void(SymbolBinder&)>& bind, const std::function<std::string()>& version,
                         bool* is_found) {
  Finder finder(name, bind);
  *is_found = finder.seek(search);
  if (*is_found) return str_cat(name.title, " ", version(), ", ", finder.found());
  return str_cat("no ", name.title, "; tried: ", finder.tried(), ". Install the wheel ", name.wheel,
                 ", or name the library in ", name.variable);
}

void set_library_folders(LibraryFolders folders) {
  Folders& it = folders_of_process();
  const std::lock_guard lock(it.mutex);
  it.folders = std::move(folders);
}

std::optional<LibrarySearch> search_of_process(const LibraryName& name) {
  if (simt::kIsEmulated) return std::nullopt;
  Folders& it = folders_of_process();
  const std::lock_guard lock(it.mutex);
  const char* const named = std::getenv(name.variable);
  return LibrarySearch{
      .named = named != nullptr ? named : "", .own_folders = it.folders.libraries, .folders = it.folders.wheels};
}

}  // namespace quire::cuda
