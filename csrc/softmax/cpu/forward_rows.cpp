// Forward over rows whose reduced dim is contiguous: picks the kernel and spreads the rows.
#include "cpu/parallel.h"
#include "softmax/cpu/flat_rows.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/plain_rows.h"
#include "softmax/cpu/reread_rows.h"
#include "softmax/cpu/score_rows.h"
#include "softmax/cpu/small_rows.h"
#include "softmax/cpu/small_score_rows.h"
#include "softmax/cpu/tiny_rows.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

bool streams(const ForwardParams& p) {
  return p.out && use_streaming(p.shape.rows * p.shape.n * int64_t(size_of(p.out.dtype)));
}

template <typename V>
void run_score_rows(const ForwardParams& p) {
  // Lines written half past the caches and half through them cost more than none past them.
  const bool stream = streams(p) && line_aligned(p.out, p.shape);
  const int64_t n = p.shape.n;
  if constexpr (__is_same(V, VecF32)) {
    if (n <= kSmallScoreRow) {
      const int64_t groups = SmallScoreRows::groups(p.shape.rows);
      return parallel_for(0, groups, rows_per_task(n * kGroup), SmallScoreRows(p, stream));
    }
  }
  parallel_for(0, p.shape.rows, rows_per_task(n), [&](int64_t begin, int64_t end) {
    RowScratch<V> scratch(thread_scratch(RowScratch<V>::bytes(n)), n);
    RowCursor cursor(p.shape, begin);
    for (int64_t row = begin; row < end; ++row, cursor.next())
      score_row<V>(p, cursor, scratch, stream);
    if (stream) store_fence();
  });
}

template <Kind kKind, int kDegree, bool kStream, typename Load, typename Store>
void run_plain_rows(const ForwardParams& p) {
  using Flat = FlatRows<kKind, kDegree, kStream, typename Load::Value, typename Store::Value>;
  const int64_t n = p.shape.n, rows = p.shape.rows;
  if (reread_rows(p.algorithm, rows, n)) {
    const RereadRows<kKind, kDegree, kStream, Load, Store> kernel(p);
    if (share_rows(rows, n)) kernel.share();
    else parallel_for(0, rows, rows_per_task(n), kernel);
  } else if (Flat::takes(p) && flat_row(n, kGroup)) {
    parallel_for(0, (rows + kGroup - 1) / kGroup, rows_per_task(n * kGroup), Flat(p));
  } else if (small_row(n, n * int64_t(sizeof(typename Load::Value)), kPair)) {
    using Kernel = SmallRows<kKind, kDegree, kStream, Load, Store>;
    parallel_for(0, Kernel::groups(rows), rows_per_task(n * kGroup), Kernel(p));
  } else {
    parallel_for(0, rows, rows_per_task(n), PlainRows<kKind, kDegree, kStream, Load, Store>(p));
  }
}

template <Kind kKind, int kDegree, typename Load, typename Store>
void run_plain_rows(const ForwardParams& p) {
  if constexpr (kStreams)
    if (streams(p)) return run_plain_rows<kKind, kDegree, true, Load, Store>(p);
  run_plain_rows<kKind, kDegree, false, Load, Store>(p);
}

bool tiny(const ForwardParams& p) {
  return p.shape.n <= kTinyRow && !reread_rows(p.algorithm, p.shape.rows, p.shape.n);
}

template <Kind kKind, typename In, typename Out>
void run_tiny_rows(const ForwardParams& p) {
  const int64_t n = p.shape.n, rows = p.shape.rows;
  parallel_for(0, (rows + kGroup - 1) / kGroup, rows_per_task(n * kGroup),
               TinyRows<kKind, In, Out>(p));
}

template <typename Load, typename Store>
void run_plain_kind(const ForwardParams& p) {
  using Out = typename Store::Value;
  if (tiny(p)) {
    using In = typename Load::Value;
    if (p.kind == Kind::log_softmax) return run_tiny_rows<Kind::log_softmax, In, Out>(p);
    return run_tiny_rows<Kind::softmax, In, Out>(p);
  }
  // Half results hide the error of a shorter polynomial; an fp32 lse would not.
  constexpr int kShort = __is_same(Out, float) ? 5 : __is_same(Out, bf16) ? 3 : 4;
  if (p.kind == Kind::log_softmax) return run_plain_rows<Kind::log_softmax, 5, Load, Store>(p);
  if (p.lse) return run_plain_rows<Kind::softmax, 5, Load, Store>(p);
  run_plain_rows<Kind::softmax, kShort, Load, Store>(p);
}

// True if a plain kernel took the job.
bool run_plain(const ForwardParams& p) {
  if (!plain_scores(p) || p.x.dtype == DType::f64 || (p.out && p.out.dtype == DType::f64))
    return false;
  return with_float(p.x.dtype, [&](auto in) {
    using In = decltype(in);
    if constexpr (__is_same(In, double)) {
      return false;
    } else if (!p.out) {
      if (tiny(p)) run_tiny_rows<Kind::logsumexp, In, In>(p);
      else run_plain_rows<Kind::logsumexp, 5, false, Natural<In>, Natural<In>>(p);
      return true;
    } else {
      return with_float(p.out.dtype, [&](auto out) {
        using Out = decltype(out);
        if constexpr (__is_same(Out, double)) {
          return false;
        } else if constexpr (!__is_same(In, Out) && !__is_same(Out, float)) {
          return false;  // narrowing is rare, and each pair is seconds of compiling
        } else {
          if (__is_same(In, bf16) && __is_same(Out, bf16) && line_aligned(p.out, p.shape)) {
            if constexpr (__is_same(In, bf16) && __is_same(Out, bf16))
              run_plain_kind<BF16Pairs, BF16Pairs>(p);
          } else {
            run_plain_kind<Natural<In>, Natural<Out>>(p);
          }
          return true;
        }
      });
    }
  });
}

}  // namespace

void forward_rows(const ForwardParams& p) {
  if (run_plain(p)) return;
  const DType out = p.out ? p.out.dtype : p.x.dtype;
  if (accumulator(p.x.dtype, out) == DType::f64) run_score_rows<VecF64>(p);
  else run_score_rows<VecF32>(p);
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
