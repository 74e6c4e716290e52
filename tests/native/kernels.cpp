// The softmax launchers over dtypes, sizes, alignments, layouts and score arguments. A fast cover:
// each test walks one axis fully and draws the others at random from a fixed seed.
#include <random>

#include "cpu/isa.h"
#include "problem.h"
#include "toolbox.h"

namespace fastops::test {
namespace {

using softmax::Algorithm;
using softmax::Kind;

constexpr DType kFloats[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
constexpr Kind kKinds[] = {Kind::softmax, Kind::log_softmax, Kind::logsumexp};
constexpr int64_t kSizes[] = {1,   2,   3,   4,   5,   7,    8,    9,    15,   16,
                              17,  31,  32,  33,  48,  63,   64,   65,   127,  128,
                              129, 200, 255, 256, 257, 1000, 1024, 1025, 2049, 4097};

// Random choices for the axes a test does not walk.
class Draw {
 public:
  explicit Draw(uint32_t seed) : rng_(seed) {}

  int64_t below(int64_t n) { return int64_t(rng_() % uint64_t(n)); }
  bool chance(int percent) { return below(100) < percent; }
  DType dtype() { return kFloats[below(4)]; }
  Layout layout() { return static_cast<Layout>(below(3)); }
  Span span() { return chance(50) ? Span::absent : static_cast<Span>(1 + below(4)); }

  void placement(Case& c) {
    c.placement = int(below(6));
    c.seed = uint32_t(rng_());
    c.lse = chance(50);
    c.zero_masked_rows = chance(50);
  }
  void score_args(Case& c) {
    c.mask = span();
    c.bias = span();
    c.bias_f32 = chance(50);
    c.lengths = chance(30);
    c.row_scale = chance(30);
    c.scale = chance(50) ? 0.375 : 1.0;
    c.extremes = chance(20);
  }

 private:
  std::mt19937 rng_;
};

void check(const Case& c, bool backward) {
  if (!backward) return check_forward(c);
  Case b = c;
  if (b.kind != Kind::logsumexp) b.bias = Span::absent;
  check_backward(b);
}

// Few enough rows that the fast set stays fast, enough to fill a group of rows and leave a rest.
int64_t rows_for(int64_t n, Draw& draw) {
  return n >= 1000 ? 1 + draw.below(3) : 1 + draw.below(40);
}

void plain_rows(bool backward) {
  Draw draw(11);
  for (DType t : kFloats)
    for (Kind kind : kKinds)
      for (int64_t n : kSizes) {
        Case c;
        c.kind = kind;
        c.in = c.grad = c.out = t;
        c.size = {rows_for(n, draw), n};
        c.reduced = {1};
        draw.placement(c);
        check(c, backward);
      }
}

void full_rows(bool backward) {
  Draw draw(12);
  for (DType t : kFloats)
    for (Kind kind : kKinds)
      for (int64_t n : kSizes) {
        Case c;
        c.kind = kind;
        c.in = c.grad = c.out = t;
        c.size = {1 + draw.below(3), rows_for(n, draw), n};
        c.reduced = {2};
        draw.placement(c);
        draw.score_args(c);
        c.causal = draw.chance(30);
        check(c, backward);
      }
}

void mixed_dtypes(bool backward) {
  Draw draw(13);
  for (DType in : kFloats)
    for (DType out : kFloats)
      for (int i = 0; i < 9; ++i) {
        Case c;
        c.kind = kKinds[i % 3];
        c.in = in;
        c.out = out;
        c.grad = draw.dtype();
        const int64_t n = 1 + draw.below(i < 6 ? 300 : 3000);
        c.size = {1 + draw.below(9), n, 1 + draw.below(20)};
        c.reduced = {i % 2 + 1};
        draw.placement(c);
        if (i > 4) draw.score_args(c);
        check(c, backward);
      }
}

void columns(bool backward) {
  Draw draw(14);
  for (DType t : kFloats)
    for (int64_t inner : {1, 3, 16, 31, 64, 65, 200})
      for (int64_t n : {1, 2, 15, 16, 17, 33, 130, 700}) {
        if (n * inner > 40000) continue;
        Case c;
        c.kind = kKinds[draw.below(3)];
        c.in = c.grad = c.out = t;
        c.size = {1 + draw.below(3), n, inner};
        c.reduced = {1};
        draw.placement(c);
        if (draw.chance(50)) draw.score_args(c);
        check(c, backward);
      }
}

void strides(bool backward) {
  Draw draw(15);
  for (int i = 0; i < 250; ++i) {
    Case c;
    c.kind = kKinds[i % 3];
    c.in = c.grad = c.out = draw.dtype();
    if (draw.chance(30)) c.out = draw.dtype();
    c.size.clear();
    c.reduced.clear();
    const int64_t rank = 1 + draw.below(4);
    for (int d = 0; d < rank; ++d) {
      c.size.push_back(1 + draw.below(draw.chance(20) ? 70 : 9));
      if (draw.chance(50)) c.reduced.push_back(d);
    }
    if (c.reduced.empty()) c.reduced.push_back(int(draw.below(rank)));
    draw.placement(c);
    c.in_layout = draw.layout();
    c.grad_layout = draw.layout();
    c.out_layout = draw.layout();
    draw.score_args(c);
    c.causal = rank >= 2 && c.reduced.size() == 1 && c.reduced[0] == rank - 1 && draw.chance(50);
    check(c, backward);
  }
}

void in_place(bool backward) {
  Draw draw(16);
  for (DType t : kFloats)
    for (int64_t n : {5, 64, 300, 1024, 5000, 20000})
      for (int reduced : {0, 1}) {
        Case c;
        c.kind = kKinds[draw.below(2)];
        c.in = c.grad = c.out = t;
        c.size = {7, n};
        c.reduced = {reduced};
        c.in_place = true;
        draw.placement(c);
        if (draw.chance(30)) draw.score_args(c);
        check(c, backward);
      }
}

// Rows longer than a scratch, few rows on several threads, tensors larger than a cache share:
// right, and bit for bit the same on one thread and on three.
void long_rows(bool backward) {
  Draw draw(17);
  set_num_threads(3);
  for (Kind kind : kKinds)
    for (DType t : {DType::f32, DType::bf16})
      for (const std::vector<int64_t>& size :
           {std::vector<int64_t>{1, 300007}, {2, 70001}, {40, 2048}, {5, 1, 5000, 3}}) {
        Case c;
        c.kind = kind;
        c.in = c.grad = c.out = t;
        c.size = size;
        c.reduced = {int(size.size()) == 4 ? 2 : 1};
        draw.placement(c);
        if (draw.chance(40)) draw.score_args(c);
        check(c, backward);
        if (!backward || kind == Kind::logsumexp) c.in_place = false;
        const auto bytes = [&] { return backward ? backward_bytes(c) : forward_bytes(c); };
        const std::vector<uint8_t> several = bytes();
        set_num_threads(1);
        CHECK(several == bytes());
        set_num_threads(3);
      }
  set_num_threads(1);
}

FASTOPS_TEST(simd_toolbox) {
  switch (cpu::active_isa()) {
#ifdef FASTOPS_HAS_AVX512
    case cpu::Isa::avx512: return avx512::toolbox();
#endif
#ifdef FASTOPS_HAS_AVX2
    case cpu::Isa::avx2: return avx2::toolbox();
#endif
    default: return portable::toolbox();
  }
}

FASTOPS_TEST(forward_plain_rows) { plain_rows(false); }
FASTOPS_TEST(forward_full_rows) { full_rows(false); }
FASTOPS_TEST(forward_mixed_dtypes) { mixed_dtypes(false); }
FASTOPS_TEST(forward_columns) { columns(false); }
FASTOPS_TEST(forward_strides) { strides(false); }
FASTOPS_TEST(forward_in_place) { in_place(false); }
FASTOPS_TEST(forward_long_rows) { long_rows(false); }
FASTOPS_TEST(backward_plain_rows) { plain_rows(true); }
FASTOPS_TEST(backward_full_rows) { full_rows(true); }
FASTOPS_TEST(backward_mixed_dtypes) { mixed_dtypes(true); }
FASTOPS_TEST(backward_columns) { columns(true); }
FASTOPS_TEST(backward_strides) { strides(true); }
FASTOPS_TEST(backward_in_place) { in_place(true); }
FASTOPS_TEST(backward_long_rows) { long_rows(true); }

FASTOPS_TEST(forward_algorithms) {
  Draw draw(18);
  for (Algorithm algorithm : {Algorithm::online, Algorithm::two_pass, Algorithm::three_pass})
    for (DType t : kFloats)
      for (int64_t n : {1, 17, 64, 1000, 5000, 70000}) {
        Case c;
        c.kind = kKinds[draw.below(3)];
        c.in = c.out = t;
        c.size = {1 + draw.below(3), n};
        c.reduced = {1};
        c.algorithm = algorithm;
        draw.placement(c);
        if (draw.chance(40)) draw.score_args(c);
        check_forward(c);
      }
}

}  // namespace
}  // namespace fastops::test
