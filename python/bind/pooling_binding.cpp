// The pooling engine of Python; see pooling_binding.h.
#include "bind/pooling_binding.h"

#include <chrono>
#include <stdexcept>
#include <utility>

#include "bind/engine_binding.h"
#include "bind/external_weights.h"
#include "bind/weights_binding.h"

namespace quire::bind {
namespace {

std::vector<PoolingInput> texts_of(const py::list& prompts, const py::object& token_types) {
  std::vector<PoolingInput> texts;
  texts.reserve(prompts.size());
  for (const py::handle& prompt : prompts) texts.push_back({.token_ids = token_ids(prompt)});
  if (token_types.is_none()) return texts;
  const auto types = token_types.cast<py::list>();
  if (types.size() != texts.size()) throw py::value_error("The lengths of prompts and token_types must be the same.");
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!types[i].is_none()) texts[i].token_type_ids = token_ids(types[i]);
  }
  return texts;
}

std::vector<PoolingParams> params_of(const py::object& params, size_t num_texts) {
  if (py::isinstance<py::dict>(params)) return {from_dict<PoolingParams>(params.cast<py::dict>())};
  std::vector<PoolingParams> each;
  for (const py::handle& one : params) each.push_back(from_dict<PoolingParams>(one.cast<py::dict>()));
  if (each.size() != num_texts) throw py::value_error("The lengths of prompts and params must be the same.");
  return each;
}

// The answer as an array over the native buffer, which `self` keeps alive.
py::array_t<float> data_of(const py::object& self) {
  auto& output = self.cast<PoolingOutput&>();
  std::vector<py::ssize_t> shape = {output.num_columns};
  if (output.num_rows > 0 || output.data.empty()) shape = {output.num_rows, output.num_columns};
  return py::array_t<float>(std::move(shape), output.data.data(), self);
}

}  // namespace

PyPoolingEngine::PyPoolingEngine(const std::string& model_dir, const py::dict& options, const py::dict& pooler,
                                 const py::object& weights) {
  const auto engine_options = from_dict<EngineOptions>(options);
  const auto pooler_options = from_dict<PoolerOptions>(pooler);
  if (weights.is_none()) {
    const py::gil_scoped_release release;
    model_ = std::make_unique<PoolingModel>(model_dir, engine_options, pooler_options);
    return;
  }
  const ExternalWeights external = external_weights(weights);
  const py::gil_scoped_release release;
  model_ = std::make_unique<PoolingModel>(model_dir, engine_options, pooler_options, external.tensors);
}

uint64_t PyPoolingEngine::open_call() {
  const std::lock_guard lock(mailbox_->mutex);
  const uint64_t call = mailbox_->next_call++;
  mailbox_->calls.try_emplace(call);
  return call;
}

// Outputs of a call that is gone are dropped.
PoolingCallback PyPoolingEngine::deliver(uint64_t call) const {
  return [mailbox = mailbox_, call](PoolingOutput&& output) {
    const std::lock_guard lock(mailbox->mutex);
    const auto found = mailbox->calls.find(call);
    if (found == mailbox->calls.end()) return;
    if (found->second.pending.erase(output.request_id) == 0) found->second.early.insert(output.request_id);
    found->second.outputs.push_back(std::move(output));
  };
}

std::vector<uint64_t> PyPoolingEngine::submit_many(uint64_t call, const py::list& prompts,
                                                   const py::object& token_types, const py::object& params) {
  std::vector<PoolingInput> texts = texts_of(prompts, token_types);
  const std::vector<PoolingParams> each = params_of(params, texts.size());
  const auto own = [&](size_t i) -> const PoolingParams& { return each[each.size() == 1 ? 0 : i]; };
  return with([&](PoolingModel& model) {
    for (size_t i = 0; i < texts.size(); ++i) {
      try {
        model.check(texts[i], own(i));
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string(error.what()) + " (prompt " + std::to_string(i) + ")");
      }
    }
    std::vector<uint64_t> ids;
    ids.reserve(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      ids.push_back(model.submit(std::move(texts[i]), own(i), deliver(call)));
      const std::lock_guard lock(mailbox_->mutex);
      auto& mail = mailbox_->calls.at(call);
      if (mail.early.erase(ids.back()) == 0) mail.pending.insert(ids.back());
    }
    return ids;
  });
}

bool PyPoolingEngine::fetch(uint64_t call, std::vector<PoolingOutput>& outputs) {
  const std::lock_guard lock(mailbox_->mutex);
  auto& mail = mailbox_->calls.at(call);
  std::swap(outputs, mail.outputs);
  return !outputs.empty();
}

py::list PyPoolingEngine::run(uint64_t call, int max_ms) {
  std::vector<PoolingOutput> outputs;
  with([&](PoolingModel& model) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(max_ms);
    while (!fetch(call, outputs)) {
      if (!model.step() && !fetch(call, outputs)) {
        if (!model.is_sleeping()) return;
        wait_a_little();
      }
      if (!outputs.empty()) return;
      if (std::chrono::steady_clock::now() < deadline) continue;
      fetch(call, outputs);
      return;
    }
  });
  py::list list;
  for (PoolingOutput& output : outputs) list.append(py::cast(std::move(output)));
  return list;
}

void PyPoolingEngine::close_call(uint64_t call) {
  std::unordered_set<uint64_t> pending;
  {
    const std::lock_guard lock(mailbox_->mutex);
    const auto found = mailbox_->calls.find(call);
    if (found == mailbox_->calls.end()) return;
    pending = std::move(found->second.pending);
    mailbox_->calls.erase(found);
  }
  const py::gil_scoped_release release;
  const std::shared_lock lock(model_mutex_);
  if (model_ == nullptr) return;
  for (const uint64_t id : pending) model_->cancel(id);
}

void PyPoolingEngine::sleep(int32_t level, const std::string& mode) {
  with([&](PoolingModel& model) {
    model.sleep(level, sleep_mode(mode));
    return true;
  });
}

bool PyPoolingEngine::wake_up(const std::vector<std::string>& tags) {
  return with([&](PoolingModel& model) { return model.wake_up(tags); });
}

bool PyPoolingEngine::is_sleeping() {
  return with([](PoolingModel& model) { return model.is_sleeping(); });
}

py::dict PyPoolingEngine::stats() {
  const PoolingStats stats = with([](PoolingModel& model) { return model.stats(); });
  py::dict values;
  values["num_running"] = stats.num_running;
  values["num_waiting"] = stats.num_waiting;
  values["num_steps"] = stats.num_steps;
  values["num_finished"] = stats.num_finished;
  values["prompt_tokens"] = stats.prompt_tokens;
  values["step_seconds"] = stats.step_seconds;
  return values;
}

py::list PyPoolingEngine::metrics() {
  return metrics_list(with([](PoolingModel& model) { return model.metrics(); }));
}

void PyPoolingEngine::start_recording() {
  with([](PoolingModel& model) {
    model.start_recording();
    return true;
  });
}

py::dict PyPoolingEngine::stop_recording() {
  return recording_dict(with([](PoolingModel& model) { return model.stop_recording(); }));
}

py::dict PyPoolingEngine::info() {
  return model_info_dict(with([](PoolingModel& model) { return model.info(); }));
}

void PyPoolingEngine::close() {
  InUse::require_none(this);
  const py::gil_scoped_release release;
  const std::unique_lock lock(model_mutex_);
  model_.reset();
}

void bind_pooling(py::module_& module) {
  py::class_<PoolingOutput>(module, "PooledOutput")
      .def_readonly("request_id", &PoolingOutput::request_id)
      .def_property_readonly("data", &data_of, "float32, [columns] or [rows, columns]")
      .def_readonly("num_prompt_tokens", &PoolingOutput::num_prompt_tokens)
      .def_readonly("is_cancelled", &PoolingOutput::is_cancelled)
      .def_readonly("arrival", &PoolingOutput::arrival)
      .def_readonly("first_scheduled", &PoolingOutput::first_scheduled)
      .def_readonly("finished", &PoolingOutput::finished);
  py::class_<PyPoolingEngine> engine(module, "PoolingEngine");
  bind_weights<PyPoolingEngine>(engine);
  bind_weights_of_ranks<PyPoolingEngine>(engine);
  engine
      .def(py::init<const std::string&, const py::dict&, const py::dict&, const py::object&>(), py::arg("model_dir"),
           py::arg("options"), py::arg("pooler"), py::arg("weights") = py::none())
      .def("open_call", &PyPoolingEngine::open_call)
      .def("submit_many", &PyPoolingEngine::submit_many, py::arg("call"), py::arg("prompts"), py::arg("token_types"),
           py::arg("params"))
      .def("run", &PyPoolingEngine::run, py::arg("call"), py::arg("max_ms") = 50)
      .def("close_call", &PyPoolingEngine::close_call, py::arg("call"))
      .def("sleep", &PyPoolingEngine::sleep, py::arg("level") = 1, py::arg("mode") = "abort")
      .def("wake_up", &PyPoolingEngine::wake_up, py::arg("tags") = std::vector<std::string>())
      .def("is_sleeping", &PyPoolingEngine::is_sleeping)
      .def("start_recording", &PyPoolingEngine::start_recording)
      .def("stop_recording", &PyPoolingEngine::stop_recording)
      .def("stats", &PyPoolingEngine::stats)
      .def("metrics", &PyPoolingEngine::metrics)
      .def("info", &PyPoolingEngine::info)
      .def("close", &PyPoolingEngine::close);
  module.def("plan_pooling_model", [](const std::string& model_dir, const py::dict& options, const py::dict& pooler) {
    return model_info_dict(
        plan_pooling_model(model_dir, from_dict<EngineOptions>(options), from_dict<PoolerOptions>(pooler)));
  });
  module.def("pooler_option_fields", &list_fields<PoolerOptions>);
  module.def("pooling_param_fields", &list_fields<PoolingParams>);
}

}  // namespace quire::bind
