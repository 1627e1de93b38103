// While somebody records, every launch becomes a span that says what it had to do, and does it as before.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "device/device.h"
#include "kernels/cases/all_cases.h"

namespace quire {
namespace {

std::map<std::string, double> numbers_of(const Span& span) {
  std::map<std::string, double> numbers;
  for (int32_t i = 0; i < span.num_arguments; ++i) {
    const SpanArgument& argument = span.arguments[static_cast<size_t>(i)];
    if (argument.text == nullptr) numbers[argument.name] = argument.number;
  }
  return numbers;
}

// "" where the launches of the case are of a kernel that the host does not record.
std::string kernel_of(const std::string& case_name) {
  for (const auto& [prefix, kernel] : std::map<std::string, std::string>{{"attention_", "paged_attention"},
                                                                         {"gemm_", "gemm"},
                                                                         {"norm_", "norm"},
                                                                         {"embedding_", "embedding"},
                                                                         {"rope_", "rope_kv_write"},
                                                                         {"mean_rows_", "mean_rows"},
                                                                         {"copy_blocks_", "copy_blocks"}}) {
    if (case_name.starts_with(prefix)) return kernel;
  }
  return "";
}

TEST(RecordedKernels, DoTheirWorkAndCountItAsTheCasesDo) {
  const auto device = make_host_device({.num_threads = 2, .isa = "portable"});
  const KernelTable& table = device->kernels();
  std::map<std::string, int> num_cases;
  for (const cases::CaseEntry& entry : cases::all_cases()) {
    const std::string kernel = kernel_of(entry.name);
    if (entry.is_benchmark || kernel.empty()) continue;
    ++num_cases[kernel];
    const auto kernel_case = entry.make(table, device->stream());
    Recorder recorder;
    device->set_recorder(&recorder);
    kernel_case->reset();
    kernel_case->run(table, device->stream());
    device->set_recorder(nullptr);
    EXPECT_EQ(kernel_case->check(), "") << entry.name;
    ASSERT_GE(recorder.spans().size(), 1u) << entry.name;
    for (const Span& span : recorder.spans()) {
      EXPECT_STREQ(span.category, "kernel");
      EXPECT_EQ(span.name, kernel) << entry.name;
      EXPECT_GE(span.duration_ns, 0);
      const auto numbers = numbers_of(span);
      EXPECT_TRUE(numbers.contains("bytes")) << entry.name;
      if (kernel != "gemm" && kernel != "paged_attention") continue;
      EXPECT_DOUBLE_EQ(numbers.at("flops"), kernel_case->flops) << entry.name;
    }
  }
  EXPECT_EQ(num_cases.size(), 7u) << "the cases have other names now";
}

TEST(RecordedKernels, CountNothingWhileNobodyRecords) {
  const auto device = make_host_device({.num_threads = 1, .isa = "portable"});
  const KernelTable& table = device->kernels();
  const auto gemm = table.gemm;
  Recorder recorder;
  device->set_recorder(&recorder);
  EXPECT_EQ(&device->kernels(), &table);
  EXPECT_NE(table.gemm, gemm);
  device->set_recorder(nullptr);
  EXPECT_EQ(table.gemm, gemm);
}

// Counted by hand: 3 rows of 8 inputs, 2 * 5 gated outputs of bfloat16, added to float32.
TEST(RecordedKernels, BytesOfAProductAreThoseOfItsArrays) {
  const auto device = make_host_device({.num_threads = 1, .isa = "portable"});
  const KernelTable& table = device->kernels();
  std::vector<std::byte> packed(table.packed_weight_bytes(10, 8, DType::bf16, true) + 64);
  auto* const aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(packed.data()) + 63) / 64 * 64);
  std::vector<uint16_t> a(3 * 8);
  std::vector<float> out(3 * 5);
  Recorder recorder;
  device->set_recorder(&recorder);
  table.gemm({.a = a.data(),
              .a_stride = 8,
              .m = 3,
              .weight = {.data = aligned, .dtype = DType::bf16, .gated = true, .rows = 10, .cols = 8},
              .activation = Activation::silu,
              .out = out.data(),
              .out_stride = 5,
              .accumulate = true},
             device->stream());
  ASSERT_EQ(recorder.spans().size(), 1u);
  const auto numbers = numbers_of(recorder.spans().front());
  EXPECT_EQ(numbers.at("m"), 3);
  EXPECT_EQ(numbers.at("n"), 10);
  EXPECT_EQ(numbers.at("k"), 8);
  EXPECT_EQ(numbers.at("bytes"), 2 * (3 * 8 + 10 * 8) + 2 * 4 * 3 * 5);
  EXPECT_EQ(numbers.at("flops"), 2 * 3 * 10 * 8);
}

// Weights of a byte, activations of two.
TEST(RecordedKernels, AnInt8ProductCountsWhatItReads) {
  const auto device = make_host_device({.num_threads = 1, .isa = "portable"});
  const KernelTable& table = device->kernels();
  const auto aligned = [](std::vector<std::byte>& bytes) {
    return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  };
  std::vector<std::byte> packed(table.packed_weight_bytes(10, 8, DType::i8, false) + 64);
  std::vector<std::byte> rows(table.int8_rows_bytes(3, 8) + 64);
  std::vector<uint16_t> a(3 * 8);
  std::vector<float> out(3 * 10);
  Recorder recorder;
  device->set_recorder(&recorder);
  table.gemm({.a = a.data(),
              .a_stride = 8,
              .m = 3,
              .weight = {.data = aligned(packed), .dtype = DType::i8, .rows = 10, .cols = 8},
              .out = out.data(),
              .out_stride = 10,
              .int8_a_dtype = DType::bf16,
              .int8_rows = aligned(rows)},
             device->stream());
  ASSERT_EQ(recorder.spans().size(), 1u);
  EXPECT_EQ(numbers_of(recorder.spans().front()).at("bytes"), 2 * 3 * 8 + 10 * 8 + 4 * 3 * 10);
}

// A chunk of 2 queries at the end of 10 keys in a window of 4: keys 5 to 8 and 6 to 9. A decode with 3 keys: all of
// them. 2 heads of 16 over 1 KV head.
TEST(RecordedKernels, AttentionCountsTheKeysThatItsQueriesSee) {
  const auto device = make_host_device({.num_threads = 1, .isa = "portable"});
  const KernelTable& table = device->kernels();
  constexpr int64_t kPageElements = 16 * 16;
  std::vector<float> q(3 * 32), k(2 * kPageElements), v(2 * kPageElements), out(3 * 32);
  const std::vector<int32_t> query_start = {0, 2, 3}, kv_lens = {10, 3}, block_tables = {0, 1};
  const size_t workspace_bytes = table.attention_workspace_bytes(3, 2, 10, 2, 16, 1);
  std::vector<std::byte> workspace(workspace_bytes + 64);
  Recorder recorder;
  device->set_recorder(&recorder);
  table.paged_attention({.q = q.data(),
                         .q_stride = 32,
                         .num_heads = 2,
                         .kv = {.k = k.data(), .v = v.data(), .block_size = 16, .num_kv_heads = 1, .head_dim = 16},
                         .num_seqs = 2,
                         .query_start = query_start.data(),
                         .kv_lens = kv_lens.data(),
                         .block_tables = block_tables.data(),
                         .block_table_stride = 1,
                         .scale = 0.25f,
                         .window = 4,
                         .out = out.data(),
                         .out_stride = 32,
                         .workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64,
                         .workspace_bytes = workspace_bytes},
                        device->stream());
  const auto numbers = numbers_of(recorder.spans().front());
  EXPECT_EQ(numbers.at("tokens"), 3);
  EXPECT_EQ(numbers.at("keys"), 5 + 3);
  EXPECT_EQ(numbers.at("bytes"), 4 * (2 * 3 * 2 * 16) + 4 * 2 * (5 + 3) * 16);
  EXPECT_EQ(numbers.at("flops"), 4 * (4 + 4 + 3) * 2 * 16);
}

TEST(RecordedKernels, SpansWithoutRoomAreCounted) {
  Recorder recorder(2);
  for (int i = 0; i < 5; ++i) {
    SpanScope span(&recorder, "step", "plan");
    span.add("num_tokens", i);
  }
  ASSERT_EQ(recorder.spans().size(), 2u);
  EXPECT_EQ(recorder.num_dropped(), 3);
  EXPECT_EQ(numbers_of(recorder.spans().back()).at("num_tokens"), 1);
}

}  // namespace
}  // namespace quire
