// Short rows without mask, bias or per-row operands: as many rows at a time as a vector has lanes.
//
// What costs a short row its time is not the exp but the reductions over lanes, the division and
// their latency. A group of rows pays for each once: a tree of shuffles turns one vector of partial
// maxima (sums) per row into one vector with a row per lane. The exponentials wait in scratch
// while the next group is read; its loop writes them out, as in plain_rows.h. Every row runs
// through the same instructions whatever its place in the group, so results do not depend on how
// the rows are spread over threads.
#pragma once

#include "softmax/cpu/plain_rows.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int kGroup = VecF32::size;

// 1 / sum of each row of a group, a row a lane. A row of -inf alone sums to 0; the exponentials of
// any other row contain a 1.
inline VecF32 reciprocals(const ForwardParams& p, VecF32 sum) {
  const VecF32 nothing(p.zero_masked_rows ? 0.f : __builtin_nanf(""));
  return select(sum == VecF32(0.f), nothing, VecF32(1.f) / sum);
}

// Writes the lse of the rows from the cursor on where it is wanted. For log_softmax also what their
// inputs lose: the scaled maximum, and the lse less that.
template <Kind kKind>
void finish_logs(const ForwardParams& p, const PlainScale& scale, RowCursor cursor, int count,
                 VecF32 most, VecF32 shift, VecF32 sum, float* scaled_max, float* log_sum) {
  alignas(64) float max[kGroup], base[kGroup], total[kGroup];
  most.store(max);
  shift.store(base);
  sum.store(total);
  for (int r = 0; r < count; ++r) {
    const bool none = total[r] == 0;
    const double lse =
        none ? double(max[r])
             : scale.lse<kExact<kKind>>(max[r], base[r], double(__builtin_log2f(total[r])));
    if (p.lse) {
      cursor.at<float>(p.lse) = float(lse);
      cursor.next();
    }
    if (kKind != Kind::log_softmax) continue;
    scaled_max[r] = max[r] * scale.scale;
    log_sum[r] = float(lse - double(scaled_max[r]));
    if (none && p.zero_masked_rows) scaled_max[r] = log_sum[r] = 0;
  }
}

template <Kind kKind, int kDegree, bool kStream, typename Load, typename Store>
class SmallRows {
  using In = typename Load::Value;
  using Out = typename Store::Value;
  using Carry = LineCarry<Out>;
  static constexpr bool kKeep = kKind == Kind::softmax;

  // The group that comes next: its inputs, and their maxima lane by lane.
  struct Ahead {
    RowCursor cursor;
    const In* x[kGroup];
    VecF32 most[kGroup];

    Ahead(const Shape& shape, int64_t row) : cursor(shape, row) {}
  };

  // A group between being read and being written; count == 0: nothing to write.
  struct Group {
    int count = 0;
    float* values;
    const In* x[kGroup];
    Out* out[kGroup];
    alignas(64) float factor[kGroup];  // softmax: 1 / sum; log_softmax: the row maximum
    alignas(64) float log_sum[kGroup];
  };

 public:
  explicit SmallRows(const ForwardParams& p)
      : p_(p),
        n_(p.shape.n),
        padded_((n_ + kPair - 1) / kPair * kPair),
        whole_(n_ % kPair == 0 && (!kStream || (p.out && line_aligned(p.out, p.shape)))),
        scale_(plain_scale(p.scale)) {}

  static int64_t groups(int64_t rows) { return (rows + kGroup - 1) / kGroup; }

  void operator()(int64_t begin, int64_t end) const {
    // A group's exponentials, each row's where the group before had its own; then a row for the
    // general kernel.
    const int64_t group_floats = kGroup * padded_;
    const size_t fallback = RowScratch<VecF32>::bytes(n_);
    auto* memory =
        static_cast<float*>(thread_scratch(sizeof(float) * size_t(group_floats) + fallback));
    Group groups[2];
    groups[0].values = groups[1].values = memory;
    RowCursor cursor(p_.shape, begin * kGroup);
    Ahead ahead(p_.shape, begin * kGroup);
    locate(begin, ahead);
    for (int r = 0; r < kGroup; ++r) ahead.most[r] = max_lanes(ahead.x[r], n_);
    Carry carry;
    for (int64_t g = begin; g < end; ++g)
      group(cursor, g, end, ahead, groups[g & 1], groups[~g & 1], carry, memory + group_floats);
    flush(groups[~end & 1], carry);
    carry.flush();
    if (kStream) store_fence();
  }

 private:
  auto source(const Group& g, int r) const {
    if constexpr (kKeep) return ScaledExps{g.values + r * padded_, g.factor[r]};
    else return LogProbs<Load>{g.x[r], scale_.scale, g.factor[r], g.log_sum[r]};
  }
  auto writer(const Group& g, int r, Carry& carry) const {
    return Writer<Store, kStream, decltype(source(g, 0))>(source(g, r), g.out[r], n_, carry);
  }

  int count(int64_t g) const {
    const int64_t left = p_.shape.rows - g * kGroup;
    return int(left < kGroup ? left : kGroup);
  }

  void locate(int64_t g, Ahead& ahead) const {
    const int rows = count(g);
    for (int r = 0; r < kGroup; ++r) {
      // Rows that a last group lacks are computed from another, and never written.
      if (r >= rows) {
        ahead.x[r] = ahead.x[0];
        continue;
      }
      ahead.x[r] = static_cast<const In*>(advance(p_.x, ahead.cursor.offset(p_.x.row_stride)));
      ahead.cursor.next();
    }
  }

  void group(RowCursor& cursor, int64_t g, int64_t end, Ahead& ahead, Group& now, Group& before,
             Carry& carry, float* spare) const {
    const RowCursor start = cursor;
    const int rows = count(g);
    for (int r = 0; r < kGroup; ++r) {
      now.x[r] = ahead.x[r];
      if (r >= rows) continue;
      if (kKind != Kind::logsumexp)
        now.out[r] =
            static_cast<Out*>(const_cast<void*>(advance(p_.out, cursor.offset(p_.out.row_stride))));
      cursor.next();
    }
    const VecF32 most = transpose_reduce(ahead.most, [](VecF32 a, VecF32 b) { return max(a, b); });
    const bool more = g + 1 < end;
    if (more) locate(g + 1, ahead);
    const VecF32 low(-infinity<VecF32>()), shift = most * VecF32(scale_.base2);
    const bool huge =
        any(VecF32(kHugeShift) < shift) || any(both(shift < VecF32(-kHugeShift), low < most));
    alignas(64) float finite[kGroup];
    select(most == low, VecF32(0.f), kExact<kKind> ? most : shift).store(finite);

    VecF32 lanes[kGroup];
    if (whole_ && before.count == kGroup && more) {
      for (int r = 0; r < kGroup; ++r)
        exps(now, r, finite[r], Lookahead<In, true>(ahead.x[r], n_),
             Writer<Store, kStream, decltype(source(before, r)), true>(source(before, r),
                                                                       before.out[r], n_, carry),
             lanes, ahead);
    } else {
      for (int r = 0; r < kGroup; ++r) {
        const Lookahead<In> next(ahead.x[r], more ? n_ : 0);
        if (r < before.count) exps(now, r, finite[r], next, writer(before, r, carry), lanes, ahead);
        else exps(now, r, finite[r], next, NoWriter{}, lanes, ahead);
      }
    }
    before.count = 0;
    if (huge) {
      RowCursor again = start;
      for (int r = 0; r < rows; ++r, again.next())
        score_row<VecF32>(p_, again, RowScratch<VecF32>(spare, n_), kStream);
      return;
    }
    finish(start, rows, most, shift,
           transpose_reduce(lanes, [](VecF32 a, VecF32 b) { return a + b; }), now);
    if (kKind != Kind::logsumexp) now.count = rows;
  }

  template <typename Next, typename W>
  void exps(const Group& now, int r, float finite, Next next, W writer, VecF32* sums,
            Ahead& ahead) const {
    const ChunkResult row = exp_chunk<kDegree, kKeep, kExact<kKind>, Load>(
        now.x[r], n_, scale_.base2, finite, now.values + r * padded_, next, writer);
    sums[r] = row.sum;
    ahead.most[r] = row.next;
  }

  void finish(const RowCursor& cursor, int count, VecF32 most, VecF32 shift, VecF32 sum,
              Group& g) const {
    if constexpr (kKeep) reciprocals(p_, sum).store(g.factor);
    if (!kKeep || p_.lse)
      finish_logs<kKind>(p_, scale_, cursor, count, most, shift, sum, kKeep ? nullptr : g.factor,
                         g.log_sum);
  }

  void flush(Group& g, Carry& carry) const {
    for (int r = 0; r < g.count; ++r) writer(g, r, carry).finish();
    g.count = 0;
  }

  const ForwardParams& p_;
  const int64_t n_, padded_;
  const bool whole_;  // rows are whole units and, streamed, whole lines
  const PlainScale scale_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
