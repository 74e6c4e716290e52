// Lines of memory that a product fetches while it runs, for what comes after it: the next chunk of
// keys and values, and the next task's. Listed blocks are anywhere, which no hardware foresees, and
// a core waits for few lines at a time; so it is one in each step, and they arrive evenly.
#pragma once

#include "cpu/simd.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

inline constexpr int64_t kLine = 64;

// Where a product is in rows of lines: its own copy, which stays in registers.
struct Lines {
  const char *at, *row_end;
  int64_t gap, step;  // from the end of a row to the next; from row to row

  void fetch() {
    fastops::cpu::prefetch(at);
    at += kLine;
    if (at == row_end) {
      at += gap;
      row_end += step;
    }
  }
};
// Of products that fetch nothing.
struct NoLines {
  void fetch(int64_t = 1) {}
};

class Ahead {
 public:
  // What was not fetched in time is not fetched.
  void forget() { begin_ = end_ = left_ = 0; }
  // `count` rows of `bytes` each, `step` bytes apart.
  void add(const char* rows, int64_t count, int64_t step, int64_t bytes) {
    if (end_ == kRanges || count <= 0) return;
    const int64_t lines = (bytes + kLine - 1) / kLine;
    ranges_[end_++] = {{rows, rows + lines * kLine, step - lines * kLine, step}, count * lines};
    if (!any()) advance();
  }

  bool any() const { return left_ > 0; }
  // For a product of `count` steps: its copy, and that back. A range may end before the steps do;
  // what follows it in memory is fetched for nothing.
  Lines lines() const { return lines_; }
  void keep(const Lines& lines, int64_t count) {
    lines_ = lines;
    left_ -= count;
    if (!any()) advance();
  }
  // For products with longer steps.
  void fetch(int64_t count) {
    while (count > 0 && any()) {
      const int64_t n = count < left_ ? count : left_;
      Lines lines = lines_;
      for (int64_t i = 0; i < n; ++i) lines.fetch();
      keep(lines, n);
      count -= n;
    }
  }

 private:
  static constexpr int64_t kRanges = 40;  // a chunk has up to 16 segments of keys and of values
  struct Range {
    Lines first;
    int64_t lines;
  };

  void advance() {
    left_ = 0;
    if (begin_ == end_) return;
    lines_ = ranges_[begin_].first;
    left_ = ranges_[begin_++].lines;
  }

  Range ranges_[kRanges];
  int64_t begin_ = 0, end_ = 0;
  Lines lines_;
  int64_t left_ = 0;
};

}  // namespace
}  // namespace fastops::attention::cpu::FASTOPS_ISA
