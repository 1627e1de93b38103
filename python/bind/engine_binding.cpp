// The engine of Python; see engine_binding.h.
#include "bind/engine_binding.h"

#include <chrono>
#include <stdexcept>
#include <thread>
#include <utility>

#include "bind/external_weights.h"
#include "bind/hooks_binding.h"

namespace quire::bind {
PyEngine::PyEngine(const std::string& model_dir, const py::dict& options, const py::object& weights) {
  const auto engine_options = from_dict<EngineOptions>(options);
  if (weights.is_none()) {
    const py::gil_scoped_release release;
    llm_ = std::make_unique<LLM>(model_dir, engine_options);
    return;
  }
  const ExternalWeights external = external_weights(weights);
  const py::gil_scoped_release release;
  llm_ = std::make_unique<LLM>(model_dir, engine_options, external.tensors);
}

DeltaCallback PyEngine::deliver() const {
  return [mailbox = mailbox_](const Delta& delta) {
    const std::lock_guard lock(mailbox->mutex);
    Mail& mail = mailbox->mail[delta.request_id];
    if (delta.finished != nullptr) {
      mail.output = std::make_unique<RequestOutput>(*delta.finished);
    } else {
      mail.deltas.push_back(delta);
    }
  };
}

uint64_t PyEngine::post(LLM& llm, std::vector<int32_t> prompt, const SamplingParams& params, bool stream,
                        int32_t priority) {
  return llm.submit(std::move(prompt), params, deliver(), stream ? Notify::every_token : Notify::finished, priority);
}

uint64_t PyEngine::submit(const py::object& prompt, const py::dict& params, bool stream, int32_t priority) {
  std::vector<int32_t> ids = token_ids(prompt);
  const auto sampling = sampling_params(params);
  return with([&](LLM& llm) { return post(llm, std::move(ids), sampling, stream, priority); });
}

std::vector<uint64_t> PyEngine::submit_many(const py::list& prompts, const py::object& params,
                                            const std::vector<int32_t>& priorities) {
  std::vector<std::vector<int32_t>> all_ids;
  all_ids.reserve(prompts.size());
  for (const py::handle& prompt : prompts) all_ids.push_back(token_ids(prompt));
  std::vector<SamplingParams> sampling;
  if (py::isinstance<py::dict>(params)) {
    sampling.push_back(sampling_params(params.cast<py::dict>()));
  } else {
    for (const py::handle& one : params) sampling.push_back(sampling_params(one.cast<py::dict>()));
    if (sampling.size() != all_ids.size()) throw py::value_error("The lengths of prompts and params must be the same.");
  }
  if (!priorities.empty() && priorities.size() != all_ids.size()) {
    throw py::value_error("The lengths of prompts and priorities must be the same.");
  }
  const auto priority_of = [&](size_t i) { return priorities.empty() ? 0 : priorities[i]; };
  const auto params_of = [&](size_t i) -> const SamplingParams& { return sampling[sampling.size() == 1 ? 0 : i]; };
  return with([&](LLM& llm) {
    for (size_t i = 0; i < all_ids.size(); ++i) {
      try {
        llm.check(all_ids[i], params_of(i), priority_of(i));
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string(error.what()) + " (prompt " + std::to_string(i) + ")");
      }
    }
    std::vector<uint64_t> ids;
    ids.reserve(all_ids.size());
    try {
      for (size_t i = 0; i < all_ids.size(); ++i) {
        ids.push_back(post(llm, std::move(all_ids[i]), params_of(i), false, priority_of(i)));
      }
    } catch (...) {
      take_back(llm, ids);
      throw;
    }
    return ids;
  });
}

void PyEngine::take_back(LLM& llm, const std::vector<uint64_t>& ids) const {
  for (const uint64_t id : ids) {
    llm.cancel(id);
    const std::lock_guard lock(mailbox_->mutex);
    mailbox_->mail.erase(id);
  }
}

std::vector<uint64_t> PyEngine::submit_beam_search(const py::list& prompts, const py::dict& params) {
  std::vector<std::vector<int32_t>> all_ids;
  all_ids.reserve(prompts.size());
  for (const py::handle& prompt : prompts) all_ids.push_back(token_ids(prompt));
  const BeamSearchParams search = beam_search_params(params);
  return with([&](LLM& llm) {
    std::vector<uint64_t> ids;
    ids.reserve(all_ids.size());
    try {
      for (std::vector<int32_t>& prompt : all_ids) {
        ids.push_back(llm.submit_beam_search(std::move(prompt), search, deliver()));
      }
    } catch (...) {
      take_back(llm, ids);
      throw;
    }
    return ids;
  });
}

bool PyEngine::fetch(const std::vector<uint64_t>& request_ids, std::vector<RequestOutput>& outputs,
                     std::vector<Delta>& deltas) {
  const std::lock_guard lock(mailbox_->mutex);
  if (mailbox_->mail.empty()) return false;
  for (const uint64_t id : request_ids) {
    const auto found = mailbox_->mail.find(id);
    if (found == mailbox_->mail.end()) continue;
    std::ranges::move(found->second.deltas, std::back_inserter(deltas));
    if (found->second.output != nullptr) outputs.push_back(std::move(*found->second.output));
    mailbox_->mail.erase(found);
  }
  return !outputs.empty() || !deltas.empty();
}

py::tuple PyEngine::run(const std::vector<uint64_t>& request_ids, int max_ms) {
  std::vector<RequestOutput> outputs;
  std::vector<Delta> deltas;
  with([&](LLM& llm) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(max_ms);
    while (!fetch(request_ids, outputs, deltas)) {
      if (!llm.step() && !fetch(request_ids, outputs, deltas)) {
        if (!request_ids.empty()) wait_a_little();  // another thread put it to sleep, or took its weights
        if (!llm.is_sleeping()) return;
      }
      if (std::chrono::steady_clock::now() >= deadline) {
        fetch(request_ids, outputs, deltas);
        return;
      }
    }
  });
  throw_interrupt();
  py::list output_list;
  for (RequestOutput& output : outputs) output_list.append(py::cast(std::move(output)));
  py::list delta_list;
  for (Delta& delta : deltas) delta_list.append(py::cast(std::move(delta)));
  return py::make_tuple(output_list, delta_list);
}

bool PyEngine::cancel(uint64_t request_id) {
  return with([&](LLM& llm) { return llm.cancel(request_id); });
}

void PyEngine::set_vocabulary(std::vector<std::string> token_bytes) {
  with([&](LLM& llm) {
    llm.set_vocabulary(std::move(token_bytes));
    return true;
  });
}

bool PyEngine::reset_prefix_cache() {
  return with([](LLM& llm) { return llm.reset_prefix_cache(); });
}

SleepMode sleep_mode(const std::string& mode) {
  if (mode == "abort") return SleepMode::abort;
  if (mode == "wait") return SleepMode::wait;
  if (mode == "keep") return SleepMode::keep;
  throw std::invalid_argument("the sleep mode must be \"abort\", \"wait\" or \"keep\", got \"" + mode + "\"");
}

void wait_a_little() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

void PyEngine::sleep(int32_t level, const std::string& mode) {
  with([&](LLM& llm) {
    llm.sleep(level, sleep_mode(mode));
    return true;
  });
  throw_interrupt();
}

bool PyEngine::wake_up(const std::vector<std::string>& tags) {
  return with([&](LLM& llm) { return llm.wake_up(tags); });
}

bool PyEngine::is_sleeping() {
  return with([](LLM& llm) { return llm.is_sleeping(); });
}

void PyEngine::release_kv_cache_memory() {
  with([](LLM& llm) {
    llm.release_kv_cache_memory();
    return true;
  });
}

void PyEngine::start_recording() {
  with([](LLM& llm) {
    llm.start_recording();
    return true;
  });
}

py::dict PyEngine::stop_recording() {
  return recording_dict(with([](LLM& llm) { return llm.stop_recording(); }));
}

py::dict PyEngine::stats() {
  const Stats stats = with([](LLM& llm) { return llm.stats(); });
  py::dict values;
  values["num_running"] = stats.num_running;
  values["num_waiting"] = stats.num_waiting;
  values["num_blocks"] = stats.num_blocks;
  values["num_free_blocks"] = stats.num_free_blocks;
  values["num_cached_blocks"] = stats.num_cached_blocks;
  values["num_steps"] = stats.num_steps;
  values["num_preemptions"] = stats.num_preemptions;
  values["prompt_tokens"] = stats.prompt_tokens;
  values["cached_prompt_tokens"] = stats.cached_prompt_tokens;
  values["generated_tokens"] = stats.generated_tokens;
  values["prefix_cache_queries"] = stats.prefix_cache_queries;
  values["prefix_cache_hits"] = stats.prefix_cache_hits;
  values["num_graphs"] = stats.num_graphs;
  values["num_draft_tokens"] = stats.num_draft_tokens;
  values["num_accepted_tokens"] = stats.num_accepted_tokens;
  values["step_seconds"] = stats.step_seconds;
  values["host_seconds"] = stats.host_seconds;
  values["capture_seconds"] = stats.capture_seconds;
  return values;
}

py::list PyEngine::metrics() {
  return metrics_list(with([](LLM& llm) { return llm.metrics(); }));
}

py::dict PyEngine::info() {
  return model_info_dict(with([](LLM& llm) { return llm.info(); }));
}

void PyEngine::close() {
  InUse::require_none(this);
  const py::gil_scoped_release release;
  const std::unique_lock lock(llm_mutex_);
  llm_.reset();
}

}  // namespace quire::bind
