// Streams, events and graphs of the emulated runtime: that they are late, in order, and no more ordered than asked.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include "base/check.h"
#include "cuda/simt/simt.h"
#include "cudart_emu/machine.h"

namespace quire {
namespace {

struct AddArgs {
  int32_t* values;
  int32_t addend;
};
__global__ void add_kernel(const AddArgs p) { p.values[threadIdx.x] += p.addend; }

struct WrongArgs {
  int32_t id;
};
__global__ void wrong_kernel(const WrongArgs p) { simt::named_barrier_sync(p.id, 64); }

void add(int32_t* values, int32_t addend, cudaStream_t stream, unsigned threads = 32) {
  simt::launch<add_kernel>({.grid = dim3(1), .block = dim3(threads), .stream = {stream}}, AddArgs{values, addend});
}

class Streams : public OnEmulatedRuntime {};

TEST_F(Streams, ReadHostMemoryWhenTheyAreWaitedFor) {
  const TestStream stream;
  const Pinned<int32_t> from(32), to(32);
  std::fill_n(from.data(), 32, 1);
  std::fill_n(to.data(), 32, 0);
  ASSERT_EQ(copy(to.data(), from.data(), 128, stream), cudaSuccess);
  from[3] = 2;  // too early
  EXPECT_EQ(to[0], 0);
  EXPECT_EQ(cudart_emu::num_queued(), 1);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(to[0], 1);
  EXPECT_EQ(to[3], 2);
  EXPECT_EQ(cudart_emu::num_queued(), 0);
}

TEST_F(Streams, RunKernelsWithTheArgumentsOfTheLaunch) {
  const TestStream stream;
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 10);
  {
    auto args = std::make_unique<AddArgs>(AddArgs{values.data(), 5});
    simt::launch<add_kernel>({.grid = dim3(1), .block = dim3(32), .stream = {static_cast<cudaStream_t>(stream)}},
                             *args);
    args->addend = 100;
  }
  EXPECT_EQ(values[0], 10);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(values.values(), std::vector<int32_t>(32, 15));
}

TEST_F(Streams, WithoutAStreamKernelsRunAtOnce) {
  std::vector<int32_t> values(32, 1);
  const TestStream stream;
  add(values.data(), 1, nullptr);
  EXPECT_EQ(values, std::vector<int32_t>(32, 2));
}

TEST_F(Streams, AreOrderedByEventsAlone) {
  for (const bool waits : {false, true}) {
    const TestStream first, second;
    const TestEvent written;
    const Pinned<int32_t> values(32), seen(32);
    std::fill_n(values.data(), 32, 0);
    add(values.data(), 7, first);
    ASSERT_EQ(cudaEventRecord(written, first), cudaSuccess);
    if (waits) {
      ASSERT_EQ(cudaStreamWaitEvent(second, written), cudaSuccess);
    }
    ASSERT_EQ(copy(seen.data(), values.data(), 128, second), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
    EXPECT_EQ(seen[0], waits ? 7 : 0);
    EXPECT_EQ(cudart_emu::num_queued(), waits ? 0 : 1);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
}

TEST_F(Streams, EventsWaitForWhatCameBeforeThemAndNoMore) {
  const TestStream stream;
  const TestEvent event;
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 0);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess) << "never recorded";
  add(values.data(), 1, stream);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  add(values.data(), 10, stream);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(values[31], 1);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(values[31], 11);
}

// Times are those of the work, not of the calls that queue it.
TEST_F(Streams, EventsTellWhenTheirWorkWasDone) {
  const TestStream stream;
  const TestEvent begin(cudaEventDefault), middle(cudaEventDefault), end(cudaEventDefault);
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 0);
  float first = -1.0f, second = -1.0f, whole = -1.0f;
  ASSERT_EQ(cudaEventRecord(begin, stream), cudaSuccess);
  add(values.data(), 1, stream);
  ASSERT_EQ(cudaEventRecord(middle, stream), cudaSuccess);
  ASSERT_EQ(cudart_emu::enqueue(stream, [] { std::this_thread::sleep_for(std::chrono::milliseconds(3)); }),
            cudaSuccess);
  ASSERT_EQ(cudaEventRecord(end, stream), cudaSuccess);
  EXPECT_EQ(cudart_emu::num_queued(), 2) << "a look at the clock is no work";
  EXPECT_EQ(cudaEventElapsedTime(&whole, begin, end), cudaErrorNotReady);
  ASSERT_EQ(cudaEventSynchronize(middle), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&first, begin, middle), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&whole, begin, end), cudaErrorNotReady);
  EXPECT_EQ(whole, -1.0f);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  ASSERT_EQ(cudaEventElapsedTime(&second, middle, end), cudaSuccess);
  ASSERT_EQ(cudaEventElapsedTime(&whole, begin, end), cudaSuccess);
  EXPECT_GE(first, 0.0f);
  EXPECT_GE(second, 3.0f);  // slept
  EXPECT_NEAR(first + second, whole, 1e-3f * whole);
  ASSERT_EQ(cudaEventElapsedTime(&second, end, begin), cudaSuccess);
  EXPECT_EQ(second, -whole);
}

TEST_F(Streams, EventsWithoutTimesAreRefused) {
  const TestStream stream;
  const TestEvent timed(cudaEventDefault), plain, never(cudaEventDefault);
  float elapsed = 0.0f;
  ASSERT_EQ(cudaEventRecord(timed, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(plain, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&elapsed, timed, timed), cudaSuccess);
  EXPECT_EQ(elapsed, 0.0f);
  EXPECT_EQ(cudaEventElapsedTime(&elapsed, timed, plain), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventElapsedTime(&elapsed, never, timed), cudaErrorInvalidResourceHandle);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(timed, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&elapsed, timed, timed), cudaErrorInvalidResourceHandle) << "part of a capture";
}

// As on a GPU: the wait is for the record before it, whatever the event is used for later.
TEST_F(Streams, WaitsKeepTheRecordTheyWereGiven) {
  const TestStream first, second;
  const TestEvent event;
  const Pinned<int32_t> values(32), other(32);
  std::fill_n(values.data(), 32, 0);
  std::fill_n(other.data(), 32, 0);
  add(values.data(), 1, first);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(second, event), cudaSuccess);
  add(values.data(), 10, first);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  add(other.data(), 1, second);
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(values[0], 1);
  EXPECT_EQ(other[0], 1);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(Streams, AskingAgainAndAgainComesToAnEnd) {
  const TestStream stream;
  const TestEvent event;
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 0);
  for (int i = 0; i < 5; ++i) add(values.data(), 1, stream);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  int asked = 0;
  while (cudaEventQuery(event) == cudaErrorNotReady) ++asked;
  EXPECT_EQ(asked, 5);
  EXPECT_EQ(values[0], 5);
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
}

TEST_F(Streams, OfSeveralThreadsDoNotMeet) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([] {
      const TestStream stream;
      const Pinned<int32_t> values(32);
      std::fill_n(values.data(), 32, 0);
      for (int i = 0; i < 40; ++i) {
        add(values.data(), 1, stream);
        if (i % 4 == 0) {
          EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        }
      }
      EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      EXPECT_EQ(values.values(), std::vector<int32_t>(32, 40));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(Streams, AKernelThatBreaksARuleBreaksTheDevice) {
  const TestStream stream;
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 0);
  simt::launch<wrong_kernel>({.grid = dim3(1), .block = dim3(32), .stream = {static_cast<cudaStream_t>(stream)}},
                             WrongArgs{99});
  add(values.data(), 1, stream);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
  EXPECT_EQ(values[0], 0) << "what comes after the failure is not done";
  const std::string text = cudaGetErrorString(cudaErrorLaunchFailure);
  EXPECT_NE(text.find("wrong_kernel"), std::string::npos) << text;
  EXPECT_NE(text.find("stream_test.cpp:"), std::string::npos) << text;
  void* pointer = nullptr;
  EXPECT_EQ(cudaHostAlloc(&pointer, 64, 0), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaMemsetAsync(values.data(), 0, 4, stream), cudaErrorLaunchFailure);
  EXPECT_THROW(add(values.data(), 1, stream), DeviceError);
  cudart_emu::reset();
  add(values.data(), 1, stream);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(values[0], 1);
}

TEST_F(Streams, FaultsComeWhenTheyWereAskedFor) {
  const TestStream stream;
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 0);
  cudart_emu::fail_launch_after(2);
  add(values.data(), 1, stream);
  EXPECT_THROW(add(values.data(), 10, stream), DeviceError);
  EXPECT_FALSE(cudart_emu::faults_pending());
  add(values.data(), 100, stream);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(values[0], 101);
  cudart_emu::fail_kernel_after(1);
  add(values.data(), 1, stream);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
}

class Graphs : public OnEmulatedRuntime {
 protected:
  static cudaGraphExec_t finish(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    return exec;
  }
  static void begin(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    ASSERT_EQ(cudaStreamBeginCapture(stream, mode), cudaSuccess);
  }
  static cudaError_t end(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(stream, &graph);
    EXPECT_EQ(graph, nullptr);
    return error;
  }
};

TEST_F(Graphs, AreQueuedAndOutliveTheirHandle) {
  const TestStream stream;
  const Pinned<int32_t> values(32);
  std::fill_n(values.data(), 32, 0);
  begin(stream);
  add(values.data(), 1, stream);
  add(values.data(), 2, stream);
  const cudaGraphExec_t exec = finish(stream);
  EXPECT_EQ(cudart_emu::num_queued(), 0);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
  EXPECT_EQ(values[0], 0);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(values[0], 9);
}

// The fork that the origin joins late is replayed late: a missing wait in a capture shows as well.
TEST_F(Graphs, ReplayOtherStreamsAsLateAsTheCaptureAllows) {
  const TestStream origin, other;
  const TestEvent forked, joined;
  const Pinned<int32_t> values(32), early(32), late(32);
  std::fill_n(values.data(), 32, 0);
  begin(origin);
  ASSERT_EQ(cudaEventRecord(forked, origin), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, forked), cudaSuccess);
  add(values.data(), 3, other);
  ASSERT_EQ(cudaEventRecord(joined, other), cudaSuccess);
  ASSERT_EQ(copy(early.data(), values.data(), 128, origin), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(origin, joined), cudaSuccess);
  ASSERT_EQ(copy(late.data(), values.data(), 128, origin), cudaSuccess);
  const cudaGraphExec_t exec = finish(origin);
  for (int32_t turn = 1; turn <= 2; ++turn) {
    ASSERT_EQ(cudaGraphLaunch(exec, origin), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(origin), cudaSuccess);
    EXPECT_EQ(early[0], 3 * (turn - 1));
    EXPECT_EQ(late[0], 3 * turn);
  }
  add(values.data(), 1, other);  // no longer captured
  EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_F(Graphs, RefuseWhatACaptureCannotHold) {
  const TestStream stream, other;
  const TestEvent event;
  const Pinned<int32_t> values(32);

  begin(stream);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(end(stream), cudaErrorStreamCaptureInvalidated);

  ASSERT_EQ(cudaEventRecord(event, other), cudaSuccess);
  begin(stream);
  EXPECT_EQ(cudaStreamWaitEvent(stream, event), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(end(stream), cudaErrorStreamCaptureInvalidated);

  begin(stream);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaErrorCapturedEvent);
  ASSERT_EQ(cudaStreamWaitEvent(other, event), cudaSuccess);
  add(values.data(), 1, other);
  EXPECT_EQ(end(stream), cudaErrorStreamCaptureUnjoined);
  EXPECT_EQ(cudaStreamWaitEvent(other, event), cudaErrorCapturedEvent) << "its capture is over";

  EXPECT_EQ(end(stream), cudaErrorInvalidValue) << "nothing is captured";
}

TEST_F(Graphs, ForbidAllocationsToTheirThread) {
  const TestStream stream;
  void* pointer = nullptr;
  begin(stream, cudaStreamCaptureModeThreadLocal);
  std::thread([&] {
    EXPECT_EQ(cudaHostAlloc(&pointer, 64, 0), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pointer), cudaSuccess);
  }).join();
  EXPECT_EQ(cudaHostAlloc(&pointer, 64, 0), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(end(stream), cudaErrorStreamCaptureInvalidated);
  begin(stream, cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(cudaHostAlloc(&pointer, 64, 0), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pointer), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(finish(stream)), cudaSuccess);
}

}  // namespace
}  // namespace quire
