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
  // "gather", which wait for the others); "kernel": a launch that was waited for.
  const char* category = "";
  const char* name = "";  // of a kernel, its entry of the table: "gemm"
  int64_t begin_ns = 0;   // of a clock that only goes forward
  int64_t duration_ns = 0;
  // Of kernels always "bytes" (read and written at least once each) and, where products are what they do, "flops".
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
  int64_t num_dropped_spans = 0;  // that found no room, the last ones
};

}  // namespace quire
