// Which beams a search goes on with. Verb: commit.
//
// Decides: the next beams from the candidates of the live ones, what counts as completed, the final order. Pure: it
// knows numbers of sequences (slots) and token ids, no model, no blocks, no scheduler. Engine thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence.h"
#include "quire/types.h"

namespace quire {

// What the sequences have to do for the next beams, in this order.
struct BeamMoves {
  struct Fork {
    int32_t parent = 0, slot = 0;
  };
  struct Append {
    int32_t slot = 0, token = 0;
  };
  std::vector<int32_t> dropped;  // slots of beams that have no child
  std::vector<Fork> forks;       // a second child of `parent` gets the free `slot`
  std::vector<Append> appended;  // every live beam, best first
};

// Slots of `moves.appended` after whose tokens nothing may follow.
using FindComplete = std::function<std::vector<int32_t>(const BeamMoves& moves)>;

// A step: every live beam offers its most likely next tokens, then advance() chooses. A candidate that is a stop token
// or completes a stop string is completed, the others compete; the beam_width with the largest sums of
// log-probabilities live on, of equal ones the first. Those after which nothing may follow are completed too. It ends
// after max_tokens steps, when no beam is left, or when no beam can come to be returned any more.
class BeamSearch {
 public:
  // `stop_token_ids` end a sequence, the primary end-of-sequence token first. `max_tokens`: what the model has room
  // for, too. `vocabulary` is needed with stop strings.
  BeamSearch(const BeamSearchParams& params, std::vector<int32_t> stop_token_ids, int64_t num_prompt_tokens,
             int32_t max_tokens, std::shared_ptr<const Vocabulary> vocabulary = nullptr);

  // Tokens that a beam has to offer: so many that beam_width are left when all stop tokens are among them.
  static int32_t num_candidates(int32_t beam_width, size_t num_stop_token_ids, int64_t vocab_size);

  // The candidates of the live beam in `slot` (at the beginning: 0), best first. Once a beam and step.
  void offer(int32_t slot, std::span<const int32_t> token_ids, std::span<const float> logprobs);
  // Every live beam has offered.
  bool ready() const { return !beams_.empty() && num_offered_ == beams_.size(); }
  // Valid until the next call; empty when the search ends with it. `find_complete` is asked once; the slots it names
  // are to be dropped instead of appended to, after the forks (is_live() tells), and may be used again.
  const BeamMoves& advance(const FindComplete& find_complete = nullptr);
  bool is_live(int32_t slot) const;
  bool finished() const { return beams_.empty(); }

  // The best beam_width sequences, best first, without the prompt; once finished. Log-probabilities are the candidates
  // of each token's step.
  std::vector<Completion> results() const;
  // Ranks finished and unfinished sequences of `num_tokens` generated tokens.
  double score(double cumulative_logprob, int64_t num_tokens, bool is_stopped) const;

 private:
  // A token of a sequence; the tokens before it are its parents.
  struct Node {
    int32_t parent = -1;  // -1: the prompt
    int32_t row = 0;      // the candidates it is from
    int32_t rank = 0;     // among them
    double cumulative_logprob = 0.0;
    int32_t num_tokens = 0;
    std::string text_tail = {};  // bytes that may become part of a stop string
  };
  // How a sequence ended.
  struct End {
    bool is_stopped = false;  // with a stop token
    int32_t stop_string = -1;
    bool is_complete = false;
  };
  struct Beam {
    int32_t slot = 0;
    int32_t node = -1;
    int32_t row = -1;  // offered; -1: not yet
  };
  struct Candidate {
    size_t beam = 0;
    int32_t rank = 0;
    double cumulative_logprob = 0.0;
    std::string text_tail = {};
  };
  struct Completed {
    int32_t node = 0;
    double score = 0.0;
    End end;
  };

  double cumulative_logprob(int32_t node) const;
  int32_t token(const Node& node) const;
  bool is_stop(int32_t token) const;
  int32_t add_node(const Candidate& candidate);
  void gather();
  void live_on(size_t num_kept);
  void complete(int32_t node, const End& end);
  void retire(std::span<const int32_t> slots);
  bool can_improve() const;
  void end();
  Completion completion(const Completed& completed) const;

  const BeamSearchParams params_;
  const std::vector<int32_t> stop_token_ids_;
  const int64_t num_prompt_tokens_;
  const int32_t max_tokens_;
  const std::shared_ptr<const Vocabulary> vocabulary_;
  int32_t num_steps_ = 0;
  size_t num_offered_ = 0;
  std::vector<Beam> beams_;            // live, best first
  std::vector<Candidate> candidates_;  // of the step, stop tokens left out
  std::vector<Completed> completed_;   // best first, at most beam_width
  BeamMoves moves_;
  std::vector<Node> nodes_;
  // [row, width_]: what was offered
  size_t width_ = 0;
  std::vector<int32_t> row_token_ids_;
  std::vector<float> row_logprobs_;
};

}  // namespace quire
