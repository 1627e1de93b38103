// What this machine can do at most, measured: how fast threads read memory, and how fast the instruction that products
// are made of runs in registers.
//
// Loops of a few instructions that share no code with the kernels, so that these can be held against them. Other work
// on the machine makes the limits lower; the best of several short runs is taken. Any thread.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/threads.h"

namespace quire::cpu {

struct MachineLimits {
  double read_bytes_per_second = 0.0;
  double bf16_flops = 0.0, f32_flops = 0.0;  // a second; 0: not known for the instruction set
};

// With all threads of the pool. `isa`: the name of a table that this machine can run, whose instructions count. The
// threads read num_bytes again and again: where they fit into a cache, it is the cache that is measured.
MachineLimits measure_limits(std::string_view isa, ThreadPool& pool, size_t num_bytes);

}  // namespace quire::cpu
