// The workers of a model, one a rank, each with a thread of its own, the first with the caller's.
//
// Decides: who owns a rank's worker, configuration and device, and what all kinds of workers do together: loading,
// sleeping, waking, changing weights. Does not know: what a step is; WorkerGroup and PoolingGroup add its verbs. With
// one rank there is no thread, no lock and no allocation: calls go through. Engine thread only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "comm/open_group.h"
#include "engine/rank_threads.h"
#include "engine/shared_checkpoint.h"
#include "model/weight_update.h"

namespace quire {

// Of a model that one rank has for itself.
inline std::vector<std::unique_ptr<Device>> one_device(std::unique_ptr<Device> device) {
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(std::move(device));
  return devices;
}

// W: a worker, with `Config` as its configuration, of which config_of_rank() makes that of a rank.
template <typename W>
class RankGroup {
 public:
  using Config = typename W::Config;

  // Reserves the memory of all ranks. A device a rank, config.options.tensor_parallel_size of them. `config` is kept by
  // reference.
  RankGroup(const Config& config, std::vector<std::unique_ptr<Device>> devices) {
    QUIRE_CHECK(std::ssize(devices) == config.options.tensor_parallel_size, devices.size(), " devices for ",
                config.options.tensor_parallel_size, " ranks");
    if (devices.size() == 1) {
      workers_.push_back(std::make_shared<W>(config, std::move(devices.front())));
    } else {
      make_ranks(config, std::move(devices));
    }
  }
  ~RankGroup() {
    if (!threads_.has_value()) return;
    // Nobody's memory goes while another rank's stream still reads it.
    if (!threads_->is_hung()) {
      try {
        each("abandon", [](W& worker) { worker.abandon(); });
      } catch (const std::exception&) {  // it goes anyway
      }
    }
    communicators_->abort("the engine is gone");
  }
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  // Calls verb(W&) for every rank, on its thread. `name` is for messages.
  template <typename Verb>
  void each(const char* name, const Verb& verb) {
    if (!threads_.has_value()) return verb(first());
    const auto call = [](const void* it, void* worker) { (*static_cast<const Verb*>(it))(*static_cast<W*>(worker)); };
    threads_->run(name, call, &verb, &first());
  }

  // The rank that has all results.
  W& first() { return *workers_.front(); }
  const W& first() const { return *workers_.front(); }
  int32_t num_ranks() const { return static_cast<int32_t>(workers_.size()); }
  // Throw InvalidArgument: there is no such rank; parts are not one a rank.
  void require_rank(int64_t rank) const {
    require(rank >= 0 && rank < num_ranks(), str_cat("there is no rank ", rank, " of ", num_ranks()));
  }
  void require_part_a_rank(size_t num_parts) const {
    require(num_parts == workers_.size(),
            str_cat("a list of parts a rank is needed: ", num_ranks(), ", got ", num_parts));
  }
  // false: a device is broken, or a rank did not come back.
  bool usable() const {
    if (threads_.has_value() && threads_->is_hung()) return false;
    return std::ranges::all_of(workers_, [](const auto& worker) { return worker->device().usable(); });
  }

  // What was put on streams and not fetched is forgotten.
  void abandon() {
    if (threads_.has_value() && threads_->is_hung()) return first().abandon();
    each("abandon", [](W& worker) { worker.abandon(); });
  }

  bool has_weights() const { return first().has_weights(); }
  void weights_replaced() {
    each("weights_replaced", [](W& worker) { worker.weights_replaced(); });
  }
  // Those of all ranks, to be changed and read.
  WeightRanks weights() {
    WeightRanks ranks;
    for (const auto& worker : workers_) ranks.all.push_back(worker->weight_access());
    ranks.each = [this](const std::function<void(size_t)>& work) {
      each("a change of weights", [&](W& worker) { work(static_cast<size_t>(worker.rank())); });
    };
    return ranks;
  }
  uint64_t weights_version() const { return first().weights_version(); }
  bool weights_incomplete() const { return first().weights_incomplete(); }
  void set_recorder(Recorder* recorder) { first().set_recorder(recorder); }

  void sleep(bool weights, bool cache, bool keep_weights) {
    each("sleep", [&](W& worker) { worker.sleep(weights, cache, keep_weights); });
  }
  // All ranks or, when it throws, none.
  void wake(bool weights, bool cache) {
    std::vector<std::atomic<bool>> is_awake(static_cast<size_t>(num_ranks()));
    try {
      each("wake_up", [&](W& worker) {
        worker.wake(weights, cache);
        is_awake[static_cast<size_t>(worker.rank())] = true;
      });
    } catch (...) {
      if (threads_.has_value() && !threads_->is_hung()) {
        each("sleep", [&](W& worker) {
          if (is_awake[static_cast<size_t>(worker.rank())]) worker.sleep(weights, cache, true);
        });
      }
      throw;
    }
  }

 protected:
  // load(W&, const Checkpoint*) for every rank; all of them read `checkpoint` (null: there is none).
  template <typename Load>
  void load_all(const Checkpoint* checkpoint, const Load& load) {
    if (!threads_.has_value()) return load(first(), checkpoint);
    std::optional<SharedCheckpoint> shared;
    if (checkpoint != nullptr) shared.emplace(*checkpoint, num_ranks());
    each("load", [&](W& worker) { load(worker, shared.has_value() ? &*shared : nullptr); });
  }

 private:
  // Destroyed in this order reversed: a worker names its configuration and the communicators.
  struct Rank {
    std::shared_ptr<CommunicatorGroup> communicators;
    Config config;
    std::optional<W> worker;
  };

  void make_ranks(const Config& config, std::vector<std::unique_ptr<Device>> devices) {
    const double time_limit = config.options.collective_timeout;
    communicators_ = open_communicators(devices, time_limit, config.options.disable_custom_all_reduce);
    threads_.emplace(communicators_, time_limit);
    for (size_t rank = 0; rank < devices.size(); ++rank) {
      const auto number = static_cast<int32_t>(rank);
      const auto held = std::make_shared<Rank>();
      held->communicators = communicators_;
      held->config = config_of_rank(config, number);
      held->worker.emplace(held->config, std::move(devices[rank]), &communicators_->rank(number));
      workers_.push_back(std::shared_ptr<W>(held, &*held->worker));
      if (rank > 0) threads_->add(workers_.back());
    }
  }

  std::shared_ptr<CommunicatorGroup> communicators_;
  std::vector<std::shared_ptr<W>> workers_;
  std::optional<RankThreads> threads_;
};

}  // namespace quire
