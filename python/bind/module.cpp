// The Python module _quire: the public API of libquire, nothing else.
#include "bind/engine_binding.h"
#include "bind/errors.h"
#include "bind/pooling_binding.h"
#include "bind/weights_binding.h"

namespace {

namespace py = pybind11;
using quire::bind::PyEngine;

// The callback is dropped without the interpreter's help at exit, so it is never destroyed.
void set_log_callback(const py::object& callback) {
  if (callback.is_none()) {
    quire::set_log_callback({});
    return;
  }
  auto* kept = new py::object(callback);
  quire::set_log_callback([kept](int level, const std::string& message) {
    const py::gil_scoped_acquire acquire;
    (*kept)(level, message);
  });
}

py::dict describe_plugin(const std::string& backend) {
  quire::PluginInfo info;
  {
    const py::gil_scoped_release release;  // libraries are opened, and log lines come back
    info = quire::describe_plugin(backend);
  }
  py::dict result;
  result["file"] = info.file;
  result["problem"] = info.problem;
  result["num_devices"] = info.num_devices;
  result["libraries"] = info.libraries;
  return result;
}

py::dict measure_machine(const std::string& cpu_isa, int32_t num_threads, int64_t read_bytes) {
  quire::MachineLimits limits;
  {
    const py::gil_scoped_release release;
    limits = quire::measure_machine(cpu_isa, num_threads, read_bytes);
  }
  py::dict result;
  result["kernels"] = limits.kernels;
  result["num_threads"] = limits.num_threads;
  result["read_bytes"] = limits.read_bytes;
  result["read_bytes_per_second"] = limits.read_bytes_per_second;
  result["bf16_flops"] = limits.bf16_flops;
  result["f32_flops"] = limits.f32_flops;
  return result;
}

}  // namespace

PYBIND11_MODULE(_quire, module) {
  module.doc() = "The C++ core of quire.";
  quire::bind::register_errors();
  quire::bind::bind_outputs(module);
  quire::bind::bind_pooling(module);
  py::class_<PyEngine> engine(module, "Engine");
  quire::bind::bind_weights<PyEngine>(engine);
  quire::bind::bind_weights_of_ranks<PyEngine>(engine);
  engine
      .def(py::init<const std::string&, const py::dict&, const py::object&>(), py::arg("model_dir"), py::arg("options"),
           py::arg("weights") = py::none())
      .def("submit", &PyEngine::submit, py::arg("prompt_token_ids"), py::arg("params"), py::arg("stream") = false,
           py::arg("priority") = 0)
      .def("submit_many", &PyEngine::submit_many, py::arg("prompts"), py::arg("params"),
           py::arg("priorities") = std::vector<int32_t>())
      .def("submit_beam_search", &PyEngine::submit_beam_search, py::arg("prompts"), py::arg("params"))
      .def("run", &PyEngine::run, py::arg("request_ids"), py::arg("max_ms") = 50)
      .def("cancel", &PyEngine::cancel, py::arg("request_id"))
      .def("set_vocabulary", &PyEngine::set_vocabulary, py::arg("token_bytes"))
      .def("reset_prefix_cache", &PyEngine::reset_prefix_cache)
      .def("sleep", &PyEngine::sleep, py::arg("level") = 1, py::arg("mode") = "abort")
      .def("wake_up", &PyEngine::wake_up, py::arg("tags") = std::vector<std::string>())
      .def("is_sleeping", &PyEngine::is_sleeping)
      .def("release_kv_cache_memory", &PyEngine::release_kv_cache_memory)
      .def("start_recording", &PyEngine::start_recording)
      .def("stop_recording", &PyEngine::stop_recording)
      .def("stats", &PyEngine::stats)
      .def("metrics", &PyEngine::metrics)
      .def("info", &PyEngine::info)
      .def("close", &PyEngine::close);

  module.def("plan_model", [](const std::string& model_dir, const py::dict& options) {
    return quire::bind::model_info_dict(
        quire::plan_model(model_dir, quire::bind::from_dict<quire::EngineOptions>(options)));
  });
  module.def("validate_sampling_params",
             [](const py::dict& params) { quire::validate(quire::bind::from_dict<quire::SamplingParams>(params)); });
  module.def("sampling_param_fields", &quire::bind::list_fields<quire::SamplingParams>);
  module.def("beam_search_param_fields", &quire::bind::list_fields<quire::BeamSearchParams>);
  module.def("engine_option_fields", &quire::bind::list_fields<quire::EngineOptions>);
  module.def("set_library_folders", &quire::set_library_folders, py::arg("folders"));
  module.def("find_plugin", &quire::find_plugin, py::arg("backend"));
  module.def("describe_plugin", &describe_plugin, py::arg("backend"));
  module.def("measure_machine", &measure_machine, py::arg("cpu_isa") = "", py::arg("num_threads") = 0,
             py::arg("read_bytes") = int64_t{512} << 20);
  module.def("problem_of_packed_weights", &quire::problem_of_packed_weights, py::arg("file"));
  module.def("supported_architectures", &quire::supported_architectures);
  module.def("supported_pooling_architectures", &quire::supported_pooling_architectures);
  module.def("version", &quire::version);
  module.def("set_log_callback", &set_log_callback);
}
