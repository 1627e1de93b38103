// Chooses the table: the widest instruction set of this machine, or the one that QUIRE_CPU_ISA names.
#include <cstdlib>
#include <string>

#include "base/check.h"
#include "cpu/cpu_kernels.h"

namespace quire::cpu {
namespace {

struct Choice {
  std::string_view name;
  const KernelTable* (*table)();
};

// Best first.
constexpr Choice kChoices[] = {
    {"amx", amx_kernels}, {"avx512", avx512_kernels}, {"avx2", avx2_kernels}, {"portable", portable_kernels}};

std::string runnable_names() {
  std::string names;
  for (const Choice& choice : kChoices) {
    if (choice.table() == nullptr) continue;
    if (!names.empty()) names += ", ";
    names += choice.name;
  }
  return names;
}

}  // namespace

const KernelTable& select_kernels(std::string_view isa) {
  if (const char* wanted = std::getenv("QUIRE_CPU_ISA"); isa.empty() && wanted != nullptr) isa = wanted;
  for (const Choice& choice : kChoices) {
    if (!isa.empty() && choice.name != isa) continue;
    if (const KernelTable* table = choice.table(); table != nullptr) return *table;
    if (!isa.empty()) {
      throw InvalidArgument(str_cat("QUIRE_CPU_ISA=", isa, ": this machine or build cannot run it. It can run: ",
                                    runnable_names(), "; leave it unset for the best of them."));
    }
  }
  throw InvalidArgument(str_cat("QUIRE_CPU_ISA=", isa, " is unknown. This machine can run: ", runnable_names(),
                                "; leave it unset for the best of them."));
}

}  // namespace quire::cpu
