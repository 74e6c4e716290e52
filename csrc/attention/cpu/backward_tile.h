// Weights and derivatives of scores, for queries or keys in the lanes: what both parts of the
// backward share.
#pragma once

#include "attention/cpu/chunks.h"
#include "attention/cpu/query_parts.h"
#include "cpu/scratch.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

constexpr int64_t kChunk = 64;  // rows of scores at a time: there are two such tiles

// lse; of an empty row +inf, which makes its weights 0.
inline VecF32 or_empty(VecF32 lse) { return select(lse == VecF32(-kInf), VecF32(kInf), lse); }

inline void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += L) VecF32(0.f).store(to + i);
}

template <int R>
inline void add(float* to, const VecF32 (&sum)[R]) {
  for (int r = 0; r < R; ++r) (VecF32::load(to + r * L) + sum[r]).store(to + r * L);
}

// What both parts hold for W queries, or W keys, in the lanes.
template <typename F, int R>
class Tile {
 protected:
  static constexpr int W = R * L;
  // Weights are rounded to bf16 before they are multiplied: 8.6e-5 is enough there.
  static constexpr int kDegree = F::paired ? 3 : 6;

  explicit Tile(const BackwardPlan& plan) : plan_(plan), p_(plan.p) {
    lay_thread_scratch([&](ScratchPieces& pieces) {
      const auto take = [&](int64_t count) { return pieces.take<float>(count); };
      first_ = take(F::depth(p_.head_dim) * W);
      second_ = take(F::depth(p_.value_dim) * W);
      p_rows_ = take(kChunk * W);
      ds_rows_ = take(kChunk * W);
      if (F::paired) {
        p_pairs_ = take(kChunk / 2 * W);
        ds_pairs_ = take(kChunk / 2 * W);
      }
      head_sums_ = take(p_.head_dim * W);
      value_sums_ = take(p_.value_dim * W);
      if (plan.parts.data) {
        float* const keys = take(QueryAdder<F, R>::key_room(p_.head_dim));
        queries_.lay(keys, take(QueryAdder<F, R>::pair_room(kChunk)), kChunk);
      }
    });
  }

  int64_t bytes(const Heads& t) const { return t.stride[2] * int64_t(size_of(p_.dtype)); }
  const char* at(const Heads& t, int64_t head, int64_t row) const {
    return row_at(t, p_.dtype, batch_, head, row);
  }

  // Products become P = exp(scale * product + shift(n, r)), in pairs too where those are wanted.
  // Only the difference, which is small where P matters, is brought to base 2.
  template <typename Shift>
  void weights(float* rows, int64_t count, float* pairs, const Shift& shift) const {
    const VecF32 scale(p_.scale), base(kLog2eF);
    by_pairs(count, pairs, [&](int64_t n, int r) {
      float* at = rows + n * W + r * L;
      const VecF32 p = exp2_weight<kDegree>(fma(VecF32::load(at), scale, shift(n, r)) * base);
      p.store(at);
      return p;
    });
  }

  // The same where a mask leaves elements out; lanes(n) has a bit for each lane.
  template <typename Shift, typename Lanes>
  void weights(float* rows, int64_t count, float* pairs, const Shift& shift,
               const Lanes& lanes) const {
    weights(rows, count, nullptr, shift);
    by_pairs(count, pairs, [&](int64_t n, int r) {
      float* at = rows + n * W + r * L;
      const VecF32 p = select(mask_of_bits(lanes(n) >> (r * L)), VecF32::load(at), VecF32(0.f));
      p.store(at);
      return p;
    });
  }

  // Products with grad_out (or v) become dS = P * (product - delta(n, r)), of which each(n, r, dS).
  template <typename Delta, typename Each>
  void derivatives(const float* p, float* rows, int64_t count, float* pairs, VecF32* total,
                   const Delta& delta, const Each& each) const {
    const auto derivative = [&](int64_t n, int r) {
      float* at = rows + n * W + r * L;
      const VecF32 ds = VecF32::load(p + n * W + r * L) * (VecF32::load(at) - delta(n, r));
      if (!F::paired || total) ds.store(at);
      each(n, r, ds);
      return ds;
    };
    by_pairs(count, pairs, derivative);
    if (!total) return;
    for (int64_t n = 0; n < count; ++n)
      for (int r = 0; r < R; ++r) total[r] = total[r] + VecF32::load(rows + n * W + r * L);
  }

  // row(n, r) for every n < count; what it gives also in pairs, zeros up to F::pad rows.
  template <typename Row>
  static void by_pairs(int64_t count, float* pairs, const Row& row) {
    VecF32 even[R], odd[R];
    int64_t n = 0;
    for (; n + 2 <= count; n += 2) {
      for (int r = 0; r < R; ++r) even[r] = row(n, r);
      for (int r = 0; r < R; ++r) odd[r] = row(n + 1, r);
      if (F::paired && pairs) pair_rows<R>(even, odd, pairs + n / 2 * W);
    }
    if (n < count) {
      for (int r = 0; r < R; ++r) even[r] = row(n, r);
      for (int r = 0; r < R; ++r) odd[r] = VecF32(0.f);
      if (F::paired && pairs) pair_rows<R>(even, odd, pairs + n / 2 * W);
      n += 2;
    }
    if (F::paired && pairs)
      for (; n < round_up(count, F::pad); n += 2) clear(pairs + n / 2 * W, W);
  }

  const BackwardPlan& plan_;
  const BackwardParams& p_;
  float *first_ = nullptr, *second_ = nullptr;  // q and grad_out, or k and v, in the lanes
  float *p_rows_ = nullptr, *ds_rows_ = nullptr, *p_pairs_ = nullptr, *ds_pairs_ = nullptr;
  float *head_sums_ = nullptr, *value_sums_ = nullptr;
  QueryAdder<F, R> queries_;
  int64_t batch_ = 0;
};

}  // namespace
}  // namespace fastops::attention::cpu::FASTOPS_ISA
