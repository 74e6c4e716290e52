// Which packing an N:M product reads, by what the CPU can do with bf16.
#include <initializer_list>

#include "harness.h"
#include "nm/cpu/heuristics.h"

namespace fastops::test {
namespace {

using nm::Kind;
using nm::Pattern;
using nm::cpu::Bf16;
using nm::cpu::plan;

constexpr Pattern kTwoOfFour{2, 4}, kOneOfFour{1, 4}, kThreeOfFour{3, 4};
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
  CHECK(plan(kThreeOfFour, 1000, false, kFastPairs) == Kind::pairs);
  CHECK(plan(kTwoOfFour, 64, true, kFastPairs) == Kind::panels_transposed);
}

FASTOPS_TEST(nm_plan_with_matrix_extensions) {
  CHECK(plan(kTwoOfFour, 2, false, kAmx) == Kind::pairs);
  CHECK(plan(kTwoOfFour, 8, false, kAmx) == Kind::stream);
  CHECK(plan(kTwoOfFour, 9, false, kAmx) == Kind::amx_tiles);
  CHECK(plan(kTwoOfFour, 1000, true, kAmx) == Kind::panels_transposed);
}

}  // namespace
}  // namespace fastops::test
