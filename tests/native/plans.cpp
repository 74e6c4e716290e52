// Which packing an N:M product reads, by what the CPU can do with bf16; which thread works on which
// rows of attention.
#include <initializer_list>
#include <vector>

#include "attention/cpu/schedule.h"
#include "harness.h"
#include "nm/cpu/heuristics.h"

namespace fastops::test {
namespace {

using nm::Kind;
using nm::Pattern;
using nm::cpu::Bf16;
using nm::cpu::plan;

constexpr Pattern kTwoOfFour{2, 4}, kOneOfFour{1, 4}, kThreeOfFour{3, 4}, kFiveOfEight{5, 8};
constexpr Bf16 kNone{}, kSlowPairs{true, false, false}, kFastPairs{true, true, false},
    kAmx{true, false, true};

FASTOPS_TEST(nm_plan_without_bf16_products) {
  for (const Pattern pattern : {kTwoOfFour, kOneOfFour, kThreeOfFour}) {
    CHECK(plan(pattern, 1, false, kNone) == Kind::stream);
    CHECK(plan(pattern, 8, false, kNone) == Kind::stream);
    CHECK(plan(pattern, 9, false, kNone) == Kind::panels);
    CHECK(plan(pattern, 1, true, kNone) == Kind::panels_transposed);
  }
}

FASTOPS_TEST(nm_plan_with_slow_pairs) {
  CHECK(plan(kTwoOfFour, 2, false, kSlowPairs) == Kind::pairs);
  CHECK(plan(kTwoOfFour, 3, false, kSlowPairs) == Kind::stream);
  CHECK(plan(kTwoOfFour, 1000, false, kSlowPairs) == Kind::panels);
}

FASTOPS_TEST(nm_plan_with_fast_pairs) {
  CHECK(plan(kTwoOfFour, 63, false, kFastPairs) == Kind::pairs);
  CHECK(plan(kTwoOfFour, 64, false, kFastPairs) == Kind::pair_panels);
  CHECK(plan(kOneOfFour, 1000, false, kFastPairs) == Kind::pairs);
  CHECK(plan(kFiveOfEight, 1000, false, kFastPairs) == Kind::pairs);
  CHECK(plan(kThreeOfFour, 63, false, kFastPairs) == Kind::pairs);
  CHECK(plan(kThreeOfFour, 64, false, kFastPairs) == Kind::pair_panels);
  CHECK(plan(kTwoOfFour, 64, true, kFastPairs) == Kind::panels_transposed);
}

FASTOPS_TEST(nm_plan_with_matrix_extensions) {
  CHECK(plan(kTwoOfFour, 2, false, kAmx) == Kind::pairs);
  CHECK(plan(kTwoOfFour, 8, false, kAmx) == Kind::stream);
  CHECK(plan(kTwoOfFour, 9, false, kAmx) == Kind::amx_tiles);
  CHECK(plan(kTwoOfFour, 1000, true, kAmx) == Kind::panels_transposed);
}

// Two heads of five rows, the first as long as all others.
class Tasks {
 public:
  explicit Tasks(int64_t workers) : queue_(lists(), 0, 0, 2, 2, 1) { queue_.share(workers); }

  // Whether `worker` was given a task, and the one that was announced to it if one was.
  bool take(int64_t worker) {
    attention::cpu::Task announced, task;
    const bool known = queue_.upcoming(worker, announced);
    if (!queue_.next(worker, task)) return false;
    CHECK(!known || (announced.head == task.head && announced.row == task.row));
    ++times[size_t(task.head * 5 + task.row)];
    return true;
  }

  std::vector<int> times = std::vector<int>(10);

 private:
  attention::BlockLists lists() const {
    attention::BlockLists l;
    l.rows = 5;
    l.columns = 4;
    l.offsets = offsets_;
    l.indices = indices_;
    l.partial_offsets = partial_offsets_;
    l.nnz = 8;
    return l;
  }

  static constexpr int64_t offsets_[6] = {0, 4, 5, 6, 7, 8}, partial_offsets_[6] = {};
  static constexpr int32_t indices_[8] = {0, 1, 2, 3, 0, 0, 0, 0};
  attention::cpu::TaskQueue queue_;
};

FASTOPS_TEST(attention_tasks_are_given_out_once) {
  for (const int64_t workers : {1, 2, 3, 20}) {
    Tasks in_turn(workers), alone(workers);
    for (bool any = true; any;) {
      any = false;
      for (int64_t w = 0; w < workers; ++w) any = in_turn.take(w) || any;
    }
    while (alone.take(workers - 1)) {
    }
    for (size_t i = 0; i < 10; ++i) CHECK(in_turn.times[i] == 1 && alone.times[i] == 1);
  }
}

FASTOPS_TEST(attention_shares_are_as_heavy) {
  Tasks tasks(2);
  for (int i = 0; i < 5; ++i) CHECK(tasks.take(0));
  for (size_t i = 0; i < 10; ++i) CHECK(tasks.times[i] == (i < 5));
}

}  // namespace
}  // namespace fastops::test
