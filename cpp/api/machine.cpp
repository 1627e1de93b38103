// What the machine can do, for whoever holds a model's speed against it. Any thread.
#include "base/check.h"
#include "cpu/cpu_kernels.h"
#include "cpu/machine_limits.h"
#include "quire/quire.h"

namespace quire {

MachineLimits measure_machine(const std::string& cpu_isa, int32_t num_threads, int64_t read_bytes) {
  if (num_threads < 0) throw InvalidArgument(str_cat("num_threads must not be negative, got ", num_threads));
  if (read_bytes < 1) throw InvalidArgument(str_cat("read_bytes must be positive, got ", read_bytes));
  const KernelTable& kernels = cpu::select_kernels(cpu_isa);
  ThreadPool pool(num_threads > 0 ? num_threads : default_num_threads());
  const cpu::MachineLimits limits = cpu::measure_limits(kernels.name, pool, static_cast<size_t>(read_bytes));
  return {.kernels = kernels.name,
          .num_threads = pool.num_threads(),
          .read_bytes = read_bytes,
          .read_bytes_per_second = limits.read_bytes_per_second,
          .bf16_flops = limits.bf16_flops,
          .f32_flops = limits.f32_flops};
}

}  // namespace quire
