// Rows of any strides and dtypes brought into scratch, and results written back.
#pragma once

#include "cpu/parallel.h"
#include "cpu/pow.h"
#include "softmax/cpu/score_rows.h"
#include "softmax/relatives.h"

namespace fastops::softmax::cpu {
namespace {

// A walk over a row's segments: the innermost reduced dim at each place of the others.
template <typename F>
inline void for_segments(const Shape& shape, F segment) {
  const int inner = shape.reduce_dims - 1;
  const int64_t size = inner < 0 ? 1 : shape.reduce_size[inner];
  int64_t at[kMaxReduceDims] = {};
  for (int64_t begin = 0; begin < shape.n; begin += size) {
    segment(begin, size, at);
    for (int d = inner - 1; d >= 0; --d) {
      if (++at[d] < shape.reduce_size[d]) break;
      at[d] = 0;
    }
  }
}

inline int64_t segment_offset(const Shape& shape, const int64_t* at, const Operand& o) {
  int64_t sum = 0;
  for (int d = 0; d < shape.reduce_dims - 1; ++d) sum += at[d] * o.reduce_stride[d];
  return sum;
}

inline int64_t inner_stride(const Shape& shape, const Operand& o) {
  return shape.reduce_dims == 0 ? 1 : o.reduce_stride[shape.reduce_dims - 1];
}

inline bool contiguous(const Shape& shape, const Operand& o) {
  return shape.reduce_dims == 0 || (shape.reduce_dims == 1 && o.reduce_stride[0] == 1);
}

// Elements of scratch for a row of n: whole vectors, and one more to read beyond the end.
template <typename V>
constexpr int64_t padded(int64_t n) {
  return (n + V::size - 1) / V::size * V::size + 2 * V::size;
}

// A row in scratch: scores in the accumulation type, -inf where an element does not take part and
// up to padded<V>(n).
template <typename V>
struct Row {
  using S = typename V::Scalar;
  S max;
  bool nan;
  // NaN throughout: a NaN or an infinite score, whose difference to itself is none.
  bool broken() const { return nan || max == infinity<V>(); }
  bool empty() const { return !nan && max == -infinity<V>(); }
};

// Greatest elements of groups of a row: the lanes of each `step` vectors. A lower bound on any of
// the row's statistics that grow with the set of elements.
template <typename V>
struct Tops {
  typename V::Scalar* values = nullptr;  // padded with -inf to whole vectors
  int64_t step = 1;                      // vectors per group
  int64_t count = 0;

  static int64_t room(int64_t n) { return padded<V>(n); }
};

// next(j): the vector of scores from j on, -inf beyond the row's end.
template <typename V, typename F>
inline void scan(int64_t n, Row<V>& row, Tops<V>* tops, F next) {
  const V low(-infinity<V>());
  V most = low, bad(typename V::Scalar(0));
  const int64_t step = tops ? tops->step * V::size : n;
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t end = begin + step < n ? begin + step : n;
    V top = low;
    for (int64_t j = begin; j < end; j += V::size) {
      const V v = next(j);
      top = max(v, top);
      bad = select(is_nan(v), v, bad);
    }
    if (tops) {
      top.store(tops->values + count);
      count += V::size;
    }
    most = max(top, most);
  }
  if (tops) tops->count = count;
  row.max = hmax(most);
  row.nan = any(is_nan(bad));
}

// Scores of a row to `to`. Params have x, mask, lengths, causal and shape; `operand` is x or what
// stands in its place.
template <typename V, typename Params>
inline Row<V> load_row(const Params& p, const Operand& operand, const RowCursor& cursor,
                       typename V::Scalar scale, typename V::Scalar* to, Tops<V>* tops = nullptr) {
  using S = typename V::Scalar;
  const S low = -infinity<V>();
  const int64_t n = p.shape.n, length = cursor.length(p);
  Row<V> row;
  if (!p.mask && length == n && contiguous(p.shape, operand)) {
    const int64_t whole = n / V::size * V::size;
    for (int64_t j = whole; j < padded<V>(n); j += V::size) V(low).store(to + j);
    with_float(operand.dtype, [&](auto t) {
      using T = decltype(t);
      const T* x = static_cast<const T*>(operand.data) + cursor.offset(operand.row_stride);
      const V factor(scale);
      scan<V>(n, row, tops, [&](int64_t j) {
        if (j < whole) {
          const V v = V::load(x + j) * factor;
          v.store(to + j);
          return v;
        }
        (V::load(x + j, int(n - j)) * factor).store(to + j, int(n - j));
        return V::load(to + j);
      });
    });
    return row;
  }
  const uint8_t* mask =
      p.mask ? static_cast<const uint8_t*>(p.mask.data) + cursor.offset(p.mask.row_stride)
             : nullptr;
  with_float(operand.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(operand.data) + cursor.offset(operand.row_stride);
    const int64_t stride = inner_stride(p.shape, operand);
    const int64_t mask_stride = p.mask ? inner_stride(p.shape, p.mask) : 0;
    for_segments(p.shape, [&](int64_t begin, int64_t size, const int64_t* at) {
      const int64_t left = length - begin, count = left < 0 ? 0 : left < size ? left : size;
      const T* from = x + segment_offset(p.shape, at, operand);
      S* out = to + begin;
      if (stride != 1) {
        gather<V>(from, stride, count, out);
        if (scale != S(1))
          for (int64_t j = 0; j < count; ++j) out[j] *= scale;
      } else {
        const V factor(scale);
        int64_t j = 0;
        for (; j + V::size <= count; j += V::size) (V::load(from + j) * factor).store(out + j);
        if (j < count) (V::load(from + j, int(count - j)) * factor).store(out + j, int(count - j));
      }
      if (mask) {
        const uint8_t* m = mask + segment_offset(p.shape, at, p.mask);
        if (mask_stride == 1) {
          int64_t j = 0;
          for (; j + V::size <= count; j += V::size)
            select(V::load_mask(m + j), V::load(out + j), V(low)).store(out + j);
          for (; j < count; ++j)
            if (!m[j]) out[j] = low;
        } else {
          for (int64_t j = 0; j < count; ++j)
            if (!m[j * mask_stride]) out[j] = low;
        }
      }
      for (int64_t j = count; j < size; ++j) out[j] = low;
    });
  });
  for (int64_t j = n; j < padded<V>(n); ++j) to[j] = low;
  scan<V>(n, row, tops, [&](int64_t j) { return V::load(to + j); });
  return row;
}

// All elements of a row of dy (or another operand of x's shape) to `to`, 0 beyond the end.
template <typename V>
inline void load_all(const Shape& shape, const Operand& operand, const RowCursor& cursor,
                     typename V::Scalar* to) {
  with_float(operand.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(operand.data) + cursor.offset(operand.row_stride);
    const int64_t stride = inner_stride(shape, operand);
    for_segments(shape, [&](int64_t begin, int64_t size, const int64_t* at) {
      gather<V>(x + segment_offset(shape, at, operand), stride, size, to + begin);
    });
  });
  for (int64_t j = shape.n; j < padded<V>(shape.n); ++j) to[j] = 0;
}

// Writes value(j), a vector of a row's results from j on, to n places in one piece; `stream` past
// the caches. value may read scratch beyond the row's end. It is compiled in no more often than
// speed asks for: once for whole vectors, once for the ends.
template <typename V, typename T, typename F>
inline void emit_piece(T* to, int64_t n, bool stream, const F& value) {
  const auto end = [&](int64_t j, int64_t count)
                       __attribute__((noinline)) { value(j).store(to + j, int(count)); };
  int64_t j = 0;
  if (stream) {  // from the first whole vector of memory on
    constexpr int64_t bytes = V::size * sizeof(T);
    const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(to) % bytes / sizeof(T));
    j = head < n ? head : n;
    if (j > 0) end(0, j);
    for (; j + V::size <= n; j += V::size) value(j).stream(to + j);
  } else {
    for (; j + V::size <= n; j += V::size) value(j).store(to + j);
  }
  if (j < n) end(j, n - j);
}

// `fill(j, to)` gives the vector from j on: without the type of a map, so that rows in several
// pieces are compiled once.
template <typename V>
[[gnu::noinline]] void emit_segments(const Shape& shape, const Operand& out,
                                     const RowCursor& cursor, const void* value,
                                     void (*fill)(const void*, int64_t, typename V::Scalar*)) {
  const int64_t stride = inner_stride(shape, out);
  with_float(out.dtype, [&](auto t) {
    using T = decltype(t);
    T* row = static_cast<T*>(out.data) + cursor.offset(out.row_stride);
    for_segments(shape, [&](int64_t begin, int64_t size, const int64_t* at) {
      T* segment = row + segment_offset(shape, at, out);
      alignas(64) typename V::Scalar lane[V::size];
      alignas(64) T result[V::size];
      for (int64_t j = 0; j < size; j += V::size) {
        fill(value, begin + j, lane);
        V::load(lane).store(result);
        for (int64_t i = 0; i < V::size && j + i < size; ++i) segment[(j + i) * stride] = result[i];
      }
    });
  });
}

// The same as the row of `out`, in as many pieces as it has.
template <typename V, typename F>
inline void emit(const Shape& shape, const Operand& out, const RowCursor& cursor, bool stream,
                 F value) {
  if (!contiguous(shape, out)) {
    const F copy = value;  // were its own address known, it would be read from memory below
    return emit_segments<V>(shape, out, cursor, &copy,
                            [](const void* f, int64_t j, typename V::Scalar* to) {
                              (*static_cast<const F*>(f))(j).store(to);
                            });
  }
  with_float(out.dtype, [&](auto t) {
    using T = decltype(t);
    emit_piece<V>(static_cast<T*>(out.data) + cursor.offset(out.row_stride), shape.n, stream,
                  value);
  });
}

// One element of a row, by its place among the reduced elements.
inline int64_t element_offset(const Shape& shape, const Operand& o, int64_t j) {
  int64_t sum = 0;
  for (int d = shape.reduce_dims - 1; d >= 0; --d) {
    sum += j % shape.reduce_size[d] * o.reduce_stride[d];
    j /= shape.reduce_size[d];
  }
  return sum;
}

template <typename V>
inline void store_element(const Shape& shape, const Operand& out, const RowCursor& cursor,
                          int64_t j, typename V::Scalar value) {
  with_float(out.dtype, [&](auto t) {
    using T = decltype(t);
    T* to = static_cast<T*>(out.data) + cursor.offset(out.row_stride);
    V(value).store(to + element_offset(shape, out, j), 1);
  });
}

// Sum of f(j), a vector, over a padded row: in fp64 between blocks, so that long rows lose nothing.
template <typename V, typename F>
inline double sum_over(int64_t n, F f) {
  using S = typename V::Scalar;
  double total = 0;
  constexpr int64_t block = 64 * V::size;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = begin + block < n ? begin + block : n;
    V sum(S(0));
    for (int64_t j = begin; j < end; j += V::size) sum = sum + f(j);
    total += double(hsum(sum));
  }
  return total;
}

// body(cursor, first scratch row, second, ...) for every row, rows spread over threads.
template <typename V, typename Body>
inline void for_rows(const Shape& shape, int arrays, bool stream, const Body& body) {
  using S = typename V::Scalar;
  // Whole lines, and five more: arrays a power of two apart would meet in the same cache sets.
  const int64_t pitch = (padded<V>(shape.n) + 15) / 16 * 16 + 320 / int64_t(sizeof(S));
  parallel_for(0, shape.rows, rows_per_task(shape.n), [&](int64_t begin, int64_t end) {
    S* scratch = static_cast<S*>(thread_scratch(size_t(arrays * pitch) * sizeof(S)));
    RowCursor cursor(shape, begin);
    for (int64_t row = begin; row < end; ++row, cursor.next()) body(cursor, scratch, pitch);
    if (stream) store_fence();
  });
}

template <typename V, typename Params>
inline typename V::Scalar scale_of(const Params& p, const RowCursor& cursor) {
  using S = typename V::Scalar;
  return p.row_scale ? S(p.scale) * cursor.template at<S>(p.row_scale) : S(p.scale);
}

inline bool streams(const Shape& shape, const Operand& out) {
  return out && contiguous(shape, out) &&
         use_streaming(shape.rows * shape.n * int64_t(size_of(out.dtype)));
}

}  // namespace
}  // namespace fastops::softmax::cpu
