// Lines of memory that a product fetches while it runs, for what comes after it: the next chunk of
// keys and values, and the next task's. Listed blocks are anywhere, which no hardware foresees, and
// a core waits for few lines at a time; so it is one in each step, and they arrive evenly.
#pragma once

#include "cpu/simd.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

// Lines that follow each other.
struct LineRun {
  const char *at, *end;
  const LineRun* next;  // itself: there is no other
};

// Where a product is in them: its own copy, which stays in registers.
struct Lines {
  LineRun run;

  void fetch() {
    fastops::cpu::prefetch(run.at);
    run.at += 64;
    if (run.at == run.end) run = *run.next;
  }
};
// Of products that fetch nothing.
struct NoLines {
  void fetch() {}
};

class Ahead {
 public:
  Ahead() { forget(); }
  Ahead(const Ahead&) = delete;

  // What was not fetched in time is not fetched.
  void forget() {
    count_ = 0;
    lines_.run = rest_;
  }
  // `count` rows of `bytes` each, `step` bytes apart.
  void add(const char* rows, int64_t count, int64_t step, int64_t bytes) {
    const int64_t each = (bytes + 63) / 64 * 64;
    if (step == each) add(rows, count * each);
    else
      for (int64_t i = 0; i < count; ++i) add(rows + i * step, each);
  }

  bool any() const { return lines_.run.at != rest_.at; }
  Lines lines() const { return lines_; }
  void keep(const Lines& lines) { lines_ = lines; }

 private:
  static constexpr int kRuns = 512;  // rows of a chunk's keys and values, and of a task's, apart

  void add(const char* at, int64_t bytes) {
    if (count_ == kRuns || bytes == 0) return;
    LineRun& run = runs_[count_];
    run = {at, at + bytes, &rest_};
    if (!any()) {
      lines_.run = run;
    } else {
      runs_[count_ - 1].next = &run;
      if (lines_.run.next == &rest_) lines_.run.next = &run;
    }
    ++count_;
  }

  // The same line for ever, one that is in cache.
  const LineRun rest_{reinterpret_cast<const char*>(this), reinterpret_cast<const char*>(this) + 64,
                      &rest_};
  LineRun runs_[kRuns];
  int count_ = 0;
  Lines lines_;
};

// product(lines), with those that there are to fetch.
template <typename Product>
inline void fetching(NoLines& none, const Product& product) {
  product(none);
}
template <typename Product>
inline void fetching(Ahead& ahead, const Product& product) {
  if (!ahead.any()) {
    NoLines none;
    return product(none);
  }
  Lines lines = ahead.lines();
  product(lines);
  ahead.keep(lines);
}

}  // namespace
}  // namespace fastops::attention::cpu::FASTOPS_ISA
