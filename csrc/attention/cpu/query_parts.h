// The gradients of queries, as rows of keys add them up: dq += dS k for the keys in the lanes of a
// tile, channels in the lanes here.
#pragma once

#include "attention/cpu/tiles.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

template <typename F, int R>
class QueryAdder {
 public:
  static constexpr int W = R * L;

  // Floats of scratch: for the keys, and for dS of `rows` queries as factors of pairs of keys.
  static int64_t key_room(int64_t channels) { return W * round_up(channels, W); }
  static int64_t pair_room(int64_t rows) { return F::paired ? rows * (W / 2) : 0; }
  void lay(float* keys, float* pairs, int64_t rows) {
    keys_ = keys;
    pairs_ = pairs;
    rows_ = rows;
  }

  // `count` rows of k, or the pairs of them, `step` bytes apart: a column of W channels after the
  // other.
  void set_keys(const char* k, int64_t step, int64_t count, int64_t channels) {
    count_ = count;
    depth_ = F::depth(count);
    channels_ = channels;
    float* to = keys_;
    for (int64_t c = 0; c < channels; c += W)
      for (int64_t i = 0; i < depth_; ++i)
        for (int r = 0; r < R; ++r, to += L) {
          const int64_t at = c + r * L, lanes = clamp(channels - at, 0, L);
          const float* from = reinterpret_cast<const float*>(k + i * step) + at;
          const VecF32 v = lanes == L ? VecF32::load(from) : VecF32::load(from, int(lanes));
          select(VecF32::first(int(lanes)), v, VecF32(0.f)).store(to);
        }
    if (F::paired && count < W)
      for (int64_t i = 0; i < pair_room(rows_); i += L) VecF32(0.f).store(pairs_ + i);
  }

  // Row n of dS, vector r; absent keys count as 0.
  void set_pairs(int64_t n, int r, VecF32 ds) const {
    bf16* const to = reinterpret_cast<bf16*>(pairs_ + n * (W / 2)) + r * L;
    const int64_t lanes = count_ - r * L;
    if (lanes >= L) ds.store(to);
    else if (lanes > 0) ds.store(to, int(lanes));
  }

  // to[n][channel] += for `count` queries; their dS is row `at` of the chunk: `rows`, or the pairs.
  void add(const float* rows, int64_t at, int64_t count, float* to, int64_t step) const {
    const int64_t row = (F::paired ? W / 2 : W) * int64_t(sizeof(float));
    const char* const ds = reinterpret_cast<const char*>(F::paired ? pairs_ : rows) + at * row;
    for (int64_t c = 0; c < channels_; c += W)
      dots<F, R>(
          ds, row, count, keys_ + c * depth_, depth_, to + c,
          [&](int64_t n, int r, VecF32 sum) {
            return VecF32::load(to + n * step + c + r * L) + sum;
          },
          step);
  }

 private:
  float *keys_ = nullptr, *pairs_ = nullptr;
  int64_t rows_ = 0, count_ = 0, depth_ = 0, channels_ = 0;
};

}  // namespace
}  // namespace fastops::attention::cpu::FASTOPS_ISA
