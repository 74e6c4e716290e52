// What the forward and the backward of the maps share: a row's parameters, and the maps that need
// no threshold.
#pragma once

#include "softmax/cpu/relatives/kernels.h"
#include "softmax/cpu/relatives/root.h"

namespace fastops::softmax::cpu {
namespace {

// Calls f with the Power of alpha as a constant.
template <typename F>
inline void with_power(double alpha, F f) {
  switch (power_of(alpha)) {
    case Power::exponential: return f.template operator()<Power::exponential>();
    case Power::linear: return f.template operator()<Power::linear>();
    case Power::square: return f.template operator()<Power::square>();
    case Power::general: return f.template operator()<Power::general>();
  }
}

// entmax alone, of rows in one piece: no operand but x and, of a gradient, dy.
inline bool plain_entmax(const MapParams& p) {
  return p.map == Map::entmax && p.out && !p.target && !p.row_alpha && !p.mask && !p.lengths &&
         !p.causal && contiguous(p.shape, p.x) && contiguous(p.shape, p.out);
}
// The same of scores: entmax forward, where a score's order is x's.
inline bool plain_entmax_forward(const MapParams& p) {
  return plain_entmax(p) && p.scale > 0 && !p.row_scale;
}

template <typename V>
inline double alpha_of(const MapParams& p, const RowCursor& cursor) {
  return p.row_alpha ? double(cursor.at<typename V::Scalar>(p.row_alpha)) : p.alpha;
}

constexpr bool valid_alpha(double alpha) { return alpha > 0 && alpha <= 4; }

template <typename V>
constexpr V nan_of() {
  return V(typename V::Scalar(__builtin_nanf("")));
}

// exp(s - c) - exp(-c) with c = max(m, 0). Near 0 the difference would lose what expm1 keeps.
template <typename V>
struct Softpick {
  using S = typename V::Scalar;
  V c, down;

  explicit Softpick(S max) : c(max > 0 ? max : S(0)), down(exp_below(max > 0 ? -max : S(0))) {}
  V exponential(V s) const { return exp_below(s - c); }
  V operator()(V s) const {
    const V one(S(1)), away = exponential(s) - down;
    const auto near = magnitude(s) < one;
    return any(near) ? select(near, expm1(s) * down, away) : away;
  }
};

// t of stablemax: s + 1 above 0, 1 / (1 - s) below.
template <typename V>
inline V stable(V s) {
  const V one(typename V::Scalar(1)), zero(typename V::Scalar(0));
  return select(s < zero, one / (one - s), s + one);
}

// What t is multiplied by so that a row of t adds up without overflow.
template <typename S>
constexpr S stable_scale(S max) {
  return max > S(sizeof(S) == 8 ? 1e300 : 1e30) ? S(0x1p-40) : S(1);
}

// log t, with its sign: log1p(|s|), negative below 0; -inf for -inf.
template <typename V>
inline V log_stable(V s) {
  const V zero(typename V::Scalar(0)), low(-infinity<V>());
  const V l = log1p(magnitude(s));
  return select(s == low, low, select(s < zero, zero - l, l));
}

}  // namespace
}  // namespace fastops::softmax::cpu
