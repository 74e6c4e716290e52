// Forward over rows whose reduced dim is contiguous.
#include "cpu/parallel.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/score_rows.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

template <typename V>
void run_score_rows(const ForwardParams& p) {
  const bool stream =
      p.out && use_streaming(p.shape.rows * p.shape.n * int64_t(size_of(p.out.dtype)));
  fastops::cpu::parallel_for(
      0, p.shape.rows, rows_per_task(p.shape.n), [&](int64_t begin, int64_t end) {
        RowScratch<V> scratch(fastops::cpu::thread_scratch(RowScratch<V>::bytes(p.shape.n)),
                              p.shape.n);
        RowCursor cursor(p.shape, begin);
        for (int64_t row = begin; row < end; ++row, cursor.next())
          score_row<V>(p, cursor, scratch, stream);
        if (stream) fastops::cpu::store_fence();
      });
}

}  // namespace

void forward_rows(const ForwardParams& p) {
  const DType out = p.out ? p.out.dtype : p.x.dtype;
  if (accumulator(p.x.dtype, out) == DType::f64) run_score_rows<VecF64>(p);
  else run_score_rows<VecF32>(p);
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
