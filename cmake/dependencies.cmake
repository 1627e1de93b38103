# Third-party C++: the system's package when it is there, else the release archive (see third_party/README.md).
# Nothing is vendored, and what only tests or benchmarks need is looked for only when they are built.
include(FetchContent)

# quire_dependency(<name> <url> <sha256> [<find_package arguments>...])
function(quire_dependency name url sha256)
  FetchContent_Declare(${name} URL ${url} URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP OFF SYSTEM
                       FIND_PACKAGE_ARGS ${ARGN})
  FetchContent_MakeAvailable(${name})
endfunction()

quire_dependency(
  nlohmann_json https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
  d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d 3.10)

if(QUIRE_BUILD_TESTS)
  set(INSTALL_GTEST OFF)
  quire_dependency(
    googletest https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
    8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7 NAMES GTest)
endif()

if(QUIRE_BUILD_BENCH)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  quire_dependency(
    benchmark https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
    6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
endif()
