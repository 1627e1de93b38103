// Which rows of something are meant: runs of them, apart from each other. A value; pure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace quire {

class RowRanges {
 public:
  RowRanges() = default;
  explicit RowRanges(int64_t num_rows) {
    if (num_rows > 0) runs_.push_back({0, num_rows});
  }

  bool empty() const { return runs_.empty(); }
  int64_t num_rows() const {
    int64_t total = 0;
    for (const Run& run : runs_) total += run.end - run.begin;
    return total;
  }
  // Takes rows [begin, end) out, those that are there.
  void remove(int64_t begin, int64_t end) {
    std::vector<Run> left;
    for (const Run& run : runs_) {
      add({run.begin, std::min(run.end, begin)}, left);
      add({std::max(run.begin, end), run.end}, left);
    }
    runs_ = std::move(left);
  }
  // Keeps the rows that `other` has too.
  void intersect(const RowRanges& other) {
    std::vector<Run> common;
    for (const Run& run : runs_) {
      for (const Run& theirs : other.runs_) {
        add({std::max(run.begin, theirs.begin), std::min(run.end, theirs.end)}, common);
      }
    }
    runs_ = std::move(common);
  }

 private:
  struct Run {
    int64_t begin = 0, end = 0;
  };
  static void add(Run run, std::vector<Run>& runs) {
    if (run.begin < run.end) runs.push_back(run);
  }

  std::vector<Run> runs_;  // ascending
};

}  // namespace quire
