// The direct way and the way through pinned slots; see weight_sink.h.
//
// A slot's life: threads fill it from the mapping; one copy brings it to its place on the device (copy_stream); packing
// kernels read it there (stream); the event behind them gives both halves of the slot back.
#include "model/weight_sink.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/threads.h"

namespace quire {
namespace {

constexpr size_t kAlignment = 64;
constexpr int64_t kTaskBytes = int64_t{1} << 20;  // of one filling task
// A chunk of fewer rows waits for the next slot: transposed sources are read in runs of as many elements.
constexpr int64_t kFewRows = 256;
constexpr int64_t kRowMultiple = 64;  // of a chunk: whole panels of every backend, where the part begins at one
constexpr int kMaxFillThreads = 16;   // more would wait for the bus or for host memory

DType staged_dtype(DType dtype) { return dtype == DType::f64 ? DType::f32 : dtype; }

bool is_readable(const StoredMatrix& m) {
  return m.dtype != DType::f64 && reinterpret_cast<uintptr_t>(m.data) % dtype_bytes(m.dtype) == 0;
}

float element_as_float(const StoredMatrix& m, int64_t index) {
  const std::byte* at = m.data + static_cast<size_t>(index) * dtype_bytes(m.dtype);
  if (m.dtype == DType::f64) {
    double wide = 0.0;
    std::memcpy(&wide, at, sizeof(wide));
    return static_cast<float>(wide);
  }
  if (m.dtype == DType::f32) {
    float value = 0.0f;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof(bits));
  return m.dtype == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

void copy_elements(const StoredMatrix& source, int64_t index, int64_t count, std::byte* to) {
  if (source.dtype != DType::f64) {
    const size_t size = dtype_bytes(source.dtype);
    std::memcpy(to, source.data + static_cast<size_t>(index) * size, static_cast<size_t>(count) * size);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float narrow = element_as_float(source, index + i);
    std::memcpy(to + static_cast<size_t>(i) * sizeof(float), &narrow, sizeof(float));
  }
}

// Copies rows [begin, begin + rows) to `to` without gaps, in the source's order of dimensions, float64 as float32.
// Returns them as they lie there.
StoredMatrix copy_rows(const StoredMatrix& source, int64_t begin, int64_t rows, std::byte* to, ThreadPool& threads) {
  const bool transposed = source.col_stride != 1;
  // Runs are contiguous in both places: rows, or what a column has of these rows.
  const int64_t num_runs = transposed ? source.cols : rows;
  const int64_t run_length = transposed ? rows : source.cols;
  const int64_t run_stride = transposed ? source.col_stride : source.row_stride;
  const auto size = static_cast<int64_t>(dtype_bytes(staged_dtype(source.dtype)));
  const int64_t first = begin * source.row_stride;
  const int64_t runs_a_task = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, run_length * size));
  threads.parallel_for((num_runs + runs_a_task - 1) / runs_a_task, [&](int64_t task) {
    const int64_t run_begin = task * runs_a_task;
    const int64_t run_end = std::min(num_runs, run_begin + runs_a_task);
    if (run_stride == run_length) {
      copy_elements(source, first + run_begin * run_stride, (run_end - run_begin) * run_length,
                    to + run_begin * run_length * size);
      return;
    }
    for (int64_t run = run_begin; run < run_end; ++run) {
      copy_elements(source, first + run * run_stride, run_length, to + run * run_length * size);
    }
  });
  return {.data = to,
          .dtype = staged_dtype(source.dtype),
          .rows = rows,
          .cols = source.cols,
          .row_stride = transposed ? 1 : source.cols,
          .col_stride = transposed ? rows : 1};
}

PackWeightParams pack_params(const StoredMatrix& source, PackPart part, int64_t row_begin, const PackedWeight& weight) {
  return {.source = source.data,
          .source_dtype = source.dtype,
          .rows = source.rows,
          .cols = source.cols,
          .row_stride = source.row_stride,
          .col_stride = source.col_stride,
          .part = part,
          .row_begin = row_begin,
          .weight = weight};
}

class DirectSink final : public WeightSink {
 public:
  explicit DirectSink(const Device& device) : kernels_(device.kernels()), stream_(device.stream()) {}

  void pack(const StoredMatrix& source, PackPart part, int64_t row_begin, const PackedWeight& weight) override {
    StoredMatrix readable = source;
    if (!is_readable(source)) {
      converted_.resize(static_cast<size_t>(source.rows * source.cols) * dtype_bytes(staged_dtype(source.dtype)));
      readable = copy_rows(source, 0, source.rows, converted_.data(), threads_);
    }
    kernels_.pack_weight(pack_params(readable, part, row_begin, weight), stream_);
  }

  void write_vector(const StoredMatrix& source, float added, float* destination) override {
    for (int64_t i = 0; i < source.rows; ++i) destination[i] = element_as_float(source, i) + added;
  }

  void flush() override {}

 private:
  const KernelTable& kernels_;
  Stream stream_;
  ThreadPool threads_{1};
  std::vector<std::byte> converted_;
};

class StagedSink final : public WeightSink {
 public:
  StagedSink(Device& device, int64_t longest_row, const StagingOptions& options)
      : device_(device),
        slot_bytes_(aligned(std::max(options.slot_bytes, static_cast<size_t>(longest_row) * sizeof(float)))),
        threads_(options.num_threads > 0 ? options.num_threads : std::min(default_num_threads(), kMaxFillThreads)) {
    QUIRE_CHECK(options.num_slots >= 1, "num_slots ", options.num_slots);
    region_ = device.allocate(RegionTag::workspace, slot_bytes_ * static_cast<size_t>(options.num_slots));
    for (int i = 0; i < options.num_slots; ++i) {
      slots_.push_back({.host = device.allocate_host(slot_bytes_),
                        .device = region_->data() + static_cast<size_t>(i) * slot_bytes_,
                        .copied = device.make_event(),
                        .free = device.make_event()});
    }
  }

  void pack(const StoredMatrix& source, PackPart part, int64_t row_begin, const PackedWeight& weight) override {
    const size_t row_bytes = static_cast<size_t>(source.cols) * dtype_bytes(staged_dtype(source.dtype));
    for (int64_t begin = 0; begin < source.rows;) {
      const int64_t rows = take_rows(source.rows - begin, row_bytes);
      Slot& slot = slots_[current_];
      StoredMatrix staged = copy_rows(source, begin, rows, slot.host->data() + used_, threads_);
      staged.data = slot.device + used_;
      packs_.push_back(pack_params(staged, part, row_begin + begin, weight));
      used_ += aligned(static_cast<size_t>(rows) * row_bytes);
      begin += rows;
    }
  }

  void write_vector(const StoredMatrix& source, float added, float* destination) override {
    for (int64_t begin = 0; begin < source.rows;) {
      const int64_t count = take_rows(source.rows - begin, sizeof(float));
      auto* values = reinterpret_cast<float*>(slots_[current_].host->data() + used_);
      for (int64_t i = 0; i < count; ++i) values[i] = element_as_float(source, begin + i) + added;
      vectors_.push_back({destination + begin, values, static_cast<size_t>(count) * sizeof(float)});
      used_ += aligned(static_cast<size_t>(count) * sizeof(float));
      begin += count;
    }
  }

  void flush() override {
    if (used_ == 0) return;
    Slot& slot = slots_[current_];
    const Stream stream = device_.stream(), copy_stream = device_.copy_stream();
    if (!packs_.empty()) {
      device_.copy_async(slot.device, slot.host->data(), used_, copy_stream);
      slot.copied->record(copy_stream);
      device_.wait_for(stream, *slot.copied);
    }
    for (const PackWeightParams& params : packs_) device_.kernels().pack_weight(params, stream);
    for (const VectorCopy& copy : vectors_) device_.copy_async(copy.to, copy.from, copy.num_bytes, stream);
    slot.free->record(stream);
    packs_.clear();
    vectors_.clear();
    used_ = 0;
    current_ = (current_ + 1) % slots_.size();
  }

 private:
  struct Slot {
    std::unique_ptr<HostBuffer> host;
    std::byte* device = nullptr;
    std::unique_ptr<Event> copied, free;
  };
  struct VectorCopy {
    float* to = nullptr;
    const float* from = nullptr;
    size_t num_bytes = 0;
  };

  static size_t aligned(size_t num_bytes) { return (num_bytes + kAlignment - 1) / kAlignment * kAlignment; }

  // How many of `rows` rows the current slot takes; when these are few, the slot goes and the next one comes.
  int64_t take_rows(int64_t rows, size_t row_bytes) {
    auto fitting = static_cast<int64_t>((slot_bytes_ - used_) / row_bytes);
    if (fitting < std::min(rows, kFewRows) && used_ > 0) {
      flush();
      fitting = static_cast<int64_t>(slot_bytes_ / row_bytes);
    }
    if (used_ == 0) slots_[current_].free->wait();
    if (fitting >= rows) return rows;
    return fitting > kRowMultiple ? fitting / kRowMultiple * kRowMultiple : fitting;
  }

  Device& device_;
  size_t slot_bytes_;
  ThreadPool threads_;
  std::unique_ptr<Region> region_;
  std::vector<Slot> slots_;
  // The slot that is being filled, how far, and what is to be done when it has been copied.
  size_t current_ = 0;
  size_t used_ = 0;
  std::vector<PackWeightParams> packs_;
  std::vector<VectorCopy> vectors_;
  SynchronizeAtEnd synchronize_{device_};  // the last member: it goes before the slots
};

}  // namespace

SynchronizeAtEnd::~SynchronizeAtEnd() {
  try {
    device_.synchronize();
  } catch (const std::exception&) {  // told by the call that ended the load
  }
}

std::unique_ptr<WeightSink> make_weight_sink(Device& device, int64_t longest_row, const StagingOptions& options) {
  if (!device.is_asynchronous()) return std::make_unique<DirectSink>(device);
  return std::make_unique<StagedSink>(device, longest_row, options);
}

}  // namespace quire
