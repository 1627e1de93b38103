// The name of a kernel for error messages, from what the compiler calls the launch of it.
//
// Costs nothing until there is an error. Knows how g++ and clang write template arguments, and nothing of CUDA.
#pragma once

#include <string>
#include <string_view>

namespace quire::simt {

// "norm_kernel<float, 32>" from "void quire::simt::launch(...) [with auto Kernel = quire::cuda::norm_kernel<float, 32>;
// Args = ...]", which is __PRETTY_FUNCTION__ in launch(). A text without a kernel is returned whole.
inline std::string kernel_name(std::string_view launch) {
  constexpr std::string_view kStart = "Kernel = ";
  const size_t start = launch.find(kStart);
  if (start == std::string_view::npos) return std::string(launch);
  std::string_view name = launch.substr(start + kStart.size());
  int depth = 0;
  size_t end = 0, last_scope = 0;
  for (; end < name.size(); ++end) {
    const char c = name[end];
    if (depth == 0 && (c == ';' || c == ']')) break;
    if (c == '<' || c == '(') ++depth;
    if (c == '>' || c == ')') --depth;
    if (depth == 0 && c == ':') last_scope = end + 1;
  }
  return std::string(name.substr(last_scope, end - last_scope));
}

}  // namespace quire::simt
