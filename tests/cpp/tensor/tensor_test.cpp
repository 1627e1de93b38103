#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <string>

#include "tensor/match.h"

namespace quire {
namespace {

template <typename Call>
std::string failure_of(const Call& call) {
  try {
    call();
  } catch (const InternalError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Tensor, ColumnsShareTheDataAndKeepTheRowStride) {
  float data[3 * 8];
  const Tensor tensor = Tensor::contiguous(data, DType::f32, {3, 8});
  EXPECT_EQ(tensor.to_string(), "float32[3, 8]");
  EXPECT_TRUE(tensor.is_contiguous());
  EXPECT_EQ(tensor.num_elements(), 24);
  const Tensor middle = tensor.columns(2, 5);
  EXPECT_EQ(middle.as<float>(), data + 2);
  EXPECT_EQ(middle.size(1), 3);
  EXPECT_EQ(middle.row_stride(), 8);
  EXPECT_FALSE(middle.is_contiguous());
  EXPECT_EQ(middle.num_elements(), 9);
}

TEST(Match, ShapesThatDisagreeAreNamedWithTensorSymbolAndBothValues) {
  float data[64];
  const Tensor a = Tensor::contiguous(data, DType::f32, {2, 8});
  const Tensor out = Tensor::contiguous(data, DType::f32, {3, 8});
  const std::string message =
      failure_of([&] { Match("gemm").shape(a, "a", {"m", "k"}).shape(out, "out", {"m", "n"}); });
  for (const char* part : {"gemm", "out", "m = 3", "2"}) EXPECT_TRUE(contains(message, part)) << message;
  EXPECT_TRUE(contains(failure_of([&] { Match("norm").shape(a, "x", {"tokens"}); }), "1 dimensions"));
  EXPECT_TRUE(contains(failure_of([&] { Match("norm").dtype(a, "x", DType::bf16); }), "bfloat16"));
  EXPECT_TRUE(contains(failure_of([&] { Match("norm").bind("k", 9).shape(a, "x", {"m", "k"}); }), "k = 8"));
}

TEST(Match, AgreeingShapesAndColumnsPassButSplitRowsDoNot) {
  float data[64];
  const Tensor a = Tensor::contiguous(data, DType::f32, {4, 8});
  Match("rope")
      .shape(a, "q", {"tokens", "n"})
      .shape(a.columns(0, 4), "k", {"tokens", "half"})
      .dtype(a, "q", DType::f32);
  Tensor strided = a;
  strided.stride[1] = 2;
  EXPECT_TRUE(contains(failure_of([&] { Match("rope").shape(strided, "q", {"tokens", "n"}); }), "not contiguous"));
}

}  // namespace
}  // namespace quire
