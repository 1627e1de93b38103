// Capture and replay: what streams are told between begin and end is kept and put on a stream again as one piece.
//
// A replay is as late as the streams are: the work of other streams than the origin's is done when the capture made
// somebody wait for it.
#include <algorithm>
#include <utility>

#include "cuda/simt/cudart_emu/state.h"

namespace quire::cudart_emu {
namespace {

// Turns the waits of a capture from lanes to their numbers.
void number_waits(const std::vector<std::shared_ptr<Lane>>& lanes) {
  for (const auto& lane : lanes) {
    for (Op& op : lane->ops) {
      if (!op.wait.lane) continue;
      op.lane_of_capture = std::find(lanes.begin(), lanes.end(), op.wait.lane) - lanes.begin();
      op.wait.lane = nullptr;
    }
  }
}

// Fresh lanes with the work of a graph, whose waits point from one to the other until they are done.
std::vector<std::shared_ptr<Lane>> unrolled(const std::vector<std::shared_ptr<Lane>>& lanes) {
  std::vector<std::shared_ptr<Lane>> fresh;
  for (const auto& lane : lanes) fresh.push_back(std::make_shared<Lane>(*lane));
  for (const auto& lane : fresh) {
    for (Op& op : lane->ops) {
      if (op.lane_of_capture >= 0) op.wait.lane = fresh[static_cast<size_t>(op.lane_of_capture)];
    }
  }
  return fresh;
}

}  // namespace
}  // namespace quire::cudart_emu

using namespace quire::cudart_emu;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const std::lock_guard lock(state().mutex);
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (stream == nullptr || !is_known(stream)) return set_error(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  const auto capture = std::make_shared<Capture>();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  join(stream, capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(state().mutex);
  *graph = nullptr;
  if (stream == nullptr || !is_known(stream) || !stream->capture) return set_error(cudaErrorInvalidValue);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream) return invalidate(*capture, cudaErrorStreamCaptureUnmatched);
  capture->is_over = true;
  number_waits(capture->lanes);
  for (const cudaStream_t member : capture->streams) {
    if (!is_known(member)) continue;
    member->capture = nullptr;
    member->captured = nullptr;
  }
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (capture->is_invalid) return set_error(cudaErrorStreamCaptureInvalidated);
  const std::vector<std::shared_ptr<Lane>> trial = unrolled(capture->lanes);
  advance(*trial[0], trial[0]->end(), false);
  bool is_joined = true;
  for (const auto& lane : trial) {
    is_joined = is_joined && lane->ops.empty();
    lane->ops.clear();
  }
  if (!is_joined) return set_error(cudaErrorStreamCaptureUnjoined);
  *graph = *state().graphs.insert(new CUgraph_st{capture->lanes}).first;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard lock(state().mutex);
  if (!is_known(stream)) return set_error(cudaErrorInvalidResourceHandle);
  const Capture* const capture = stream ? stream->capture.get() : nullptr;
  *status = !capture              ? cudaStreamCaptureStatusNone
            : capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const std::lock_guard lock(state().mutex);
  *exec = nullptr;
  if (state().sticky != cudaSuccess) return set_error(state().sticky);
  if (!state().graphs.count(graph)) return set_error(cudaErrorInvalidValue);
  if (allocation_fails()) return set_error(cudaErrorMemoryAllocation);
  *exec = *state().execs.insert(new CUgraphExec_st{std::make_shared<CUgraph_st>(*graph)}).first;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  if (s.sticky != cudaSuccess) return set_error(s.sticky);
  if (!is_known(stream) || !s.execs.count(exec)) return set_error(cudaErrorInvalidResourceHandle);
  if (stream && stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
  if (s.launches_to_fault > 0 && --s.launches_to_fault == 0) return set_error(cudaErrorLaunchOutOfResources);
  return push(stream, [graph = exec->graph] {
    const std::vector<std::shared_ptr<Lane>> lanes = unrolled(graph->lanes);
    advance(*lanes[0], lanes[0]->end());
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard lock(state().mutex);
  if (!state().graphs.erase(graph)) return set_error(cudaErrorInvalidValue);
  delete graph;
  return set_error(state().sticky);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const std::lock_guard lock(state().mutex);
  if (!state().execs.erase(exec)) return set_error(cudaErrorInvalidValue);
  delete exec;
  return set_error(state().sticky);
}
