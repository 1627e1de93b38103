// Output values as Python objects: read-only attributes, logprobs as numpy arrays over the native buffers.
#include <array>

#include "bind/engine_binding.h"

namespace quire::bind {
namespace {

py::object finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return py::none();
    case FinishReason::stop:
      return py::str("stop");
    case FinishReason::length:
      return py::str("length");
    case FinishReason::abort:
      return py::str("abort");
    case FinishReason::error:
      return py::str("error");
  }
  return py::none();
}

// A view over a buffer that `owner` keeps alive.
template <typename T>
py::array_t<T> view(const std::vector<T>& values, std::vector<py::ssize_t> shape, const py::object& owner) {
  return py::array_t<T>(std::move(shape), values.data(), owner);
}

py::ssize_t num_rows(const LogprobBuffer& buffer) { return static_cast<py::ssize_t>(buffer.sampled_ranks.size()); }

void bind_logprobs(py::module_& module) {
  py::class_<LogprobBuffer>(module, "LogprobBuffer", "Log-probabilities of tokens, one row a token.")
      .def_readonly("width", &LogprobBuffer::width)
      .def_property_readonly(
          "token_ids",
          [](const py::object& self) {
            const auto& buffer = self.cast<const LogprobBuffer&>();
            return view(buffer.token_ids, {num_rows(buffer), buffer.width}, self);
          },
          "int32 [tokens, width]; column 0 is the token itself")
      .def_property_readonly(
          "logprobs",
          [](const py::object& self) {
            const auto& buffer = self.cast<const LogprobBuffer&>();
            return view(buffer.logprobs, {num_rows(buffer), buffer.width}, self);
          },
          "float32 [tokens, width]")
      .def_property_readonly("sampled_ranks", [](const py::object& self) {
        const auto& buffer = self.cast<const LogprobBuffer&>();
        return view(buffer.sampled_ranks, {num_rows(buffer)}, self);
      });
}

// The buffer of `self` that `member` names, None where it was not asked for.
template <typename Owner>
auto logprobs_of(LogprobBuffer Owner::* member) {
  return [member](const py::object& self) -> py::object {
    const LogprobBuffer& buffer = self.cast<const Owner&>().*member;
    if (buffer.width == 0) return py::none();
    return py::cast(&buffer, py::return_value_policy::reference_internal, self);
  };
}

// float32 [rows, width] over it.
template <typename Owner>
auto rows_of(RowBuffer Owner::* member) {
  return [member](const py::object& self) -> py::object {
    const RowBuffer& buffer = self.cast<const Owner&>().*member;
    if (buffer.width == 0) return py::none();
    return view(buffer.values, {static_cast<py::ssize_t>(buffer.values.size()) / buffer.width, buffer.width}, self);
  };
}

}  // namespace

void bind_outputs(py::module_& module) {
  bind_logprobs(module);
  py::class_<Completion>(module, "Completion")
      .def_readonly("index", &Completion::index)
      .def_readonly("is_complete", &Completion::is_complete)
      .def_readonly("token_ids", &Completion::token_ids)
      .def_readonly("cumulative_logprob", &Completion::cumulative_logprob)
      .def_readonly("stop_token_id", &Completion::stop_token_id)
      .def_readonly("stop_string_index", &Completion::stop_string_index)
      .def_property_readonly("finish_reason",
                             [](const Completion& completion) { return finish_reason_name(completion.finish_reason); })
      .def_property_readonly("hidden_states", rows_of(&Completion::hidden_states))
      .def_property_readonly("logits", rows_of(&Completion::logits))
      .def_property_readonly("logprobs", logprobs_of(&Completion::logprobs));
  py::class_<RequestOutput>(module, "Output")
      .def_readonly("request_id", &RequestOutput::request_id)
      .def_property_readonly("completions",
                             [](const py::object& self) {
                               py::list list;
                               for (const Completion& completion : self.cast<const RequestOutput&>().completions) {
                                 list.append(py::cast(&completion, py::return_value_policy::reference_internal, self));
                               }
                               return list;
                             })
      .def_property_readonly("prompt_logprobs", logprobs_of(&RequestOutput::prompt_logprobs))
      .def_property_readonly("prompt_hidden_states", rows_of(&RequestOutput::prompt_hidden_states))
      .def_readonly("num_prompt_tokens", &RequestOutput::num_prompt_tokens)
      .def_readonly("num_cached_tokens", &RequestOutput::num_cached_tokens)
      .def_readonly("num_preemptions", &RequestOutput::num_preemptions)
      .def_readonly("spec_token_acceptance_counts", &RequestOutput::spec_token_acceptance_counts)
      .def_readonly("error", &RequestOutput::error)
      .def_property_readonly("arrival", [](const RequestOutput& output) { return output.times.arrival; })
      .def_property_readonly("first_scheduled",
                             [](const RequestOutput& output) { return output.times.first_scheduled; })
      .def_property_readonly("first_token", [](const RequestOutput& output) { return output.times.first_token; })
      .def_property_readonly("last_token", [](const RequestOutput& output) { return output.times.last_token; })
      .def_property_readonly("finished", [](const RequestOutput& output) { return output.times.finished; });
  py::class_<Delta>(module, "Delta")
      .def_readonly("request_id", &Delta::request_id)
      .def_readonly("index", &Delta::index)
      .def_readonly("token_ids", &Delta::token_ids)
      .def_readonly("cumulative_logprob", &Delta::cumulative_logprob)
      .def_property_readonly("logprobs", logprobs_of(&Delta::logprobs))
      .def_property_readonly("prompt_logprobs", logprobs_of(&Delta::prompt_logprobs))
      .def_property_readonly("finish_reason",
                             [](const Delta& delta) { return finish_reason_name(delta.finish_reason); });
}

py::dict recording_dict(const Recording& recording) {
  py::list spans;
  for (const Span& span : recording.spans) {
    py::dict arguments;
    for (const SpanArgument& argument : std::span(span.arguments).first(static_cast<size_t>(span.num_arguments))) {
      arguments[argument.name] =
          argument.text != nullptr ? py::object(py::str(argument.text)) : py::object(py::float_(argument.number));
    }
    py::dict values;
    values["category"] = span.category;
    values["name"] = span.name;
    values["begin_ns"] = span.begin_ns;
    values["duration_ns"] = span.duration_ns;
    values["on_device"] = span.on_device;
    values["arguments"] = arguments;
    spans.append(values);
  }
  py::dict result;
  result["spans"] = spans;
  result["num_dropped_spans"] = recording.num_dropped_spans;
  return result;
}

// (name, kind, labels, value, bounds, values) each.
py::list metrics_list(const std::vector<Metric>& metrics) {
  constexpr std::array<const char*, 4> kTypes = {"counter", "gauge", "vector", "histogram"};
  py::list list;
  for (const Metric& metric : metrics) {
    py::dict labels;
    if (!metric.label.first.empty()) labels[py::str(metric.label.first)] = metric.label.second;
    list.append(py::make_tuple(metric.name, kTypes[static_cast<size_t>(metric.type)], labels, metric.value,
                               metric.bounds, metric.values));
  }
  return list;
}

py::dict model_info_dict(const ModelInfo& info) {
  py::dict values;
  values["architecture"] = info.architecture;
  values["dtype"] = info.dtype;
  values["quantization"] = info.quantization.empty() ? py::object(py::none()) : py::str(info.quantization);
  values["device"] = info.device;
  values["kernels"] = info.kernels;
  values["max_model_len"] = info.max_model_len;
  values["vocab_size"] = info.vocab_size;
  values["num_layers"] = info.num_layers;
  values["hidden_size"] = info.hidden_size;
  values["num_parameters"] = info.num_parameters;
  values["weight_bytes"] = info.weight_bytes;
  values["offloaded_weight_bytes"] = info.offloaded_weight_bytes;
  values["workspace_bytes"] = info.workspace_bytes;
  values["step_bytes"] = info.step_bytes;
  values["kv_cache_bytes"] = info.kv_cache_bytes;
  values["kv_bytes_per_token"] = info.kv_bytes_per_token;
  values["num_blocks"] = info.num_blocks;
  values["block_size"] = info.block_size;
  values["max_num_seqs"] = info.max_num_seqs;
  values["max_num_batched_tokens"] = info.max_num_batched_tokens;
  values["num_threads"] = info.num_threads;
  values["tensor_parallel_size"] = info.tensor_parallel_size;
  py::list ranks;
  for (const ModelInfo::OfRank& rank : info.ranks) {
    py::dict of_rank;
    of_rank["weight_bytes"] = rank.weight_bytes;
    of_rank["workspace_bytes"] = rank.workspace_bytes;
    of_rank["kv_cache_bytes"] = rank.kv_cache_bytes;
    ranks.append(of_rank);
  }
  values["ranks"] = ranks;
  values["eos_token_ids"] = info.eos_token_ids;
  values["pooling_type"] = info.pooling_type;
  values["pooling_activation"] = info.pooling_activation;
  values["num_outputs"] = info.num_outputs;
  values["num_token_types"] = info.num_token_types;
  values["load_seconds"] = info.load_seconds;
  values["device_seconds"] = info.device_seconds;
  values["plan_seconds"] = info.plan_seconds;
  values["open_seconds"] = info.open_seconds;
  values["memory_seconds"] = info.memory_seconds;
  values["weight_seconds"] = info.weight_seconds;
  return values;
}

}  // namespace quire::bind
