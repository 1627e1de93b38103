// What prompt log-probabilities take on the device beside the arena, for the largest prompts and vocabularies.
#include "engine/prompt_logprobs.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

constexpr int64_t kPrompt = 32 * 1024, kVocabulary = 152'000;
constexpr int64_t kMebibyte = int64_t{1} << 20;

// All logits of the prompt would be 18.6 GiB. Those of the rows made at once lie where a step's own logits do, whose
// room the arena has (max_num_seqs rows) and the plan counts; even with it everything stays below 256 MiB.
TEST(PromptLogprobsMemory, IsSmallForALongPromptAndALargeVocabulary) {
  for (const int64_t max_rows : {1, 64, 256, 1024}) {
    for (const int64_t wanted : {int64_t{0}, int64_t{1}, int64_t{20}, int64_t{1000}, kVocabulary}) {
      const int64_t at_once = PromptLogprobs::rows_at_once(max_rows, kVocabulary, wanted + 1);
      const auto own = static_cast<int64_t>(PromptLogprobs::device_bytes(kPrompt, at_once, wanted + 1));
      EXPECT_GE(at_once, 1);
      EXPECT_LE(at_once, max_rows) << "the arena has no room for more rows of logits";
      EXPECT_LE(own, 48 * kMebibyte) << max_rows << " rows, " << wanted << " log-probabilities";
      EXPECT_LE(own + at_once * kVocabulary * 4, 256 * kMebibyte);
    }
  }
}

}  // namespace
}  // namespace quire
