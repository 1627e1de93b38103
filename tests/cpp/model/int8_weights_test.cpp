// Which matrices are int8, how large they are, and that a tied head is a copy of the embedding in its own format.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/check.h"
#include "device/device.h"
#include "model/arch_registry.h"
#include "model/plain_kernels.h"
#include "model/tiny_families.h"
#include "model/weight_loader.h"

namespace quire {
namespace {

WeightFormat int8_of(DType dtype) { return {dtype, true}; }

struct Model {
  Model(Json config, bool tied, WeightFormat format) : device(make_host_device({.num_threads = 2})) {
    config["tie_word_embeddings"] = tied;
    arch = arch_registry().build(config);
    num_bytes = place_weights(arch, format, device->kernels(), nullptr, weights);
    region = device->allocate(RegionTag::weights, num_bytes);
    EXPECT_EQ(place_weights(arch, format, device->kernels(), region->data(), weights), num_bytes);
  }

  std::vector<std::byte> bytes_of(const PackedWeight& weight) const {
    const auto* data = static_cast<const std::byte*>(weight.data);
    return {data, data + device->kernels().packed_weight_bytes(weight.rows, weight.cols, weight.dtype, weight.gated)};
  }

  std::unique_ptr<Device> device;
  ArchSpec arch;
  Weights weights;
  size_t num_bytes = 0;
  std::unique_ptr<Region> region;
};

TEST(Int8Weights, AreThoseOfTheLayersAndTheHead) {
  for (const test::TinyFamily& family : test::tiny_families()) {
    Model model(family.config, false, int8_of(DType::bf16));
    for (const LayerWeights& layer : model.weights.layers) {
      for (const PackedWeight* weight : {&layer.qkv, &layer.o, &layer.up, &layer.down}) {
        EXPECT_EQ(weight->dtype, DType::i8) << family.name;
      }
    }
    EXPECT_EQ(model.weights.embedding.dtype, DType::bf16) << family.name;
    EXPECT_EQ(model.weights.head.dtype, model.arch.has_lm_head ? DType::i8 : DType::f32) << family.name;
    for (const PackedWeight* weight :
         {&model.weights.position_embedding, &model.weights.embed_proj, &model.weights.out_proj}) {
      EXPECT_EQ(weight->dtype, weight->rows > 0 ? DType::bf16 : DType::f32) << family.name;
    }
  }
}

TEST(Int8Weights, TakeHalfTheBytesOfBf16) {
  Json config = test::tiny_llama();
  config["hidden_size"] = 512;
  config["intermediate_size"] = 1024;
  config["head_dim"] = 128;
  const Model bf16(config, false, DType::bf16), int8(config, false, int8_of(DType::bf16));
  const auto& kernels = bf16.device->kernels();
  const auto wide = static_cast<double>(layer_weight_bytes(bf16.arch, DType::bf16, kernels)[0]);
  const auto narrow = static_cast<double>(layer_weight_bytes(int8.arch, int8_of(DType::bf16), kernels)[0]);
  EXPECT_GT(narrow / wide, 0.5);
  EXPECT_LT(narrow / wide, 0.52);
  EXPECT_EQ(num_parameters(bf16.arch), num_parameters(int8.arch));
}

TEST(Int8Weights, ATiedHeadIsPackedFromTheEmbedding) {
  const Json config = test::tiny_llama();
  Model tied(config, true, int8_of(DType::f32)), plain(config, true, DType::f32);
  ASSERT_NE(tied.weights.head.data, tied.weights.embedding.data);
  EXPECT_EQ(plain.weights.head.data, plain.weights.embedding.data);

  for (const bool is_dummy : {false, true}) {
    for (Model* model : {&tied, &plain}) {
      const test::RandomCheckpoint checkpoint(model->arch, test::Stored::f32);  // which the load wears out
      load_weights_or_dummy(model->arch, is_dummy ? nullptr : &checkpoint, *model->device, model->weights);
    }
    EXPECT_EQ(tied.bytes_of(tied.weights.embedding), plain.bytes_of(plain.weights.embedding));
    // What the same rows become when they are packed alone.
    const PackedWeight& head = tied.weights.head;
    std::vector<float> rows(static_cast<size_t>(head.rows * head.cols));
    std::vector<int32_t> ids(static_cast<size_t>(head.rows));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    EmbeddingParams gather;
    gather.token_ids = ids.data();
    gather.num_tokens = head.rows;
    gather.table = tied.weights.embedding;
    gather.out = rows.data();
    gather.out_stride = head.cols;
    tied.device->kernels().embedding(gather, tied.device->stream());
    const std::vector<std::byte> expected = tied.bytes_of(head);
    std::memset(head.data, 0x55, expected.size());
    tied.device->kernels().pack_weight(
        {.source = rows.data(), .rows = head.rows, .cols = head.cols, .row_stride = head.cols, .weight = head},
        tied.device->stream());
    EXPECT_EQ(tied.bytes_of(head), expected) << (is_dummy ? "dummy" : "checkpoint");
  }
}

}  // namespace
}  // namespace quire
