// QUIRE_CPU_ISA and the choice of the table.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "base/check.h"
#include "kernels/isas.h"

namespace quire {
namespace {

class Select : public testing::Test {
 protected:
  void SetUp() override {
    const char* value = std::getenv("QUIRE_CPU_ISA");
    was_set_ = value != nullptr;
    if (was_set_) before_ = value;
  }
  void TearDown() override {
    if (was_set_) {
      setenv("QUIRE_CPU_ISA", before_.c_str(), 1);
    } else {
      unsetenv("QUIRE_CPU_ISA");
    }
  }
  std::string before_;
  bool was_set_ = false;
};

std::string refusal(std::string_view isa) {
  try {
    cpu::select_kernels(isa);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST_F(Select, AutomaticIsTheWidestThatRuns) {
  unsetenv("QUIRE_CPU_ISA");
  EXPECT_EQ(&cpu::select_kernels(""), runnable_tables().back());
  EXPECT_EQ(&cpu::select_kernels(), runnable_tables().back());
}

TEST_F(Select, TheEnvironmentOverrides) {
  for (const KernelTable* table : runnable_tables()) {
    setenv("QUIRE_CPU_ISA", table->name, 1);
    EXPECT_EQ(&cpu::select_kernels(), table);
    EXPECT_EQ(&cpu::select_kernels(table->name), table);
  }
  setenv("QUIRE_CPU_ISA", "sse9", 1);
  EXPECT_THROW(cpu::select_kernels(), InvalidArgument);
}

TEST_F(Select, UnknownNamesAreRefusedWithTheKnownOnes) {
  for (const char* isa : {"AVX512", "avx", "portable ", "neon"}) {
    EXPECT_NE(refusal(isa).find("portable"), std::string::npos) << isa;
    EXPECT_NE(refusal(isa).find(isa), std::string::npos) << isa;
  }
}

TEST_F(Select, WhatTheMachineCannotRunIsRefused) {
  if (cpu::avx2_kernels() == nullptr) {
    EXPECT_NE(refusal("avx2").find("cannot run"), std::string::npos);
  }
  if (cpu::avx512_kernels() == nullptr) {
    EXPECT_NE(refusal("avx512").find("cannot run"), std::string::npos);
  }
  if (cpu::amx_kernels() == nullptr) {
    EXPECT_NE(refusal("amx").find("cannot run"), std::string::npos);
  }
}

TEST_F(Select, TablesAreComplete) {
  for (const KernelTable* table : runnable_tables()) {
    EXPECT_TRUE(table->packed_weight_bytes && table->pack_weight && table->unpack_weight && table->fill_dummy &&
                table->embedding && table->norm && table->gemm && table->rope_kv_write && table->paged_attention &&
                table->attention_workspace_bytes && table->sample && table->sampling_workspace_bytes)
        << table->name;
  }
}

}  // namespace
}  // namespace quire
