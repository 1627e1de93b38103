// Where NVIDIA's libraries are looked for, and what is told of it; with stand-ins, whose functions do nothing.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/comm/nccl.h"
#include "cuda/cuda_kernels.h"
#include "cuda/gemm/cublaslt.h"

namespace quire {
namespace {

// A folder below the system's for temporary files, removed at the end.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "quire-library-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos ? "" : "'" + part + "' is not in '" + text + "'";
}

TEST(CublasLtSearch, SaysWhatItTried) {
  const Folder folder;
  const auto wheel = folder.path() / "nvidia" / "cu13" / "lib";
  std::filesystem::create_directories(wheel);
  std::ofstream(wheel / "libcublasLt.so.13") << "no library";
  const auto status_of = [](const cuda::CublasLtSearch& search) {
    const cuda::CublasLtLibrary library = cuda::find_cublaslt(search);
    EXPECT_FALSE(library.is_found);
    EXPECT_EQ(library.functions.matmul, nullptr);
    return library.status;
  };
  const std::string wheels =
      status_of({.takes_loaded = false, .folders = {folder.path().string()}, .asks_loader = false});
  EXPECT_EQ(contains(wheels, (wheel / "libcublasLt.so.13").string() + ": "), "");
  EXPECT_EQ(contains(wheels, (folder.path() / "nvidia/cublas/lib").string() + ": is not there"), "");
  EXPECT_EQ(contains(wheels, "QUIRE_CUBLASLT"), "");
  const std::string named = status_of({.takes_loaded = false, .named = folder.path().string(), .asks_loader = false});
  EXPECT_EQ(contains(named, "QUIRE_CUBLASLT=" + folder.path().string() + ": has neither libcublasLt.so.13 nor"), "");
  // A library, but not this one: the C++ runtime has none of the functions.
  const std::string other = status_of({.takes_loaded = false, .named = "libstdc++.so.6", .asks_loader = false});
  EXPECT_EQ(contains(other, "QUIRE_CUBLASLT=libstdc++.so.6: is not there"), "");
  EXPECT_EQ(contains(status_of({.takes_loaded = false, .asks_loader = false}), "tried: nothing"), "");
}

// QUIRE_CUBLASLT_STAND_IN has the names of all functions and does nothing, QUIRE_CUBLASLT_LACKING lacks one.
TEST(CublasLtSearch, OpensAFileOrAFolder) {
  const Folder folder;
  std::filesystem::create_symlink(QUIRE_CUBLASLT_STAND_IN, folder.path() / "libcublasLt.so.12");
  for (const std::string& named : {std::string(QUIRE_CUBLASLT_STAND_IN), folder.path().string()}) {
    const cuda::CublasLtLibrary library =
        cuda::find_cublaslt({.takes_loaded = false, .named = named, .asks_loader = false});
    ASSERT_TRUE(library.is_found) << library.status;
    EXPECT_EQ(library.functions.get_version(), 7u);
    EXPECT_NE(library.functions.matmul, nullptr);
    EXPECT_EQ(library.status.rfind("cuBLASLt 7, QUIRE_CUBLASLT=" + named, 0), 0u) << library.status;
  }
  const cuda::CublasLtLibrary loaded = cuda::find_cublaslt({.asks_loader = false});
  EXPECT_TRUE(loaded.is_found);
  EXPECT_EQ(loaded.status, "cuBLASLt 7, libcublasLt.so.12 of this process");
  const cuda::CublasLtLibrary lacking =
      cuda::find_cublaslt({.takes_loaded = false, .named = QUIRE_CUBLASLT_LACKING, .asks_loader = false});
  EXPECT_FALSE(lacking.is_found);
  EXPECT_NE(lacking.status.find("has no cublasLtMatmulAlgoGetHeuristic"), std::string::npos) << lacking.status;
}

TEST(NcclSearch, OpensAFileOrAFolder) {
  const Folder folder;
  const auto wheel = folder.path() / "nvidia" / "nccl" / "lib";
  std::filesystem::create_directories(wheel);
  std::filesystem::create_symlink(QUIRE_NCCL_STAND_IN, wheel / "libnccl.so.2");
  const std::string file = (wheel / "libnccl.so.2").string();
  const cuda::LibrarySearch searches[] = {
      {.takes_loaded = false, .named = file, .asks_loader = false},
      {.takes_loaded = false, .named = wheel.string(), .asks_loader = false},
      {.takes_loaded = false, .own_folders = {wheel.string()}, .asks_loader = false},
      {.takes_loaded = false, .folders = {folder.path().string()}, .asks_loader = false}};
  for (const cuda::LibrarySearch& search : searches) {
    const cuda::NcclLibrary library = cuda::find_nccl(search);
    ASSERT_TRUE(library.is_found) << library.status;
    EXPECT_EQ(library.status, (search.named.empty() ? "NCCL 2.27.3, " : "NCCL 2.27.3, QUIRE_NCCL=") + file);
    EXPECT_STREQ(library.functions.get_error_string(nccl::kInvalidUsage), "stand-in");
    // Each one stands for itself: a function bound to another's name would say another number.
    EXPECT_EQ(library.functions.group_start(), 100);
    EXPECT_EQ(library.functions.group_end(), 101);
    EXPECT_EQ(library.functions.comm_destroy(nullptr), 102);
    EXPECT_EQ(library.functions.comm_abort(nullptr), 103);
    EXPECT_EQ(library.functions.comm_init_all(nullptr, 2, nullptr), 99);
    EXPECT_EQ(library.functions.comm_get_async_error(nullptr, nullptr), 108);
    EXPECT_EQ(library.functions.all_reduce(nullptr, nullptr, 1, nccl::kFloat32, nccl::kSum, nullptr, nullptr), 104);
    EXPECT_EQ(library.functions.send(nullptr, 1, nccl::kFloat32, 1, nullptr, nullptr), 105);
    EXPECT_EQ(library.functions.broadcast(nullptr, nullptr, 1, nccl::kFloat32, 0, nullptr, nullptr), 106);
    EXPECT_EQ(library.functions.receive(nullptr, 1, nccl::kFloat32, 1, nullptr, nullptr), 107);
  }
  EXPECT_EQ(cuda::find_nccl({.asks_loader = false}).status, "NCCL 2.27.3, libnccl.so.2 of this process");
}

TEST(NcclSearch, SaysWhatItTried) {
  const Folder folder;
  const std::string path = folder.path().string();
  const cuda::NcclLibrary none = cuda::find_nccl(
      {.takes_loaded = false, .named = path, .own_folders = {path + "/own"}, .folders = {path}, .asks_loader = false});
  EXPECT_FALSE(none.is_found);
  EXPECT_EQ(none.functions.all_reduce, nullptr);
  EXPECT_EQ(none.status, "no NCCL; tried: QUIRE_NCCL=" + path + ": has no libnccl.so.2; " + path +
                             "/own: is not there; " + path + "/nvidia/nccl/lib: is not there. " +
                             "Install the wheel nvidia-nccl-cu13, or name the library in QUIRE_NCCL");
  const cuda::NcclLibrary lacking =
      cuda::find_nccl({.takes_loaded = false, .named = QUIRE_NCCL_LACKING, .asks_loader = false});
  EXPECT_FALSE(lacking.is_found);
  EXPECT_EQ(contains(lacking.status, "has no ncclRecv"), "");
  EXPECT_EQ(lacking.functions.all_reduce, nullptr);
}

// The order: by name, then the folders of libraries, then those of wheels. The first one that lacks nothing is taken.
TEST(LibrarySearchOrder, GoesOnAfterALibraryThatLacksAFunction) {
  const Folder folder;
  const auto wheel = folder.path() / "nvidia" / "cublas" / "lib", own = folder.path() / "own";
  for (const auto& path : {wheel, own}) std::filesystem::create_directories(path);
  std::filesystem::create_symlink(QUIRE_CUBLASLT_STAND_IN, wheel / "libcublasLt.so.12");
  std::filesystem::create_symlink(QUIRE_CUBLASLT_LACKING, own / "libcublasLt.so.13");
  const cuda::LibrarySearch search = {.takes_loaded = false,
                                      .named = QUIRE_CUBLASLT_LACKING,
                                      .own_folders = {own.string()},
                                      .folders = {folder.path().string()},
                                      .asks_loader = false};
  EXPECT_EQ(cuda::find_cublaslt(search).status, "cuBLASLt 7, " + (wheel / "libcublasLt.so.12").string());
  std::filesystem::create_symlink(QUIRE_CUBLASLT_STAND_IN, own / "libcublasLt.so.12");
  EXPECT_EQ(cuda::find_cublaslt(search).status, "cuBLASLt 7, " + (own / "libcublasLt.so.12").string());
}

// What a process asks for: the variable and the folders that it was told.
TEST(LibrarySearchOrder, OfTheProcess) {
  const cuda::LibraryName name = {.title = "Nothing", .variable = "QUIRE_TEST_LIBRARY"};
  setenv("QUIRE_TEST_LIBRARY", "/somewhere", 1);
  cuda::set_library_folders({.libraries = {"/libraries"}, .wheels = {"/wheels"}});
  const std::optional<cuda::LibrarySearch> search = cuda::search_of_process(name);
  unsetenv("QUIRE_TEST_LIBRARY");
  cuda::set_library_folders({});
  if (std::string_view(cuda::kernels().name) == "simt") {
    EXPECT_FALSE(search.has_value());
    EXPECT_EQ(cuda::nccl_functions(), nullptr);
    EXPECT_EQ(cuda::nccl_status(), "no NCCL: the kernels are emulated, there is no GPU");
    return;
  }
  ASSERT_TRUE(search.has_value());
  EXPECT_EQ(search->named, "/somewhere");
  EXPECT_EQ(search->own_folders, std::vector<std::string>{"/libraries"});
  EXPECT_EQ(search->folders, std::vector<std::string>{"/wheels"});
  EXPECT_TRUE(search->takes_loaded && search->asks_loader);
}

}  // namespace
}  // namespace quire
