// Safetensors: what a valid file gives, and each kind of damage, which must be named before any tensor is used.
#include "model/safetensors.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "model/plain_kernels.h"

namespace quire {
namespace {

using test::TestFolder;

std::string with_length(const std::string& header, uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(length >> (8 * i)));
  return bytes + header;
}

std::string file_of(const std::string& header, size_t data_bytes) {
  return with_length(header, header.size()) + std::string(data_bytes, '\1');
}

std::vector<CheckpointTensor> parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), "weights");
}

// The message of the InvalidArgument that parsing throws; empty if it throws none.
std::string parse_error(const std::string& bytes) {
  try {
    parse(bytes);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

void expect_error(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos) << "\"" << message << "\" lacks \"" << part << "\"";
}

const char* const kTwoTensors =
    R"({"__metadata__": {"format": "pt"}, "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}})";

TEST(Safetensors, TensorsComeInTheOrderOfTheFile) {
  const std::string bytes = file_of(kTwoTensors, 22);
  const std::vector<CheckpointTensor> tensors = parse(bytes);
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::f32);
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(tensors[0].data, bytes.data() + bytes.size() - 22);
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, DType::bf16);
  EXPECT_EQ(tensors[1].data, bytes.data() + bytes.size() - 6);
}

TEST(Safetensors, EmptyTensorsAndScalarsAreValid) {
  const std::vector<CheckpointTensor> tensors =
      parse(file_of(R"({"none": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]},
                        "one": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}})",
                    8));
  EXPECT_EQ(tensors.size(), 2u);
}

TEST(Safetensors, EveryTruncationIsFound) {
  const std::string bytes = file_of(kTwoTensors, 22);
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_NE(parse_error(bytes.substr(0, length)), "") << length << " bytes";
  }
  expect_error(parse_error(bytes.substr(0, 7)), "7 bytes are no safetensors file");
  expect_error(parse_error(bytes.substr(0, 100)), "the header is said to be");
  expect_error(parse_error(bytes.substr(0, bytes.size() - 1)), "do not lie in the 21 bytes of data");
}

TEST(Safetensors, DamagedHeaders) {
  expect_error(parse_error(with_length("{}", 3)), "the header is said to be 3 bytes long, but the file has 2");
  expect_error(parse_error(with_length("{}", ~uint64_t{0})), "the header is said to be 18446744073709551615 bytes");
  expect_error(parse_error(file_of("{\"a\": ", 0)), "not valid JSON");
  expect_error(parse_error(file_of("\x80\x02}q", 0)), "not valid JSON");
  expect_error(parse_error(file_of("[1, 2]", 0)), "not a JSON object");
  expect_error(parse_error(file_of(R"({"a": 3})", 0)), "tensor \"a\" is not described by a JSON object");
  expect_error(parse_error(file_of(R"({"a": {"shape": [1], "data_offsets": [0, 4]}})", 4)), "has no dtype");
}

TEST(Safetensors, DuplicateNames) {
  const std::string one = R"("a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]})";
  const std::string other = R"("a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]})";
  expect_error(parse_error(file_of("{" + one + ", " + other + "}", 2)), "the name \"a\" twice");
  expect_error(parse_error(file_of(R"({"a": {"dtype": "U8", "shape": [1], "shape": [1], "data_offsets": [0, 1]}})", 1)),
               "the name \"shape\" twice");
  // The same key in two objects is no duplicate.
  EXPECT_EQ(parse_error(file_of(R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                                    "shape": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})",
                                2)),
            "");
}

std::string entry_error(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return parse_error(file_of(
      R"({"a": {"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data_offsets": )" + offsets + "}}", 16));
}

TEST(Safetensors, DamagedEntries) {
  EXPECT_EQ(entry_error("F32", "[4]", "[0, 16]"), "");
  expect_error(entry_error("F8_E4M3", "[16]", "[0, 16]"), "has the dtype F8_E4M3, which quire cannot read");
  expect_error(entry_error("F32", "[-4]", "[0, 16]"), "\"shape\" is not a list of non-negative integers");
  expect_error(entry_error("F32", "[4.0]", "[0, 16]"), "\"shape\" is not a list of non-negative integers");
  expect_error(entry_error("F32", "4", "[0, 16]"), "\"shape\" is not a list of non-negative integers");
  expect_error(entry_error("F32", "[4]", "[0]"), "data_offsets [0] do not lie");
  expect_error(entry_error("F32", "[4]", "[16, 0]"), "data_offsets [16,0] do not lie");
  expect_error(entry_error("F32", "[5]", "[0, 20]"), "data_offsets [0,20] do not lie in the 16 bytes of data");
  expect_error(entry_error("F32", "[3]", "[0, 16]"), "takes 12 bytes, but its offsets span 16");
  expect_error(entry_error("F32", "[4294967296, 4294967296]", "[0, 16]"), "the shape overflows");
}

TEST(Safetensors, OverlapsAndGaps) {
  const auto two = [](const char* first, const char* second, size_t data_bytes) {
    return parse_error(file_of(str_cat(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": )", first,
                                       R"(}, "b": {"dtype": "U8", "shape": [4], "data_offsets": )", second, "}}"),
                               data_bytes));
  };
  EXPECT_EQ(two("[4, 8]", "[0, 4]", 8), "");
  expect_error(two("[0, 4]", "[2, 6]", 6), "tensor \"b\" begins at 2, which overlaps tensor \"a\" that ends at 4");
  expect_error(two("[0, 4]", "[0, 4]", 4), "which overlaps");
  expect_error(two("[0, 4]", "[6, 10]", 10), "which leaves a gap after tensor \"a\"");
  expect_error(two("[1, 5]", "[5, 9]", 9), "which leaves a gap after the header");
  expect_error(two("[0, 4]", "[4, 8]", 9), "the tensors end at 8, but the file has 9 bytes");
}

std::string u8_file(const std::string& name) {
  return file_of(str_cat(R"({")", name, R"(": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})"), 4);
}

std::string open_error(const TestFolder& folder) {
  try {
    open_safetensors(folder.path());
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST(SafetensorsCheckpoint, ASingleFile) {
  const TestFolder folder;
  folder.write("model.safetensors", file_of(kTwoTensors, 22));
  const auto checkpoint = open_safetensors(folder.path());
  ASSERT_EQ(checkpoint->tensors().size(), 2u);
  checkpoint->release(checkpoint->tensors()[0]);  // gives pages back; the contents stay those of the file
  EXPECT_EQ(*static_cast<const char*>(checkpoint->tensors()[0].data), '\1');
}

TEST(SafetensorsCheckpoint, Shards) {
  const TestFolder folder;
  folder.write("one.safetensors", u8_file("a"));
  folder.write("two.safetensors", u8_file("b"));
  folder.write("model.safetensors.index.json", R"({"weight_map": {"b": "two.safetensors", "a": "one.safetensors"}})");
  EXPECT_EQ(open_safetensors(folder.path())->tensors().size(), 2u);

  folder.write("model.safetensors.index.json", R"({"weight_map": {"b": "one.safetensors", "a": "one.safetensors"}})");
  expect_error(open_error(folder), "b: the index says one.safetensors, but it is in no file");
  folder.write("model.safetensors.index.json", R"({"weight_map": {"b": "one.safetensors", "a": "two.safetensors"}})");
  expect_error(open_error(folder), "b: the index says one.safetensors, but it is in two.safetensors");
  expect_error(open_error(folder), "a: the index says two.safetensors, but it is in one.safetensors");
  folder.write("model.safetensors.index.json",
               R"({"weight_map": {"b": "two.safetensors", "c": "3.safetensors", "d": "4.safetensors"}})");
  expect_error(open_error(folder), "names files that are not there: 3.safetensors, 4.safetensors");
  folder.write("two.safetensors", u8_file("a"));
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}})");
  expect_error(open_error(folder), "tensor \"a\" is in both one.safetensors and two.safetensors");
}

TEST(SafetensorsCheckpoint, DamagedIndex) {
  const TestFolder folder;
  folder.write("model.safetensors.index.json", "{");
  expect_error(open_error(folder), "not valid JSON");
  for (const char* text : {"[]", "{}", R"({"weight_map": []})", R"({"weight_map": {}})"}) {
    folder.write("model.safetensors.index.json", text);
    expect_error(open_error(folder), "has no \"weight_map\"");
  }
  for (const char* file : {"3", "\"\"", "\"../x.safetensors\"", "\"/etc/passwd\"", "\"..\""}) {
    folder.write("model.safetensors.index.json", str_cat(R"({"weight_map": {"a": )", file, "}}"));
    expect_error(open_error(folder), "which is no file name in the model's directory");
  }
}

TEST(SafetensorsCheckpoint, NoWeights) {
  const TestFolder folder;
  expect_error(open_error(folder), "neither model.safetensors nor model.safetensors.index.json is there");
  folder.write("pytorch_model.bin", "x");
  expect_error(open_error(folder), "pytorch_model.bin");
  folder.write("model.safetensors", "");
  expect_error(open_error(folder), "is empty");
  EXPECT_THROW(open_safetensors(folder.path() / "absent"), InvalidArgument);
}

}  // namespace
}  // namespace quire
