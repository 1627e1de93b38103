#include "kernels_simt/emulated_cublaslt.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"

// What the pointers of the table point to.
namespace quire::cublaslt {

struct Context {};
struct MatmulDescription {
  ComputeType compute;
  DataType scale;
  int32_t transposes_a = 0;
};
struct MatrixLayout {
  DataType type;
  uint64_t rows, cols;
  int64_t ld;
};
struct MatmulPreference {
  uint64_t max_workspace_bytes = 0;
  uint32_t reduction_scheme_mask = 7;
  uint32_t alignments[4] = {256, 256, 256, 256};
};

}  // namespace quire::cublaslt

namespace quire::emulated_cublaslt {
namespace {

using namespace cublaslt;

constexpr Status kInvalidValue = 7;

struct State {
  Counts counts;
  std::string failing;
  Status failure = kSuccess;
  bool knows_none = false;
  // What was given out; the library gives nothing of it back.
  std::vector<std::unique_ptr<Context>> contexts;
  std::vector<std::unique_ptr<MatmulDescription>> descriptions;
  std::vector<std::unique_ptr<MatrixLayout>> layouts;
};
State state;
std::vector<State> earlier;  // plans of earlier tests point into these

Status answer(const char* function) { return state.failing == function ? state.failure : kSuccess; }

size_t element_bytes(DataType type) { return type == kReal32F ? 4 : 2; }

float read(const void* base, DataType type, int64_t at) {
  if (type == kReal32F) return static_cast<const float*>(base)[at];
  const uint16_t bits = static_cast<const uint16_t*>(base)[at];
  return type == kReal16BF ? bf16_to_float(bits) : f16_to_float(bits);
}

void write(void* base, DataType type, int64_t at, float value) {
  if (type == kReal32F) {
    static_cast<float*>(base)[at] = value;
  } else {
    static_cast<uint16_t*>(base)[at] = type == kReal16BF ? float_to_bf16(value) : float_to_f16(value);
  }
}

// One number for the matrices that an algorithm is good for, whatever the number of columns of b and d.
uint64_t signature(const MatmulDescription* what, const MatrixLayout* a, const MatrixLayout* b, const MatrixLayout* d) {
  uint64_t hash = 1469598103934665603u;
  for (const uint64_t part : {uint64_t(what->compute), uint64_t(what->transposes_a), uint64_t(a->type), a->rows,
                              a->cols, uint64_t(b->type), uint64_t(d->type), d->rows}) {
    hash = (hash ^ part) * 1099511628211u;
  }
  return hash;
}

bool are_multipliable(const MatmulDescription* what, const MatrixLayout* a, const MatrixLayout* b,
                      const MatrixLayout* d) {
  const bool lines_are_whole = a->ld * static_cast<int64_t>(element_bytes(a->type)) % 16 == 0 &&
                               b->ld * static_cast<int64_t>(element_bytes(b->type)) % 16 == 0 &&
                               d->ld * static_cast<int64_t>(element_bytes(d->type)) % 16 == 0;
  return what->compute == kCompute32F && what->scale == kReal32F && what->transposes_a == 1 && a->type == b->type &&
         a->rows == b->rows && a->cols == d->rows && b->cols == d->cols && a->ld >= static_cast<int64_t>(a->rows) &&
         b->ld >= static_cast<int64_t>(b->rows) && d->ld >= static_cast<int64_t>(d->rows) && lines_are_whole;
}

Status set_layout(MatrixLayout* layout, LayoutAttribute attribute, const void* value, size_t bytes) {
  if (bytes != 8) return kInvalidValue;
  if (attribute == kLayoutCols) {
    std::memcpy(&layout->cols, value, bytes);
  } else if (attribute == kLayoutLd) {
    std::memcpy(&layout->ld, value, bytes);
  } else {
    return kInvalidValue;
  }
  return kSuccess;
}

Status set_preference(MatmulPreference* preference, PreferenceAttribute attribute, const void* value, size_t bytes) {
  if (attribute == kPreferenceMaxWorkspaceBytes && bytes == 8) {
    std::memcpy(&preference->max_workspace_bytes, value, bytes);
  } else if (attribute == kPreferenceReductionSchemeMask && bytes == 4) {
    std::memcpy(&preference->reduction_scheme_mask, value, bytes);
  } else if (attribute >= kPreferenceMinAlignmentA && attribute < kPreferenceMinAlignmentA + 4 && bytes == 4) {
    std::memcpy(&preference->alignments[attribute - kPreferenceMinAlignmentA], value, bytes);
  } else {
    return kInvalidValue;
  }
  return kSuccess;
}

Status find_algorithm(Handle, MatmulDescription* what, MatrixLayout* a, MatrixLayout* b, MatrixLayout* c,
                      MatrixLayout* d, MatmulPreference* preference, int requested, HeuristicResult* result,
                      int* returned) {
  ++state.counts.questions;
  *returned = 0;
  if (const Status status = answer("heuristic"); status != kSuccess) return status;
  if (requested < 1 || c != d || !are_multipliable(what, a, b, d)) return kInvalidValue;
  if (preference->reduction_scheme_mask != kReductionSchemeNone) return kInvalidValue;
  for (const uint32_t alignment : preference->alignments) {
    if (alignment > 16) return kInvalidValue;
  }
  if (state.knows_none) return kSuccess;
  *result = {};
  result->algorithm.data[0] = signature(what, a, b, d);
  result->algorithm.data[1] = preference->max_workspace_bytes;
  *returned = 1;
  return kSuccess;
}

Status multiply(Handle handle, MatmulDescription* what, const void* alpha, const void* a, MatrixLayout* a_layout,
                const void* b, MatrixLayout* b_layout, const void* beta, const void* c, MatrixLayout* c_layout, void* d,
                MatrixLayout* d_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                CudaStream) {
  ++state.counts.products;
  if (const Status status = answer("matmul"); status != kSuccess) return status;
  if (handle == nullptr || c != d || c_layout != d_layout) return kInvalidValue;
  if (!are_multipliable(what, a_layout, b_layout, d_layout)) return kInvalidValue;
  if (algorithm->data[0] != signature(what, a_layout, b_layout, d_layout)) return kInvalidValue;
  if (algorithm->data[1] > workspace_bytes) return kInvalidValue;
  for (const void* address : {a, b, c, static_cast<const void*>(d), static_cast<const void*>(workspace)}) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return kInvalidValue;
  }
  std::memset(workspace, 0xff, workspace_bytes);
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  for (uint64_t column = 0; column < d_layout->cols; ++column) {
    for (uint64_t row = 0; row < d_layout->rows; ++row) {
      double sum = 0.0;
      for (uint64_t k = 0; k < a_layout->rows; ++k) {
        sum += double{read(a, a_layout->type, static_cast<int64_t>(k) + static_cast<int64_t>(row) * a_layout->ld)} *
               read(b, b_layout->type, static_cast<int64_t>(k) + static_cast<int64_t>(column) * b_layout->ld);
      }
      const int64_t at = static_cast<int64_t>(row) + static_cast<int64_t>(column) * d_layout->ld;
      const float old = keep != 0.0f ? keep * read(c, c_layout->type, at) : 0.0f;
      write(d, d_layout->type, at, static_cast<float>(scale * sum) + old);
    }
  }
  return kSuccess;
}

}  // namespace

const Functions& reset() {
  earlier.push_back(std::move(state));
  state = State();
  static std::vector<std::unique_ptr<Functions>> tables;  // a new one each time, since plans are kept for each table
  Functions f = {};
  f.get_version = [] { return size_t{130000}; };
  f.get_status_name = [](Status status) {
    return status == kNotSupported ? "CUBLAS_STATUS_NOT_SUPPORTED"
           : status == 13          ? "CUBLAS_STATUS_EXECUTION_FAILED"
                                   : "CUBLAS_STATUS_OTHER";
  };
  f.create = [](Handle* handle) {
    if (const Status status = answer("create"); status != kSuccess) return status;
    ++state.counts.handles;
    *handle = state.contexts.emplace_back(new Context).get();
    return kSuccess;
  };
  f.matmul_desc_create = [](MatmulDescription** made, ComputeType compute, DataType scale) {
    *made = state.descriptions.emplace_back(new MatmulDescription{compute, scale}).get();
    return kSuccess;
  };
  f.matmul_desc_set_attribute = [](MatmulDescription* what, DescriptionAttribute attribute, const void* value,
                                   size_t bytes) {
    if (attribute != kDescriptionTransA || bytes != 4) return kInvalidValue;
    std::memcpy(&what->transposes_a, value, bytes);
    return kSuccess;
  };
  f.matrix_layout_create = [](MatrixLayout** made, DataType type, uint64_t rows, uint64_t cols, int64_t ld) {
    *made = state.layouts.emplace_back(new MatrixLayout{type, rows, cols, ld}).get();
    return kSuccess;
  };
  f.matrix_layout_set_attribute = set_layout;
  f.matmul_preference_create = [](MatmulPreference** made) {
    *made = new MatmulPreference;
    return kSuccess;
  };
  f.matmul_preference_destroy = [](MatmulPreference* preference) {
    delete preference;
    return kSuccess;
  };
  f.matmul_preference_set_attribute = set_preference;
  f.matmul_algo_get_heuristic = find_algorithm;
  f.matmul = multiply;
  return *tables.emplace_back(new Functions(f));
}

Counts counts() { return state.counts; }

void fail(const char* function, Status status) {
  state.failing = function;
  state.failure = status;
}

void know_no_algorithm() { state.knows_none = true; }

}  // namespace quire::emulated_cublaslt
