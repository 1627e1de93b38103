// A kernel table whose packed weights are plain row-major matrices (a gated one: gate's rows, then up's), and small
// configurations. Lets the tests of loading read back what was packed without knowing a backend's layout.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/check.h"
#include "base/json.h"
#include "device/device.h"
#include "params/kernel_table.h"

namespace quire::test {

inline float element(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

inline void set_element(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::f32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = dtype == DType::bf16 ? float_to_bf16(value) : float_to_f16(value);
  }
}

inline const KernelTable& plain_kernels() {
  static const KernelTable table = [] {
    KernelTable kernels;
    kernels.name = "plain";
    kernels.packed_weight_bytes = [](int64_t rows, int64_t cols, DType dtype, bool) {
      return static_cast<size_t>(rows * cols) * dtype_bytes(dtype);
    };
    kernels.pack_weight = [](const PackWeightParams& p, Stream) {
      QUIRE_CHECK((p.part == PackPart::whole) != p.weight.gated);
      QUIRE_CHECK(reinterpret_cast<uintptr_t>(p.source) % dtype_bytes(p.source_dtype) == 0);
      QUIRE_CHECK(p.cols == p.weight.cols);
      const int64_t first = p.row_begin + (p.part == PackPart::up ? p.weight.rows / 2 : 0);
      for (int64_t r = 0; r < p.rows; ++r) {
        for (int64_t c = 0; c < p.cols; ++c) {
          set_element(p.weight.data, p.weight.dtype, (first + r) * p.cols + c,
                      element(p.source, p.source_dtype, r * p.row_stride + c * p.col_stride));
        }
      }
    };
    kernels.unpack_weight = [](const UnpackWeightParams& p, Stream) {
      const int64_t first = p.row_begin + (p.part == PackPart::up ? p.weight.rows / 2 : 0);
      for (int64_t i = 0; i < p.rows * p.weight.cols; ++i) {
        p.out[i] = element(p.weight.data, p.weight.dtype, first * p.weight.cols + i);
      }
    };
    kernels.fill_dummy = [](const FillDummyParams& p, Stream) {
      for (int64_t i = 0; i < p.count; ++i) {
        p.out[i] = dummy_unit(p.seed, p.index_begin + i) * kDummyScale + p.added;
      }
    };
    return kernels;
  }();
  return table;
}

// The host with another table of kernels.
class TableDevice : public Device {
 public:
  explicit TableDevice(const KernelTable& table) : table_(table) {}
  std::string name() const override { return table_.name; }
  const KernelTable& kernels() const override { return table_; }
  Stream stream() const override { return host_->stream(); }
  int num_threads() const override { return 1; }
  DeviceMemory memory() const override { return host_->memory(); }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t n) override { return host_->allocate(tag, n); }
  std::unique_ptr<HostBuffer> allocate_host(size_t n) override { return host_->allocate_host(n); }
  void copy_to_device(void* to, const void* from, size_t n) override { host_->copy_to_device(to, from, n); }
  void copy_to_host(void* to, const void* from, size_t n) override { host_->copy_to_host(to, from, n); }
  void copy_async(void* to, const void* from, size_t n, Stream s) override { host_->copy_async(to, from, n, s); }
  void fill_async(void* to, std::byte value, size_t n, Stream s) override { host_->fill_async(to, value, n, s); }
  std::unique_ptr<Event> make_event() override { return host_->make_event(); }
  void wait_for(Stream, const Event&) override {}
  std::unique_ptr<Graph> capture(const std::function<void()>&) override { return nullptr; }
  void synchronize() override {}

 private:
  std::unique_ptr<Device> host_ = make_host_device({.num_threads = 1});
  const KernelTable& table_;
};

inline float at(const PackedWeight& weight, int64_t row, int64_t col) {
  return element(weight.data, weight.dtype, row * weight.cols + col);
}

// A directory that is gone when the test is over.
class TestFolder {
 public:
  TestFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "quire_test_XXXXXX").string();
    QUIRE_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }

 private:
  std::filesystem::path path_;
};

inline Json tiny_llama() {
  return Json::parse(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 11, "hidden_size": 6,
    "intermediate_size": 5, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 4,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 2})");
}

inline Json tiny_gpt2() {
  return Json::parse(R"({"architectures": ["GPT2LMHeadModel"], "vocab_size": 11, "n_embd": 6, "n_head": 2, "n_layer": 2,
    "n_positions": 9, "n_inner": 5})");
}

}  // namespace quire::test
