// Finds a library of NVIDIA's at run time and binds its functions. Decides where is looked and what users are told;
// which libraries there are and what they do, its callers know (gemm/cublaslt.h, comm/nccl.h).
//
// Looked for, in this order: a library that the process has loaded already (torch's, say); the file or folder in the
// library's environment variable; the folders of set_library_folders, first those that hold libraries, then those that
// hold wheels; the loader's own path. A library that opens is never closed: its threads and contexts outlive every
// user. The kernels' emulation has no GPU that a library could use, so nothing is looked for there. Any thread.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace quire::cuda {

struct LibraryName {
  const char* title = "";                       // "NCCL"
  const char* variable = "";                    // "QUIRE_NCCL"
  const char* wheel = "";                       // "nvidia-nccl-cu13"
  std::vector<const char*> files = {};          // "libnccl.so.2"; the best first
  std::vector<const char*> wheel_folders = {};  // "nvidia/nccl/lib", below site-packages
};

struct LibrarySearch {
  bool takes_loaded = true;                   // one that is in the process
  std::string named = {};                     // by the environment variable
  std::vector<std::string> own_folders = {};  // that hold libraries
  std::vector<std::string> folders = {};      // of wheels: site-packages
  bool asks_loader = true;                    // for the plain name
};

template <typename Functions>
struct FoundLibrary {
  bool is_found = false;
  Functions functions = {};
  std::string status;  // one line for users: which library, or what was tried in vain
};

// Functions of an open library, by name.
class SymbolBinder {
 public:
  explicit SymbolBinder(void* library) : library_(library) {}
  template <typename Function>
  void operator()(Function* function, const char* name) {
    *function = reinterpret_cast<Function>(find(name));
  }
  const char* missing() const { return missing_; }  // the first one, or null

 private:
  void* find(const char* name);

  void* library_;
  const char* missing_ = nullptr;
};

// `bind` fills in the functions of a library that has been opened; `version` is asked when it has them all. Returns the
// status line, and says in `is_found` whether the functions are those of a library.
std::string find_library(const LibraryName& name, const LibrarySearch& search,
                         const std::function<void(SymbolBinder&)>& bind, const std::function<std::string()>& version,
                         bool* is_found);

// Where this process looks for every library. Has no effect on libraries that have been looked for.
struct LibraryFolders {
  std::vector<std::string> libraries = {};
  std::vector<std::string> wheels = {};
};
void set_library_folders(LibraryFolders folders);

// The search of this process. Null on the emulation.
std::optional<LibrarySearch> search_of_process(const LibraryName& name);

// The library that the process uses: sought once, when the first one asks. Thread-safe.
template <typename Functions>
class ProcessLibrary {
 public:
  using Find = FoundLibrary<Functions> (*)(const LibrarySearch&);
  ProcessLibrary(LibraryName name, Find find) : name_(std::move(name)), find_(find) {}

  // Null: there is none.
  const Functions* functions() {
    const std::lock_guard lock(mutex_);
    seek();
    return used_;
  }
  std::string status() {
    const std::lock_guard lock(mutex_);
    seek();
    return library_.status;
  }
  // What everybody gets from now on; null: none.
  void use(const Functions* functions, std::string status) {
    const std::lock_guard lock(mutex_);
    is_sought_ = true;
    used_ = functions;
    library_.status = std::move(status);
  }

 private:
  void seek() {
    if (is_sought_) return;
    is_sought_ = true;
    if (const std::optional<LibrarySearch> search = search_of_process(name_)) {
      library_ = find_(*search);
      if (library_.is_found) used_ = &library_.functions;
    } else {
      library_.status = std::string("no ") + name_.title + ": the kernels are emulated, there is no GPU";
    }
  }

  const LibraryName name_;
  const Find find_;
  std::mutex mutex_;
  bool is_sought_ = false;
  FoundLibrary<Functions> library_;
  const Functions* used_ = nullptr;
};

}  // namespace quire::cuda
