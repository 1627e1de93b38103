// What cuBLASLt is asked, and what is done behind it. Which products go here is gemm.cu's choice.
//
// The library's matrices are column-major: out^T [rows, m] = weight [padded_cols, rows]^T a^T [cols, m].
// One algorithm a shape of weight, element types and device, asked for once at kLargeM rows and kept: the order of its
// sums then depends on m no more than on anything else, since split-K, which adds what blocks have in an order of its
// own, is excluded. Any thread may call; a lock guards what is kept, and the library's descriptions of matrices, which
// get the m and the strides of each call.
// A product without bias, activation, gate or softcap goes straight to out (scale is alpha, accumulation beta); any
// other goes to the workspace as floats, as many tokens at a time as it has room for, and a kernel of ours finishes it.
#include "cuda/gemm/library_gemm.h"

#include <map>
#include <mutex>
#include <tuple>

#include "base/check.h"
#include "cuda/gemm/cublaslt.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/library_gemm.cuh"
#include "cuda/gemm/weight_layout.h"

namespace quire::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kScratchBytes = 32 << 20;  // what NVIDIA recommends for Hopper
constexpr int64_t kMaxProductBytes = 64 << 20;
constexpr int64_t kMinProductTokens = 128, kMaxProductTokens = 8192;
constexpr int64_t kLargeM = 2048;

int64_t product_stride(int64_t rows) { return padded_rows(rows); }
int64_t product_row_bytes(int64_t rows) { return product_stride(rows) * int64_t{sizeof(float)}; }

size_t workspace_bytes_for(int64_t rows, int64_t tokens) {
  return static_cast<size_t>(kCounterBytes + kAlignment + kScratchBytes + tokens * product_row_bytes(rows));
}

cublaslt::DataType data_type(DType dtype) {
  if (dtype == DType::bf16) return cublaslt::kReal16BF;
  return dtype == DType::f16 ? cublaslt::kReal16F : cublaslt::kReal32F;
}

// A call that must succeed.
struct Caller {
  const cublaslt::Functions& functions;
  void operator()(cublaslt::Status status, const char* call) const {
    if (status == cublaslt::kSuccess) return;
    const char* const name = functions.get_status_name(status);
    throw DeviceError(str_cat(call, ": ", name != nullptr ? name : "unknown status", " (", status, ")"));
  }
};

struct Plan {
  bool has_algorithm = false;
  cublaslt::Algorithm algorithm = {};
  cublaslt::MatmulDescription* description = nullptr;
  cublaslt::MatrixLayout *weight = nullptr, *tokens = nullptr, *out = nullptr;
};

// Descriptions and plans live as long as the process, as the library does.
class Library {
 public:
  struct Call {
    const PackedWeight* weight;
    DType out_dtype;
    const void* a;
    int64_t a_stride, m, rows;
    void* out;
    int64_t out_stride;
    float alpha, beta;
    void* scratch;
  };

  // False: the library has no algorithm for this weight.
  bool multiply(const cublaslt::Functions& functions, const Call& call, Stream stream) {
    const Caller check{functions};
    const std::lock_guard lock(mutex_);
    const int device = simt::current_device();
    const cublaslt::Handle handle = handle_of(functions, device);
    const Plan& plan = plan_of(functions, device, handle, call);
    if (!plan.has_algorithm) return false;
    set_columns(functions, plan.tokens, call.m, call.a_stride);
    set_columns(functions, plan.out, call.m, call.out_stride);
    check(functions.matmul(handle, plan.description, &call.alpha, call.weight->data, plan.weight, call.a, plan.tokens,
                           &call.beta, call.out, plan.out, call.out, plan.out, &plan.algorithm, call.scratch,
                           static_cast<size_t>(kScratchBytes), stream.handle),
          "cublasLtMatmul");
    return true;
  }

 private:
  using Key = std::tuple<const cublaslt::Functions*, int, int64_t, int64_t, DType, DType>;

  cublaslt::Handle handle_of(const cublaslt::Functions& functions, int device) {
    cublaslt::Handle& handle = handles_[{&functions, device}];
    if (handle == nullptr) Caller{functions}(functions.create(&handle), "cublasLtCreate");
    return handle;
  }

  const Plan& plan_of(const cublaslt::Functions& functions, int device, cublaslt::Handle handle, const Call& call) {
    const Key key{&functions, device, call.rows, call.weight->cols, call.weight->dtype, call.out_dtype};
    const auto found = plans_.find(key);
    if (found != plans_.end()) return found->second;
    return plans_.emplace(key, make_plan(functions, handle, call)).first->second;
  }

  static Plan make_plan(const cublaslt::Functions& functions, cublaslt::Handle handle, const Call& call) {
    const Caller check{functions};
    Plan plan;
    const cublaslt::DataType type = data_type(call.weight->dtype), out_type = data_type(call.out_dtype);
    const auto cols = static_cast<uint64_t>(call.weight->cols), rows = static_cast<uint64_t>(call.rows);
    check(functions.matmul_desc_create(&plan.description, cublaslt::kCompute32F, cublaslt::kReal32F),
          "cublasLtMatmulDescCreate");
    check(functions.matmul_desc_set_attribute(plan.description, cublaslt::kDescriptionTransA, &cublaslt::kTranspose,
                                              sizeof cublaslt::kTranspose),
          "cublasLtMatmulDescSetAttribute");
    const auto layout = [&](cublaslt::MatrixLayout** made, cublaslt::DataType of, uint64_t height, uint64_t width,
                            int64_t stride) {
      check(functions.matrix_layout_create(made, of, height, width, stride), "cublasLtMatrixLayoutCreate");
    };
    // Strides of the question follow the shape alone, so that the answer does not depend on who asked first.
    layout(&plan.weight, type, cols, rows, padded_cols(call.weight->cols));
    layout(&plan.tokens, type, cols, kLargeM, padded_cols(call.weight->cols));
    layout(&plan.out, out_type, rows, kLargeM, padded_rows(call.rows));
    ask(functions, handle, &plan);
    return plan;
  }

  static void ask(const cublaslt::Functions& functions, cublaslt::Handle handle, Plan* plan) {
    const Caller check{functions};
    cublaslt::MatmulPreference* preference = nullptr;
    check(functions.matmul_preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    const auto prefer = [&](cublaslt::PreferenceAttribute attribute, auto value) {
      check(functions.matmul_preference_set_attribute(preference, attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(cublaslt::kPreferenceMaxWorkspaceBytes, uint64_t{kScratchBytes});
    prefer(cublaslt::kPreferenceReductionSchemeMask, cublaslt::kReductionSchemeNone);
    for (int matrix = 0; matrix < 4; ++matrix) prefer(cublaslt::kPreferenceMinAlignmentA + matrix, uint32_t{16});
    cublaslt::HeuristicResult result = {};
    int count = 0;
    const cublaslt::Status status = functions.matmul_algo_get_heuristic(
        handle, plan->description, plan->weight, plan->tokens, plan->out, plan->out, preference, 1, &result, &count);
    functions.matmul_preference_destroy(preference);
    if (status == cublaslt::kNotSupported) return;
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    plan->has_algorithm = count > 0 && result.state == cublaslt::kSuccess;
    plan->algorithm = result.algorithm;
  }

  static void set_columns(const cublaslt::Functions& functions, cublaslt::MatrixLayout* layout, int64_t columns,
                          int64_t stride) {
    const Caller check{functions};
    const auto count = static_cast<uint64_t>(columns);
    check(functions.matrix_layout_set_attribute(layout, cublaslt::kLayoutCols, &count, sizeof count),
          "cublasLtMatrixLayoutSetAttribute");
    check(functions.matrix_layout_set_attribute(layout, cublaslt::kLayoutLd, &stride, sizeof stride),
          "cublasLtMatrixLayoutSetAttribute");
  }

  std::mutex mutex_;
  std::map<std::pair<const cublaslt::Functions*, int>, cublaslt::Handle> handles_;
  std::map<Key, Plan> plans_;
};

Library& library() {
  static Library* const it = new Library;  // never destroyed: the library may be gone by the end of the process
  return *it;
}

uint8_t* scratch_of(const GemmParams& g) {
  auto* const from = static_cast<uint8_t*>(g.workspace) + kCounterBytes;
  return from + round_up(reinterpret_cast<intptr_t>(from), kAlignment) - reinterpret_cast<intptr_t>(from);
}

bool needs_epilogue(const GemmParams& g) {
  const auto group = 16 / static_cast<int64_t>(dtype_bytes(g.out_dtype));
  return g.weight.gated || g.bias != nullptr || g.activation != Activation::none || g.softcap > 0.0f ||
         !starts_at(g.out, 16) || g.out_stride % group != 0;
}

// `product` holds the sums of g.m tokens.
void finish_product(const GemmParams& g, const float* product, Stream stream) {
  FinishArgs args = {};
  args.gemm = gemm_args(g);
  args.product = product;
  args.product_stride = product_stride(g.weight.rows);
  const simt::LaunchConfig config{.grid = dim3(static_cast<uint32_t>(ceil_div(args.gemm.outputs, kFinishThreads)),
                                               static_cast<uint32_t>(ceil_div(g.m, kFinishTokens))),
                                  .block = dim3(kFinishThreads),
                                  .shared_bytes = 0,
                                  .stream = stream,
                                  .pdl = true};
  if (g.weight.dtype == DType::bf16) {
    simt::launch<finish_product_kernel<__nv_bfloat16>>(config, args);
  } else if (g.weight.dtype == DType::f16) {
    simt::launch<finish_product_kernel<__half>>(config, args);
  } else {
    simt::launch<finish_product_kernel<float>>(config, args);
  }
}

// As many tokens at a time as the workspace has room for.
bool multiply_and_finish(const cublaslt::Functions& functions, const GemmParams& g, Stream stream) {
  const int64_t rows = g.weight.rows;
  auto* const product = reinterpret_cast<float*>(scratch_of(g) + kScratchBytes);
  const auto room = static_cast<int64_t>(g.workspace_bytes - workspace_bytes_for(rows, 0)) / product_row_bytes(rows);
  const int64_t most = lesser(room, kMaxProductTokens) / kMinProductTokens * kMinProductTokens;
  for (int64_t begin = 0; begin < g.m; begin += most) {
    GemmParams part = g;
    part.m = lesser(most, g.m - begin);
    part.a = static_cast<const uint8_t*>(g.a) + begin * g.a_stride * static_cast<int64_t>(dtype_bytes(g.weight.dtype));
    part.out = static_cast<uint8_t*>(g.out) + begin * g.out_stride * static_cast<int64_t>(dtype_bytes(g.out_dtype));
    const Library::Call call{.weight = &g.weight,
                             .out_dtype = DType::f32,
                             .a = part.a,
                             .a_stride = g.a_stride,
                             .m = part.m,
                             .rows = rows_in_use(g.weight),
                             .out = product,
                             .out_stride = product_stride(rows),
                             .alpha = 1.0f,
                             .beta = 0.0f,
                             .scratch = scratch_of(g)};
    if (!library().multiply(functions, call, stream)) return false;
    finish_product(part, product, stream);
  }
  return true;
}

}  // namespace

bool library_gemm(const GemmParams& g, Stream stream) {
  const DType dtype = g.weight.dtype;
  if (dtype != DType::bf16 && dtype != DType::f16 && dtype != DType::f32) return false;
  if (!gemm_args(g).a_aligned || g.workspace == nullptr ||
      g.workspace_bytes < least_library_workspace_bytes(g.weight.rows)) {
    return false;
  }
  const cublaslt::Functions* const functions = cublaslt_functions();
  if (functions == nullptr) return false;
  if (needs_epilogue(g)) return multiply_and_finish(*functions, g, stream);
  const Library::Call call{.weight = &g.weight,
                           .out_dtype = g.out_dtype,
                           .a = g.a,
                           .a_stride = g.a_stride,
                           .m = g.m,
                           .rows = g.weight.rows,
                           .out = g.out,
                           .out_stride = g.out_stride,
                           .alpha = g.scale,
                           .beta = g.accumulate ? 1.0f : 0.0f,
                           .scratch = scratch_of(g)};
  return library().multiply(*functions, call, stream);
}

size_t library_workspace_bytes(int64_t rows) {
  const int64_t tokens = lesser(kMaxProductTokens, kMaxProductBytes / product_row_bytes(rows));
  return workspace_bytes_for(rows, greater(kMinProductTokens, tokens / kMinProductTokens * kMinProductTokens));
}

size_t least_library_workspace_bytes(int64_t rows) { return workspace_bytes_for(rows, kMinProductTokens); }

}  // namespace quire::cuda
