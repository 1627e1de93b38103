// One sequence being generated and the request it belongs to. Verbs: plan, commit.
//
// A sequence is its tokens, how many of them are computed (their keys and values are in its blocks), its blocks and how
// it ended. It does not know devices, time or text; stop strings are matched on token bytes (Vocabulary).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/block_pool.h"
#include "quire/types.h"

namespace quire {

// token id -> bytes of its text; shared by all requests of an engine. Empty until set_vocabulary().
struct Vocabulary {
  std::vector<std::string> token_bytes;
  std::string_view bytes(int32_t id) const {
    const auto entry = static_cast<size_t>(id);
    return id >= 0 && entry < token_bytes.size() ? std::string_view(token_bytes[entry]) : std::string_view();
  }
};

struct Request;
struct RequestRecord;  // what the engine keeps of a request; opaque here

struct Sequence {
  Request* request = nullptr;
  int32_t index = 0;            // which of the request's n
  std::vector<int32_t> tokens;  // prompt, then output; empty while it waits for the first sequence to compute the
                                // prompt, or is not in use
  int32_t num_computed = 0;     // tokens [0, num_computed) have keys and values in blocks
  // Of steps that are planned and not committed: tokens they compute, and whether they sample one more that nobody
  // knows yet.
  int32_t num_in_flight = 0;
  int32_t num_pending = 0;
  std::vector<BlockRef> blocks;   // block b holds tokens [b * block_size, (b + 1) * block_size)
  int32_t num_hashed_blocks = 0;  // blocks [0, num_hashed_blocks) were offered to the prefix cache
  uint64_t arrival_order = 0;     // ties and preemption: larger is newer
  bool awaits_token = false;      // all its tokens are computed, and Scheduler::append() brings the next (host_chooses)
  // What is guessed to follow the tokens; -1: to be guessed when the step that computes it is planned.
  std::vector<int32_t> drafts;
  // The newest computed token is not computed by the draft model.
  bool draft_lags = false;
  std::string text_tail;  // bytes of the output that may still become part of a stop string
  FinishReason finish_reason = FinishReason::none;
  int32_t stop_token_id = -1;
  int32_t stop_string_index = -1;
  bool is_complete = false;  // its constraint lets nothing follow the token that is about to be appended

  // The row of device state that is this sequence's while it runs (SchedulerOptions::device_rows), -1 else.
  int32_t row = -1;
  uint32_t row_serial = 0;          // another one each time the sequence gets a row, or its row must be told anew
  int32_t num_row_blocks = 0;       // entries of its block table that the row has
  bool row_has_count = false;       // the row's num_computed is right (steps in flight included)
  bool row_has_last_token = false;  // the row has the newest token, sampled in it

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  // With the token that is in flight.
  int32_t num_known() const { return num_tokens() + num_pending; }
  int32_t num_output() const;
  std::span<const int32_t> output() const;
  bool finished() const { return finish_reason != FinishReason::none; }
};

// A prompt with its parameters; n sequences share the blocks of the prompt. The first sequence computes the prompt; the
// others start when it has.
struct Request {
  uint64_t id = 0;
  std::vector<int32_t> prompt;
  SamplingParams params;
  std::vector<int32_t> eos_token_ids;  // primary first; empty with ignore_eos
  int64_t max_total_tokens = 0;        // prompt + output may not exceed this (max_tokens and max_model_len folded in)
  uint64_t cache_salt = 0;
  // Tokens are not those that were sampled: Scheduler::fork(), append() and drop() say how its sequences go on. Only
  // the first of them begins with the prompt; which others there are is the caller's.
  bool host_chooses = false;
  int32_t priority = 0;                              // smaller goes first; equal ones in order of arrival
  std::shared_ptr<const Vocabulary> vocabulary;      // needed with stop strings
  std::vector<std::unique_ptr<Sequence>> sequences;  // params.n, made by Scheduler::add()
  int32_t num_cached_tokens = 0;
  // Tokens whose hidden states were computed once, and with them, with prompt_logprobs, what was asked for of the next,
  // and with return_hidden_states they themselves were handed on.
  int32_t num_judged = 0;
  int32_t num_preemptions = 0;
  int32_t num_steps_in_flight = 0;  // plans that name one of its sequences, not committed
  bool scheduled = false;           // some token of it has been in a batch
  std::shared_ptr<RequestRecord> record;
  bool finished() const;
  // Most tokens of a sequence of `num_tokens` that may come from the prefix cache. The last one is computed in any
  // case, because its logits are wanted; with prompt_logprobs or return_hidden_states so are all of the prompt that
  // were not judged.
  int32_t max_cached_tokens(int32_t num_tokens) const;
};

// Adds a token's bytes to the tail of a text and returns the one of `stops` that they complete first, -1 for none. What
// can no longer become part of one leaves the tail.
int32_t advance_text(std::string& tail, std::string_view bytes, const std::vector<std::string>& stops);

// Appends a sampled token and decides whether the sequence ends with it. In this order: EOS and stop token ids, stop
// strings (all held back while the output is shorter than min_tokens), the end of a constraint, length. The token stays
// in `tokens` in every case.
void append_token(Sequence& sequence, int32_t token);

}  // namespace quire
