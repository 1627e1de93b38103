// Where the loader puts tensors: the way from host memory to the packed weights of a device.
//
// Decides: copies, conversions and their order. Does not know: names, architectures. On a device that is not
// asynchronous kernels read the tensors where they are (mapped pages); elsewhere tensors pass through pinned slots.
// Used for one load, by its thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "device/device.h"
#include "params/gemm.h"

namespace quire {

// A matrix, or with one column a vector, in host memory. Any alignment; float32, float16, bfloat16 or float64. One of
// the strides is 1.
struct StoredMatrix {
  const std::byte* data = nullptr;  // element (r, c) at r * row_stride + c * col_stride
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t cols = 1;
  int64_t row_stride = 1;
  int64_t col_stride = 1;
};

// The ring that tensors pass through on an asynchronous device: one slot is filled while one is copied and one is
// packed, and one is in reserve. 16 MiB: a third of a millisecond on PCIe 5, against which launches and events are
// nothing, and little enough that 64 MiB of pinned memory and as much on the device are all it takes.
struct StagingOptions {
  size_t slot_bytes = size_t{16} << 20;  // at least the longest row is taken
  int num_slots = 4;
  int num_threads = 0;  // that fill; 0: default_num_threads(), at most 16
};

// Waits when it goes, also on the way of an exception: memory of a load must outlive the work that names it.
class SynchronizeAtEnd {
 public:
  explicit SynchronizeAtEnd(Device& device) : device_(device) {}
  ~SynchronizeAtEnd();
  SynchronizeAtEnd(const SynchronizeAtEnd&) = delete;
  SynchronizeAtEnd& operator=(const SynchronizeAtEnd&) = delete;

 private:
  Device& device_;
};

class WeightSink {
 public:
  virtual ~WeightSink() = default;

  // Packs `source` into rows [row_begin, row_begin + source.rows) of `weight`. The source may go when it returns.
  virtual void pack(const StoredMatrix& source, PackPart part, int64_t row_begin, const PackedWeight& weight) = 0;
  // destination[r] = source[r] + added, in float32.
  virtual void write_vector(const StoredMatrix& source, float added, float* destination) = 0;
  // Everything given so far is on device.stream().
  virtual void flush() = 0;
};

// longest_row: columns of the widest matrix.
std::unique_ptr<WeightSink> make_weight_sink(Device& device, int64_t longest_row, const StagingOptions& options);

}  // namespace quire
