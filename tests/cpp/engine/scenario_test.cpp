// Runs tests/engine/*.scn, which tell each policy of the scheduler as a story; their language is in the README.md
// there.
//
// One test a file. An unknown word is an error with its line, so that no expectation is skipped by a typing mistake.
#include <gtest/gtest-spi.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "engine/harness.h"

namespace quire::testing {
namespace {

using Words = std::vector<std::string>;

Words split(const std::string& text, char separator) {
  Words words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, separator);) {
    if (!word.empty()) words.push_back(word);
  }
  return words;
}

int64_t number(const std::string& text) {
  size_t used = 0;
  int64_t value = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
  }
  if (used == 0 || used != text.size()) throw std::runtime_error("not a number: " + text);
  return value;
}

std::vector<int32_t> numbers(const std::string& text) {
  std::vector<int32_t> values;
  for (const std::string& word : split(text, ',')) values.push_back(static_cast<int32_t>(number(word)));
  return values;
}

// "12": tokens of the request's own; "A8+4": the first eight tokens of text A, then four of its own.
std::vector<int32_t> prompt_tokens(const std::string& text, uint64_t id) {
  std::vector<int32_t> tokens;
  for (const std::string& piece : split(text, '+')) {
    const bool shared = std::isupper(static_cast<unsigned char>(piece[0])) != 0;
    const uint64_t author = shared ? static_cast<uint64_t>(piece[0]) : 1000 + id;
    const int64_t length = number(shared ? piece.substr(1) : piece);
    for (int64_t i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(hash_combine(author, static_cast<uint64_t>(i)) % kVocabSize));
    }
  }
  return tokens;
}

// key=value words; every one must be asked for.
class Settings {
 public:
  Settings(const Words& words, size_t begin) {
    for (size_t i = begin; i < words.size(); ++i) {
      const size_t equals = words[i].find('=');
      if (equals == std::string::npos) throw std::runtime_error("expected key=value, not " + words[i]);
      values_[words[i].substr(0, equals)] = words[i].substr(equals + 1);
    }
  }
  std::optional<std::string> take(const std::string& key) {
    auto node = values_.extract(key);
    return node.empty() ? std::nullopt : std::optional(node.mapped());
  }
  int64_t take(const std::string& key, int64_t fallback) {
    const auto text = take(key);
    return text.has_value() ? number(*text) : fallback;
  }
  bool take_switch(const std::string& key, bool fallback) {
    const auto text = take(key);
    if (text.has_value() && *text != "on" && *text != "off") throw std::runtime_error(key + " is on or off");
    return text.has_value() ? *text == "on" : fallback;
  }
  void check_all_taken() const {
    if (!values_.empty()) throw std::runtime_error("unknown setting " + values_.begin()->first);
  }

 private:
  std::map<std::string, std::string> values_;
};

std::string name_of(uint64_t id, int32_t index) { return index == 0 ? std::to_string(id) : str_cat(id, ".", index); }

class Scenario {
 public:
  void run_line(const std::string& line) {
    const Words words = split(line, ' ');
    if (words.empty()) return;
    const std::string& verb = words[0];
    if (verb == "config") return configure(words);
    if (!harness_) throw std::runtime_error("the first line is config");
    if (verb == "vocab") return set_vocabulary(words);
    if (verb == "add") return add(words);
    if (verb == "step") return step(words.size() > 1 ? number(words[1].substr(1)) : 1);
    if (verb == "plan") return must(harness_->plan(), "there was something to plan");
    if (verb == "commit") return harness_->commit();
    if (verb == "run") return harness_->run_until_idle();
    if (verb == "cancel") return must(harness_->cancel(static_cast<uint64_t>(number(words.at(1)))), "it was there");
    if (verb == "reset_prefix_cache") return must(harness_->scheduler().reset_prefix_cache(), "it was allowed");
    if (verb == "expect") return expect(words);
    throw std::runtime_error("unknown verb " + verb);
  }
  void finish() {
    if (harness_) harness_->run_until_idle();
  }

 private:
  static void must(bool happened, const std::string& what) { EXPECT_TRUE(happened) << what; }

  void configure(const Words& words) {
    finish();
    Settings settings(words, 1);
    SchedulerOptions options;
    options.num_blocks = static_cast<int32_t>(settings.take("num_blocks", 64));
    options.block_size = static_cast<int32_t>(settings.take("block_size", 4));
    options.max_num_batched_tokens = settings.take("max_num_batched_tokens", 64);
    options.max_num_seqs = settings.take("max_num_seqs", 8);
    options.max_model_len = settings.take("max_model_len", 64);
    options.long_prefill_token_threshold = settings.take("long_prefill_token_threshold", 0);
    options.enable_prefix_caching = settings.take_switch("prefix_caching", true);
    options.enable_chunked_prefill = settings.take_switch("chunked_prefill", true);
    options.num_speculative_tokens = static_cast<int32_t>(settings.take("drafts", 0));
    options.max_num_samples =
        settings.take("max_num_samples", options.max_num_seqs * (1 + options.num_speculative_tokens));
    options.has_draft_model = settings.take_switch("draft_model", false);
    const int64_t num_right = settings.take("right", options.num_speculative_tokens);
    settings.check_all_taken();
    options_ = options;
    harness_ = std::make_unique<Harness>(options);
    harness_->set_drafter([num_right](uint64_t, int32_t, int32_t i) { return i < num_right; });
    vocabulary_ = nullptr;
  }

  void set_vocabulary(const Words& words) {
    auto vocabulary = std::make_shared<Vocabulary>();
    vocabulary->token_bytes.resize(kVocabSize);
    for (size_t i = 1; i < words.size(); ++i) {
      const Words pair = split(words[i], '=');
      vocabulary->token_bytes.at(static_cast<size_t>(number(pair.at(0)))) = pair.at(1);
    }
    vocabulary_ = vocabulary;
  }

  void add(const Words& words) {
    Settings settings(words, 1);
    auto request = std::make_unique<Request>();
    request->id = static_cast<uint64_t>(settings.take("id", -1));
    request->prompt = prompt_tokens(settings.take("prompt").value(), request->id);
    request->params.n = static_cast<int32_t>(settings.take("n", 1));
    request->params.min_tokens = static_cast<int32_t>(settings.take("min_tokens", 0));
    request->params.stop = split(settings.take("stop").value_or(""), ',');
    request->params.stop_token_ids = numbers(settings.take("stop_token_ids").value_or(""));
    request->eos_token_ids = numbers(settings.take("eos").value_or(""));
    const auto prompt_logprobs = static_cast<int32_t>(settings.take("prompt_logprobs", -1));
    if (prompt_logprobs >= 0) request->params.prompt_logprobs = prompt_logprobs;
    request->priority = static_cast<int32_t>(settings.take("priority", 0));
    request->cache_salt = static_cast<uint64_t>(settings.take("salt", 0));
    request->vocabulary = vocabulary_;
    request->max_total_tokens = std::min<int64_t>(
        options_.max_model_len, static_cast<int64_t>(request->prompt.size()) + settings.take("max_tokens", 16));
    const Script script = numbers(settings.take("says").value_or(""));
    settings.check_all_taken();
    harness_->add(std::move(request), script);
  }

  void step(int64_t count) {
    for (int64_t i = 0; i < count; ++i) must(harness_->step(), "there was something to do");
  }

  void expect(const Words& words) {
    const std::string& what = words.at(1);
    const Words listed(words.begin() + 2, words.end());
    if (what == "plan:") {
      Words got;
      for (const auto& each : harness_->planned()) {
        got.push_back(str_cat(name_of(each.id, each.index), "[", each.begin, ":", each.end, "]"));
      }
      EXPECT_EQ(got, listed);
    } else if (what == "preempted:") {
      Words got;
      for (const uint64_t id : harness_->preempted()) got.push_back(std::to_string(id));
      EXPECT_EQ(got, listed);
    } else if (what == "blocks") {
      expect_counts(words, {{"free", harness_->scheduler().num_free_blocks()},
                            {"cached", harness_->scheduler().num_cached_blocks()},
                            {"held", options_.num_blocks - harness_->scheduler().num_free_blocks() -
                                         harness_->scheduler().num_cached_blocks()}});
    } else if (what == "queues") {
      const SchedulerStats stats = harness_->scheduler().stats();
      expect_counts(words, {{"running", stats.num_running}, {"waiting", stats.num_waiting}});
    } else if (what == "stats") {
      const SchedulerStats stats = harness_->scheduler().stats();
      expect_counts(words, {{"preemptions", stats.num_preemptions},
                            {"queries", stats.prefix_cache_queries},
                            {"drafted", harness_->num_drafted()},
                            {"accepted", harness_->num_accepted()},
                            {"hits", stats.prefix_cache_hits}});
    } else if (what == "finished") {
      expect_finished(words);
    } else if (what == "unfinished") {
      EXPECT_FALSE(harness_->finished().contains(static_cast<uint64_t>(number(words.at(2)))));
    } else {
      throw std::runtime_error("cannot expect " + what);
    }
  }

  static void expect_counts(const Words& words, const std::map<std::string, int64_t>& counts) {
    Settings settings(words, 2);
    for (const auto& [key, count] : counts) EXPECT_EQ(settings.take(key, count), count) << key;
    settings.check_all_taken();
  }

  // expect finished NAME REASON [key=value ...]
  void expect_finished(const Words& words) {
    const Words name = split(words.at(2), '.');
    const auto found = harness_->finished().find(static_cast<uint64_t>(number(name.at(0))));
    ASSERT_NE(found, harness_->finished().end()) << words[2] << " has not finished";
    const Request& request = *found->second;
    const Sequence& sequence = *request.sequences.at(name.size() > 1 ? static_cast<size_t>(number(name[1])) : 0);
    const std::map<FinishReason, std::string> reasons = {
        {FinishReason::stop, "stop"}, {FinishReason::length, "length"}, {FinishReason::abort, "abort"}};
    EXPECT_EQ(reasons.at(sequence.finish_reason), words.at(3));
    Settings settings(words, 4);
    if (const auto output = settings.take("output")) {
      EXPECT_EQ(numbers(*output), std::vector<int32_t>(sequence.output().begin(), sequence.output().end()));
    }
    EXPECT_EQ(settings.take("num_tokens", sequence.num_output()), sequence.num_output());
    EXPECT_EQ(settings.take("stop_token", -1), sequence.stop_token_id);
    EXPECT_EQ(settings.take("stop_string", -1), sequence.stop_string_index);
    EXPECT_EQ(settings.take("cached_tokens", request.num_cached_tokens), request.num_cached_tokens);
    EXPECT_EQ(settings.take("preemptions", request.num_preemptions), request.num_preemptions);
    settings.check_all_taken();
  }

  SchedulerOptions options_;
  std::unique_ptr<Harness> harness_;
  std::shared_ptr<const Vocabulary> vocabulary_;
};

void run_text(std::istream& text, const std::string& name) {
  Scenario scenario;
  int line_number = 0;
  for (std::string line; std::getline(text, line);) {
    const std::string where = str_cat(name, ":", ++line_number, ": ", line);
    SCOPED_TRACE(where);
    try {
      scenario.run_line(line.substr(0, line.find('#')));
    } catch (const std::exception& error) {
      FAIL() << where << ": " << error.what();
    }
  }
  scenario.finish();
}

std::vector<std::string> scenario_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(QUIRE_SCENARIO_DIR)) {
    if (entry.path().extension() == ".scn") names.push_back(entry.path().stem().string());
  }
  std::ranges::sort(names);
  return names;
}

class ScenarioTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ScenarioTest, GoesAsTold) {
  const std::filesystem::path path = std::filesystem::path(QUIRE_SCENARIO_DIR) / (GetParam() + ".scn");
  std::ifstream file(path);
  ASSERT_TRUE(file.is_open()) << path;
  run_text(file, GetParam() + ".scn");
}

INSTANTIATE_TEST_SUITE_P(Policies, ScenarioTest, ::testing::ValuesIn(scenario_names()),
                         [](const auto& each) { return each.param; });

// The runner itself: wrong expectations and words it does not know must be noticed.
TEST(ScenarioRunner, NoticesWhatIsWrong) {
  const std::string start = "config num_blocks=8\nadd id=1 prompt=4 max_tokens=2\nstep\n";
  for (const char* wrong :
       {"expect plan: 1[0:3]", "expect plan:", "expect preempted: 1", "expect blocks free=8", "expect queues running=0",
        "expect finished 1 length", "expect blocks fre=7", "expect nothing", "jump", "add id=2 prompt=4 max_toknes=3",
        "cancel 2", "config num_blocks=zwei", "run\nexpect finished 1 stop",
        "run\nexpect finished 1 length output=1,2"}) {
    ::testing::TestPartResultArray failures;
    {
      const ::testing::ScopedFakeTestPartResultReporter reporter(
          ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
      std::istringstream text(start + wrong);
      run_text(text, "wrong");
    }
    EXPECT_GT(failures.size(), 0) << wrong;
  }
}

}  // namespace
}  // namespace quire::testing
