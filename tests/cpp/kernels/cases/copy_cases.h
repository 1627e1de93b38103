// Cases of copy_blocks: bytes, so every result is exact.
#pragma once

#include "kernels/cases/kernel_case.h"

namespace quire::cases {

struct CopyBlocksSpec {
  std::vector<int64_t> page_bytes = {32, 4096, 48, 1040};  // of each array
  int32_t num_blocks = 9;
  int32_t num_copies = 3;
};

class CopyBlocksCase : public KernelCase {
 public:
  explicit CopyBlocksCase(const CopyBlocksSpec& spec) : spec_(spec) {
    for (const int64_t page_bytes : spec.page_bytes) {
      buffers_.emplace_back(DType::u8, page_bytes * spec.num_blocks);
      arrays_.push_back({buffers_.back().data(), page_bytes});
      bytes += 2.0 * static_cast<double>(page_bytes) * spec.num_copies;
    }
    QUIRE_CHECK(3 * spec.num_copies <= spec.num_blocks);
    // A source may serve twice; a destination is in no other pair.
    for (int32_t i = 0; i < spec.num_copies; ++i) copies_.push_back({i / 2 * 3, i * 3 + 1});
    CopyBlocksCase::reset();
  }

  void reset() override {
    for (size_t a = 0; a < buffers_.size(); ++a) {
      for (int64_t i = 0; i < buffers_[a].count(); ++i) buffers_[a].as<uint8_t>()[i] = before(a, i);
    }
  }

  void run(const KernelTable& table, Stream stream) override {
    CopyBlocksParams p;
    p.arrays = arrays_.data();
    p.num_arrays = static_cast<int32_t>(arrays_.size());
    p.copies = copies_.data();
    p.num_copies = static_cast<int32_t>(copies_.size());
    table.copy_blocks(p, stream);
  }

  std::vector<const Buffer*> outputs() const override {
    std::vector<const Buffer*> all;
    for (const Buffer& buffer : buffers_) all.push_back(&buffer);
    return all;
  }

  std::string check() const override {
    for (size_t a = 0; a < buffers_.size(); ++a) {
      if (!buffers_[a].guards_hold()) return str_cat("wrote outside of array ", a);
      const int64_t page_bytes = spec_.page_bytes[a];
      for (int64_t i = 0; i < buffers_[a].count(); ++i) {
        int64_t from = i;
        for (const BlockCopy& copy : copies_) {
          if (i / page_bytes == copy.destination) from = copy.source * page_bytes + i % page_bytes;
        }
        const uint8_t got = static_cast<const uint8_t*>(buffers_[a].data())[i];
        if (got != before(a, from)) return str_cat("array ", a, " page ", i / page_bytes, " byte ", i % page_bytes);
      }
    }
    return "";
  }

 private:
  static uint8_t before(size_t array, int64_t i) {
    return static_cast<uint8_t>(mix64(static_cast<uint64_t>(i) * 64 + array));
  }

  CopyBlocksSpec spec_;
  std::vector<Buffer> buffers_;
  std::vector<PageArray> arrays_;
  std::vector<BlockCopy> copies_;
};

inline void add_copy_cases(std::vector<CaseEntry>& cases) {
  const auto copy = [&](const std::string& what, const CopyBlocksSpec& spec) {
    cases.push_back({"copy_blocks_" + what, false,
                     [spec](const KernelTable&, Stream) { return std::make_unique<CopyBlocksCase>(spec); }});
  };
  copy("layers", {});
  copy("one", {.page_bytes = {16}, .num_blocks = 3, .num_copies = 1});
  copy("large", {.page_bytes = {65536, 65536}, .num_blocks = 6, .num_copies = 2});
}

}  // namespace quire::cases
