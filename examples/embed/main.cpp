// A language model inside a native application: token ids in, token ids out, no Python.
//
// Usage: embed MODEL_DIR TOKEN_ID...
// First generate(): all prompts at once, like a batch job. Then submit() and step(): the application keeps its own
// loop, sees each token as it comes and can stop a request at any time. Greedy, so both ways print the same tokens.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "quire/quire.h"

namespace {

void print(const char* label, const std::vector<int32_t>& token_ids) {
  std::printf("%s:", label);
  for (int32_t id : token_ids) std::printf(" %d", id);
  std::printf("\n");
}

void run(const std::string& model_dir, const std::vector<int32_t>& prompt) {
  quire::LLM llm(model_dir, {.max_num_seqs = 8});
  const quire::SamplingParams params{.temperature = 0, .max_tokens = 16};

  for (const quire::RequestOutput& output : llm.generate({prompt, prompt}, params)) {
    print("generate", output.completions[0].token_ids);
  }

  std::vector<int32_t> streamed;
  llm.submit(prompt, params, [&](const quire::Delta& delta) {
    streamed.insert(streamed.end(), delta.token_ids.begin(), delta.token_ids.end());
  });
  const uint64_t unwanted = llm.submit(prompt, {.max_tokens = 1000});
  while (llm.step()) {
    if (streamed.size() >= 4) llm.cancel(unwanted);  // the user changed their mind; the other request goes on
  }
  print("stream", streamed);
  std::printf("running: %lld\n", static_cast<long long>(llm.stats().num_running));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL_DIR TOKEN_ID...\n", argv[0]);
    return 2;
  }
  try {
    std::vector<int32_t> prompt;
    for (int i = 2; i < argc; ++i) prompt.push_back(std::stoi(argv[i]));
    run(argv[1], prompt);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "embed: %s\n", error.what());
    return 1;
  }
}
