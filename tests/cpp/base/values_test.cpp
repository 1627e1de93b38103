// Conversions between element types, JSON reads, mapped files and hashes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/file_map.h"
#include "base/hash.h"
#include "base/json.h"

namespace quire {
namespace {

template <typename Error, typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// Every bit pattern there and back: 65,536 of each type, NaNs staying NaNs.
TEST(DType, SixteenBitValuesSurviveTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (std::isnan(bf16_to_float(half))) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(bf16_to_float(half))))) << bits;
    } else {
      EXPECT_EQ(float_to_bf16(bf16_to_float(half)), half);
    }
    if (std::isnan(f16_to_float(half))) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(f16_to_float(half))))) << bits;
    } else {
      EXPECT_EQ(float_to_f16(f16_to_float(half)), half);
    }
  }
}

TEST(DType, RoundsToNearestEven) {
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f)), 1.0f);               // halfway: to the even one below
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x3p-8f)), 1.0f + 0x4p-8f);     // halfway: to the even one above
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1.02p-8f)), 1.0f + 0x2p-8f);  // just above halfway
  EXPECT_EQ(f16_to_float(float_to_f16(1.0f + 0x1p-11f)), 1.0f);
  EXPECT_EQ(f16_to_float(float_to_f16(1.0f + 0x3p-11f)), 1.0f + 0x4p-11f);
  EXPECT_EQ(f16_to_float(float_to_f16(65519.0f)), 65504.0f);  // the largest
  EXPECT_TRUE(std::isinf(f16_to_float(float_to_f16(65520.0f))));
  EXPECT_EQ(f16_to_float(float_to_f16(0x1p-24f)), 0x1p-24f);  // the smallest subnormal
  EXPECT_EQ(f16_to_float(float_to_f16(0x1p-25f)), 0.0f);
  EXPECT_TRUE(std::isinf(bf16_to_float(float_to_bf16(std::numeric_limits<float>::max()))));
}

TEST(DType, NamesAreReadAndUnknownOnesNamed) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) EXPECT_EQ(parse_dtype(dtype_name(dtype)), dtype);
  EXPECT_EQ(parse_dtype("half"), DType::f16);
  EXPECT_EQ(parse_dtype("float"), DType::f32);
  EXPECT_NE(message_of<InvalidArgument>([] { parse_dtype("float12"); }).find("float12"), std::string::npos);
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& contents)
      : path_(std::filesystem::temp_directory_path() /
              ("quire_base_" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + "_" +
               std::to_string(reinterpret_cast<uintptr_t>(this)))) {
    std::ofstream(path_) << contents;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(Json, ErrorsNameTheFileOrTheKey) {
  EXPECT_NE(message_of<InvalidArgument>([] { read_json_file("/nowhere/config.json"); }).find("/nowhere/config.json"),
            std::string::npos);
  const TemporaryFile broken("{\"hidden_size\": 12,");
  EXPECT_NE(message_of<InvalidArgument>([&] { read_json_file(broken.path()); }).find(broken.path().string()),
            std::string::npos);
  const Json object = Json::parse(R"({"size": "big", "none": null, "ok": 3})");
  EXPECT_EQ(json_get(object, "ok", 5), 3);
  EXPECT_EQ(json_get(object, "none", 5), 5);
  EXPECT_EQ(json_get(object, "missing", 5), 5);
  const std::string wrong = message_of<InvalidArgument>([&] { json_get(object, "size", 5); });
  EXPECT_NE(wrong.find("\"size\""), std::string::npos);
  EXPECT_NE(wrong.find("big"), std::string::npos);
  EXPECT_NE(message_of<InvalidArgument>([&] { json_require<int>(object, "none"); }).find("none"), std::string::npos);
}

TEST(FileMap, HoldsTheBytesAndMovesThem) {
  const TemporaryFile file("quire");
  FileMap map(file.path());
  FileMap moved(std::move(map));
  ASSERT_EQ(moved.bytes().size(), 5u);
  EXPECT_EQ(std::memcmp(moved.bytes().data(), "quire", 5), 0);
  moved.discard(0, 5);  // advice: the contents stay readable
  EXPECT_EQ(std::memcmp(moved.bytes().data(), "quire", 5), 0);
}

TEST(FileMap, MissingAndEmptyFilesAreNamed) {
  EXPECT_NE(message_of<InvalidArgument>([] { FileMap("/nowhere/model.safetensors"); }).find("/nowhere/model"),
            std::string::npos);
  const TemporaryFile empty("");
  EXPECT_NE(message_of<InvalidArgument>([&] { FileMap{empty.path()}; }).find(empty.path().string()), std::string::npos);
}

TEST(Hash, DependsOnEveryTokenItsPlaceAndTheParent) {
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  const uint64_t hash = hash_tokens(0, tokens);
  EXPECT_EQ(hash, hash_tokens(0, tokens));
  EXPECT_NE(hash, hash_tokens(1, tokens));
  EXPECT_NE(hash, hash_tokens(0, std::vector<int32_t>{1, 2, 4, 3}));
  EXPECT_NE(hash, hash_tokens(0, std::vector<int32_t>{1, 2, 3}));
  EXPECT_NE(hash_tokens(0, std::vector<int32_t>{}), hash_tokens(0, std::vector<int32_t>{0}));
}

TEST(Check, AFailureNamesTheConditionTheValuesAndThePlace) {
  const int held = 3;
  const std::string message = message_of<InternalError>([&] { QUIRE_CHECK(held == 4, "held ", held, " of 4"); });
  EXPECT_NE(message.find("held == 4"), std::string::npos);
  EXPECT_NE(message.find("held 3 of 4"), std::string::npos);
  EXPECT_NE(message.find("values_test.cpp"), std::string::npos);
}

}  // namespace
}  // namespace quire
