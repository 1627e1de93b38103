// A stretch of time in which one thing was done: what a recording of an engine's work is made of.
//
// Names and texts are literals: they live as long as the library. Standard library only.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace quire {

struct SpanArgument {
  const char* name = "";
  double number = 0.0;
  const char* text = nullptr;  // instead of the number
};

struct Span {
  // "step": a step and what the host does in it; "part": of a forward pass, what encloses its kernels ("embedding",
  // "layer", with its number as an argument, "final_norm", "head"; where ranks share the model, "all_reduce" and
  // "gather", which wait for the others); "kernel": what a launcher did or, on a GPU, put on the stream.
  const char* category = "";
  const char* name = "";  // of a kernel, its entry of the table: "gemm"
  int64_t begin_ns = 0;   // of a clock that only goes forward
  int64_t duration_ns = 0;
  // Timed on the stream of a GPU, which runs behind the host: parts, kernels and, around them, "step". These lie in one
  // another or apart, and so do the others; between the two there is no such order.
  bool on_device = false;
  // Of kernels on a CPU always "bytes" (read and written at least once each) and, where products are what they do,
  // "flops"; of those of a GPU where the host knows them without asking it.
  std::array<SpanArgument, 10> arguments = {};
  int32_t num_arguments = 0;

  void add(const char* argument, double number) {
    arguments[static_cast<size_t>(num_arguments++)] = {argument, number};
  }
  void add(const char* argument, const char* text) {
    arguments[static_cast<size_t>(num_arguments++)] = {argument, 0.0, text};
  }
};

struct Recording {
  std::vector<Span> spans = {};   // by their begin, those that enclose others in front of them
  int64_t num_dropped_spans = 0;  // that found no room, the last ones, or whose times a GPU did not tell
};

}  // namespace quire
