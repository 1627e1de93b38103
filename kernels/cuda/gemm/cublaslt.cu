// Host code only; a .cu, so that both builds of the kernels have it. See cublaslt.h.
#include "cuda/gemm/cublaslt.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <mutex>

#include "base/check.h"
#include "cuda/simt/simt.h"

namespace quire::cuda {
namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
constexpr const char* kWheelFolders[] = {"nvidia/cu13/lib", "nvidia/cublas/lib"};

bool is_folder(const std::string& path) {
  struct stat status = {};
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool exists(const std::string& path) {
  struct stat status = {};
  return stat(path.c_str(), &status) == 0;
}

// The name of the first function that is missing, or null.
const char* bind(void* library, cublaslt::Functions* functions) {
  const char* missing = nullptr;
  const auto bind_one = [&](auto* function, const char* name) {
    void* const symbol = dlsym(library, name);
    if (symbol == nullptr && missing == nullptr) missing = name;
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(symbol);
  };
  bind_one(&functions->get_version, "cublasLtGetVersion");
  bind_one(&functions->get_status_name, "cublasLtGetStatusName");
  bind_one(&functions->create, "cublasLtCreate");
  bind_one(&functions->matmul_desc_create, "cublasLtMatmulDescCreate");
  bind_one(&functions->matmul_desc_set_attribute, "cublasLtMatmulDescSetAttribute");
  bind_one(&functions->matrix_layout_create, "cublasLtMatrixLayoutCreate");
  bind_one(&functions->matrix_layout_set_attribute, "cublasLtMatrixLayoutSetAttribute");
  bind_one(&functions->matmul_preference_create, "cublasLtMatmulPreferenceCreate");
  bind_one(&functions->matmul_preference_destroy, "cublasLtMatmulPreferenceDestroy");
  bind_one(&functions->matmul_preference_set_attribute, "cublasLtMatmulPreferenceSetAttribute");
  bind_one(&functions->matmul_algo_get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  bind_one(&functions->matmul, "cublasLtMatmul");
  return missing;
}

class Finder {
 public:
  // A library that opens is never closed: its threads and its contexts outlive every user.
  bool open(const std::string& path, int flags, const std::string& what) {
    void* const library = dlopen(path.c_str(), flags | RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const error = dlerror();
      note(what, (flags & RTLD_NOLOAD) != 0 ? "not loaded" : error != nullptr ? error : "does not open");
      return false;
    }
    if (const char* const missing = bind(library, &found_.functions)) {
      note(what, str_cat("has no ", missing));
      return false;
    }
    found_.is_found = true;
    found_.status = str_cat("cuBLASLt ", found_.functions.get_version(), ", ", what);
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
    for (const char* name : kNames) {
      const std::string file = path + "/" + name;
      if (!exists(file)) continue;
      is_any = true;
      if (open(file, 0, what + file)) return true;
    }
    if (!is_any) note(what + path, str_cat("has neither ", kNames[0], " nor ", kNames[1]));
    return false;
  }

  CublasLtLibrary finish() {
    if (!found_.is_found) {
      found_.functions = {};
      found_.status = str_cat("no cuBLASLt; tried: ", tried_.empty() ? "nothing" : tried_,
                              ". Install the wheel nvidia-cublas, or name the library in QUIRE_CUBLASLT");
    }
    return found_;
  }

 private:
  void note(const std::string& what, const std::string& why) {
    if (!tried_.empty()) tried_ += "; ";
    tried_ += what + ": " + why;
  }

  CublasLtLibrary found_;
  std::string tried_;
};

struct State {
  std::mutex mutex;
  bool is_sought = false;
  std::vector<std::string> folders;
  CublasLtLibrary library;
  const cublaslt::Functions* used = nullptr;

  void seek() {
    if (is_sought) return;
    is_sought = true;
    if (simt::kIsEmulated) {
      library.status = "no cuBLASLt: the kernels are emulated, there is no GPU";
      return;
    }
    const char* const named = std::getenv("QUIRE_CUBLASLT");
    library = find_cublaslt({.named = named != nullptr ? named : "", .folders = folders});
    if (library.is_found) used = &library.functions;
  }
};

State& state() {
  static State* const it = new State;  // never destroyed: other statics may ask at the end of the process
  return *it;
}

}  // namespace

CublasLtLibrary find_cublaslt(const CublasLtSearch& search) {
  Finder finder;
  const auto seek = [&] {
    for (const char* name : kNames) {
      if (search.takes_loaded && finder.open(name, RTLD_NOLOAD, str_cat(name, " of this process"))) return;
    }
    if (!search.named.empty() && finder.open_below(search.named, "QUIRE_CUBLASLT=")) return;
    for (const std::string& folder : search.folders) {
      for (const char* below : kWheelFolders) {
        if (finder.open_below(folder + "/" + below, "")) return;
      }
    }
    for (const char* name : kNames) {
      if (search.asks_loader && finder.open(name, 0, str_cat(name, " of the loader's path"))) return;
    }
  };
  seek();
  return finder.finish();
}

const cublaslt::Functions* cublaslt_functions() {
  State& it = state();
  const std::lock_guard lock(it.mutex);
  it.seek();
  return it.used;
}

std::string cublaslt_status() {
  State& it = state();
  const std::lock_guard lock(it.mutex);
  it.seek();
  return it.library.status;
}

void set_cublaslt_folders(std::vector<std::string> folders) {
  State& it = state();
  const std::lock_guard lock(it.mutex);
  it.folders = std::move(folders);
}

void use_cublaslt(const cublaslt::Functions* functions) {
  State& it = state();
  const std::lock_guard lock(it.mutex);
  it.is_sought = true;
  it.used = functions;
  it.library.status = functions != nullptr ? "cuBLASLt as given by use_cublaslt" : "no cuBLASLt: use_cublaslt(nullptr)";
}

}  // namespace quire::cuda
