// Hooks into the internals for the Python tests; never installed. Linked with the layers themselves.
//
// logits() runs one prompt through a Worker, chunk by chunk, and returns the logits of every position: what the
// parity tests compare with a reference, and what the invariance tests compare bit by bit.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "bind/errors.h"
#include "engine/worker.h"

namespace {

namespace py = pybind11;
using namespace quire;

// One chunk [begin, end) of a single sequence whose block b lies in page num_blocks - 1 - b: scattered on purpose.
Batch chunk_batch(const std::vector<int32_t>& token_ids, int32_t begin, int32_t end, int32_t block_size,
                  int32_t num_blocks) {
  Batch batch;
  const int32_t num_pages = (end + block_size - 1) / block_size;
  const auto page = [&](int32_t block) { return num_blocks - 1 - block; };
  for (int32_t position = begin; position < end; ++position) {
    batch.token_ids.push_back(token_ids[static_cast<size_t>(position)]);
    batch.positions.push_back(position);
    batch.slot_mapping.push_back(page(position / block_size) * block_size + position % block_size);
  }
  batch.query_start = {0, end - begin};
  batch.kv_lens = {end};
  for (int32_t block = 0; block < num_pages; ++block) batch.block_tables.push_back(page(block));
  batch.block_table_stride = num_pages;
  batch.sample_token_rows = {end - begin - 1};
  batch.sample_seqs = {0};
  return batch;
}

std::vector<float> prompt_logits(const std::string& model_dir, const std::string& dtype,
                                 const std::vector<int32_t>& token_ids, const std::string& isa, int num_threads,
                                 int chunk, const std::string& config_overrides) {
  EngineOptions options;
  options.dtype = dtype;
  options.cpu_isa = isa;
  options.num_threads = num_threads;
  options.config_overrides = config_overrides;
  options.max_num_seqs = 1;
  const auto length = static_cast<int32_t>(token_ids.size());
  options.max_num_batched_tokens = length;
  std::unique_ptr<Device> device = make_device(options);
  const EngineConfig config = resolve_engine_config(model_dir, options, *device);
  Worker worker(config, std::move(device));
  worker.load(open_safetensors(model_dir).get());
  std::vector<float> all;
  const int32_t step = chunk > 0 ? chunk : length;
  for (int32_t begin = 0; begin < length; begin += step) {
    const int32_t end = std::min(begin + step, length);
    worker.upload(chunk_batch(token_ids, begin, end, config.scheduler.block_size, config.scheduler.num_blocks));
    worker.forward();
    const std::vector<float> logits = worker.all_logits();
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

py::array_t<float> logits(const std::string& model_dir, const std::string& dtype, const std::vector<int32_t>& token_ids,
                          const std::string& isa, int num_threads, int chunk, const std::string& config_overrides) {
  std::vector<float> values;
  {
    const py::gil_scoped_release release;
    values = prompt_logits(model_dir, dtype, token_ids, isa, num_threads, chunk, config_overrides);
  }
  const auto rows = static_cast<py::ssize_t>(token_ids.size());
  py::array_t<float> array({rows, static_cast<py::ssize_t>(values.size()) / rows});
  std::memcpy(array.mutable_data(), values.data(), values.size() * sizeof(float));
  return array;
}

}  // namespace

PYBIND11_MODULE(_quire_testing, module) {
  quire::bind::register_errors();
  module.def("logits", &logits, py::arg("model_dir"), py::arg("dtype"), py::arg("token_ids"), py::arg("isa") = "",
             py::arg("num_threads") = 0, py::arg("chunk") = 0, py::arg("config_overrides") = "",
             "Logits of every position, float32 [num_tokens, vocab_size].");
}
