// The queue a launcher puts its work on. An opaque handle, so that Params headers know no backend.
#pragma once

namespace quire {

// cpu: handle is the ThreadPool* that runs the loops. cuda: a cudaStream_t.
struct Stream {
  void* handle = nullptr;
};

}  // namespace quire
