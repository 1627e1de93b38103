// Times the kernels of a step at the shapes of real models, one JSON object a line: the machine, the ceilings measured
// in the same process, then each case. A case that fails is a line too and does not end the run; one that breaks the
// device ends it, so run families in processes of their own.
//
//   bench_cuda_kernels [--filter REGEX] [--json FILE] [--seconds S] [--toy] [--list]
// bench_simt_kernels is the same program on the emulation: always toy shapes, and times of no meaning for a GPU.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <regex>

#include "base/check.h"
#include "cuda/bench_case.h"

namespace quire::bench {
namespace {

using nlohmann::json;

struct Options {
  std::string filter, json_path;
  double seconds = 1e9;
  bool is_toy = false, lists = false;
};

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--toy") {
      options->is_toy = true;
    } else if (argument == "--list") {
      options->lists = true;
    } else if (i + 1 < argc && argument == "--filter") {
      options->filter = argv[++i];
    } else if (i + 1 < argc && argument == "--json") {
      options->json_path = argv[++i];
    } else if (i + 1 < argc && argument == "--seconds") {
      options->seconds = std::atof(argv[++i]);
    } else {
      std::fprintf(stderr, "%s: unknown argument %s\n", argv[0], argument.c_str());
      return false;
    }
  }
  return true;
}

std::vector<BenchCase> cases_of(const Options& options) {
  std::vector<BenchCase> all, chosen;
  add_attention_cases(options.is_toy, all);
  add_sampling_cases(options.is_toy, all);
  add_gemm_cases(options.is_toy, all);
  add_layer_cases(options.is_toy, all);
  const std::regex pattern(options.filter);
  for (BenchCase& each : all) {
    if (std::regex_search(each.name, pattern)) chosen.push_back(std::move(each));
  }
  return chosen;
}

json describe(const Machine& machine) {
  return {{"kind", "machine"},
          {"backend", machine.backend},
          {"name", machine.name},
          {"num_multiprocessors", machine.num_multiprocessors},
          {"memory_bytes", machine.memory_bytes},
          {"cache_bytes", machine.cache_bytes},
          {"driver_version", machine.driver_version},
          {"runtime_version", machine.runtime_version}};
}

// What went wrong with a case, as a line of the record.
json failure(const BenchCase& each, const char* kind, const std::string& reason) {
  return {{"kind", kind}, {"case", each.name}, {"reason", reason}};
}

json measure(Device& device, const BenchCase& each) {
  try {
    device.begin_case();
    const Work work = each.make(device);
    const Timing timing = device.time(work.copies, work.launch);
    json line = {{"kind", "case"},
                 {"case", each.name},
                 {"shape", each.shape},
                 {"us", timing.median},
                 {"us_lowest", timing.lowest},
                 {"us_highest", timing.highest},
                 {"method", timing.method},
                 {"launches", timing.num_launches},
                 {"samples", timing.num_samples},
                 {"copies", work.copies},
                 {"bytes", work.bytes},
                 {"flops", work.flops}};
    if (work.bytes > 0) line["gb_s"] = work.bytes / timing.median * 1e-3;
    if (work.flops > 0) line["tflop_s"] = work.flops / timing.median * 1e-6;
    return line;
  } catch (const NotSupported& missing) {
    return failure(each, "skipped", missing.what());
  } catch (const ArenaIsFull& full) {
    return failure(each, "skipped", str_cat("needs more memory than ", device.arena_bytes(), " bytes"));
  } catch (const std::exception& error) {
    return failure(each, "failed", error.what());
  }
}

int run(const Options& options) {
  const std::vector<BenchCase> cases = cases_of(options);
  if (options.lists) {
    for (const BenchCase& each : cases) std::printf("%s\n", each.name.c_str());
    return 0;
  }
  std::string problem;
  Device* const device = open_device(options.is_toy, &problem);
  if (device == nullptr) {
    std::fprintf(stderr, "%s\n", problem.c_str());
    return 77;
  }
  std::ofstream file;
  if (!options.json_path.empty()) file.open(options.json_path);
  std::ostream& out = options.json_path.empty() ? std::cout : file;
  const auto write = [&](const json& line) { out << line.dump() << std::endl; };  // at once: a crash loses nothing
  const auto begin = std::chrono::steady_clock::now();
  write(describe(device->machine()));
  write({{"kind", "ceiling"}, {"name", "copy"}, {"gb_s", device->copy_bytes_per_second() * 1e-9}});
  write({{"kind", "ceiling"}, {"name", "read"}, {"gb_s", device->read_bytes_per_second() * 1e-9}});
  int failed = 0;
  for (const BenchCase& each : cases) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    const json line =
        passed.count() > options.seconds ? failure(each, "skipped", "out of time") : measure(*device, each);
    failed += line["kind"] == "failed";
    write(line);
    if (failed > 10) break;  // the device is gone
  }
  return failed > 0 ? 1 : 0;
}

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  quire::bench::Options options;
  if (!quire::bench::parse(argc, argv, &options)) return 2;
#ifdef QUIRE_BENCH_SIMT
  options.is_toy = true;
#endif
  try {
    return quire::bench::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
