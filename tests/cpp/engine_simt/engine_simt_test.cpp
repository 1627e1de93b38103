// The whole engine on the CUDA kernels: the embedded model, from prompt to tokens, with every kernel in emulation.
//
// The device is the host's memory with the CUDA backend's table. Tokens are compared with the CPU backend's, bits with
// the same request in another batch.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_kernels.h"
#include "cuda/simt/engine.h"
#include "engine/engine.h"

namespace quire {
namespace {

const std::string kDemo = QUIRE_DEMO_MODEL_DIR;

class EmulatedDevice final : public Device {
 public:
  std::string name() const override { return "simt"; }
  const KernelTable& kernels() const override { return cuda::kernels(); }
  Stream stream() const override { return {}; }
  int num_threads() const override { return 1; }
  DeviceMemory memory() const override { return host_->memory(); }
  std::unique_ptr<Region> allocate(RegionTag tag, size_t num_bytes) override { return host_->allocate(tag, num_bytes); }
  void copy_to_device(void* to, const void* from, size_t n) override { host_->copy_to_device(to, from, n); }
  void copy_to_host(void* to, const void* from, size_t n) override { host_->copy_to_host(to, from, n); }
  std::unique_ptr<HostBuffer> allocate_host(size_t n) override { return host_->allocate_host(n); }
  void copy_async(void* to, const void* from, size_t n, Stream s) override { host_->copy_async(to, from, n, s); }
  void fill_async(void* to, std::byte value, size_t n, Stream s) override { host_->fill_async(to, value, n, s); }
  std::unique_ptr<Event> make_event() override { return host_->make_event(); }
  void wait_for(Stream, const Event&) override {}
  std::unique_ptr<Graph> capture(const std::function<void()>&) override { return nullptr; }
  void synchronize() override {}

 private:
  std::unique_ptr<Device> host_ = make_host_device({.num_threads = 1});
};

struct Generated {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;  // of the tokens
};

EngineOptions options_of(const char* dtype) {
  return {.dtype = dtype, .max_model_len = 128, .max_num_seqs = 4, .max_num_batched_tokens = 64};
}

// All prompts in one engine, together.
std::vector<Generated> generate(std::unique_ptr<Device> device, const EngineOptions& options,
                                const std::vector<std::vector<int32_t>>& prompts, const SamplingParams& params) {
  EngineConfig config = resolve_engine_config(kDemo, options, *device);
  const std::unique_ptr<Checkpoint> checkpoint = open_safetensors(kDemo);
  Engine engine(std::move(config), std::move(device), checkpoint.get());
  std::vector<Generated> all(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto keep = [&all, i](const Delta& delta) {
      if (delta.finished == nullptr) return;
      const Completion& completion = delta.finished->completions.front();
      all[i] = {completion.token_ids, completion.logprobs.logprobs};
    };
    engine.submit(prompts[i], params, keep, Notify::finished);
  }
  while (engine.step()) {
  }
  return all;
}

std::vector<int32_t> story_prompt(int32_t length) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(300 + i * 37 % 1500);
  return ids;
}

class EngineOnCudaKernels : public testing::TestWithParam<const char*> {
 protected:
  void TearDown() override { simt::set_order(simt::Order::forward); }
};

// Greedy tokens and their logprobs agree with the CPU's: the kernels sum in another order, nothing else.
TEST_P(EngineOnCudaKernels, WritesWhatTheCpuWrites) {
  const SamplingParams params = {.temperature = 0.0f, .ignore_eos = true, .max_tokens = 4, .logprobs = 0};
  const std::vector<std::vector<int32_t>> prompts = {story_prompt(21), story_prompt(5)};
  const auto expected = generate(make_host_device({.num_threads = 2}), options_of(GetParam()), prompts, params);
  const auto got = generate(std::make_unique<EmulatedDevice>(), options_of(GetParam()), prompts, params);
  const float tolerance = std::string(GetParam()) == "float32" ? 1e-4f : 0.05f;
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(got[i].token_ids, expected[i].token_ids);
    ASSERT_EQ(got[i].logprobs.size(), expected[i].logprobs.size());
    for (size_t t = 0; t < got[i].logprobs.size(); ++t) {
      EXPECT_NEAR(got[i].logprobs[t], expected[i].logprobs[t], tolerance) << "prompt " << i << " token " << t;
    }
  }
}

// A request's bits do not depend on its batch mates, on chunking or on the order in which threads run.
TEST_P(EngineOnCudaKernels, BitsDoNotDependOnTheBatch) {
  const SamplingParams params = {
      .temperature = 0.8f, .top_p = 0.9f, .seed = 11, .ignore_eos = true, .max_tokens = 3, .logprobs = 0};
  const auto prompt = story_prompt(19);
  const auto alone = generate(std::make_unique<EmulatedDevice>(), options_of(GetParam()), {prompt}, params);
  simt::set_order(simt::Order::reverse, 1);
  EngineOptions chunked = options_of(GetParam());
  chunked.max_num_batched_tokens = 7;
  const auto among = generate(std::make_unique<EmulatedDevice>(), chunked, {story_prompt(8), prompt}, params);
  EXPECT_EQ(alone[0].token_ids, among[1].token_ids);
  EXPECT_EQ(alone[0].logprobs, among[1].logprobs);
}

INSTANTIATE_TEST_SUITE_P(, EngineOnCudaKernels, testing::Values("float32", "bfloat16"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace quire
