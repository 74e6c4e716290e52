// Reductions across memory: dim != -1, and any strides and dtypes at all. A block is `lanes` rows
// (or packs of rows) wide and `parts` threads deep; each part walks every parts-th element, the
// parts are combined in shared memory, and a second walk (from L2 for most shapes) writes.
#pragma once

#include "softmax/cuda/backward.cuh"
#include "softmax/cuda/rows.cuh"

namespace fastops::softmax::cuda {

inline constexpr int kWalkThreads = 256;
inline constexpr int kWalkUnroll = 4;

// A long sum in two levels, so that its error grows with the square root of the length's root.
template <typename Acc>
struct LongSum {
  static constexpr int kInner = 128;
  Acc inner = 0, outer = 0;
  int count = 0;

  __device__ __forceinline__ void add(Acc v) {
    inner += v;
    if (++count == kInner) {
      outer += inner;
      inner = 0;
      count = 0;
    }
  }
  __device__ __forceinline__ void scale(Acc factor) {
    inner *= factor;
    outer *= factor;
  }
  __device__ __forceinline__ Acc total() const { return inner + outer; }
};

template <typename Acc>
struct LongMaxSum {
  Acc max = -infinity<Acc>();
  LongSum<Acc> sum;

  // A batch of scores that is as good as simultaneous.
  template <int kCount>
  __device__ __forceinline__ void add(const Acc (&s)[kCount]) {
    Acc batch = s[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) batch = fastops::cuda::maximum(batch, s[i]);
    if (batch > max) {
      sum.scale(rescale(max, batch));
      max = batch;
    }
    const Acc from = base(max);
    Acc total = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) total += exponential(s[i] - from);
    sum.add(total);
  }
  __device__ __forceinline__ MaxSum<Acc> total() const { return {max, sum.total()}; }
};

// Combines the parts of each column of `shared` ([part][column], `columns` wide) in a fixed tree;
// every part returns the result.
template <typename Stat, typename Merge>
__device__ __forceinline__ Stat combine_parts(Stat* shared, Stat own, int part, int parts,
                                              int column, int columns, const Merge& merge) {
  Stat* slot = shared + part * columns + column;
  *slot = own;
  __syncthreads();
  for (int half = parts / 2; half > 0; half /= 2) {
    if (part < half) *slot = merge(*slot, slot[half * columns]);
    __syncthreads();
  }
  return shared[column];
}

template <typename Acc>
struct SumLive {
  Acc sum, live;
};

template <typename Acc>
__device__ __forceinline__ SumLive<Acc> merge_sum_live(SumLive<Acc> a, SumLive<Acc> b) {
  return {a.sum + b.sum, fastops::cuda::maximum(a.live, b.live)};
}

// softmax, log_softmax and logsumexp over columns of memory, 16 bytes of neighbouring rows a
// thread.
//
//   bytes     x twice (the second time mostly from L2), out once
//   barriers  1 + log2(parts), each for one element of a pack at a time
//   shared    one statistic a thread
//   in flight 4 vectors a thread
template <typename In>
__global__ __launch_bounds__(kWalkThreads,
                             1) void column_forward_kernel(const __grid_constant__ ForwardParams p,
                                                           int lanes, int parts) {
  using Acc = AccOf<In>;
  constexpr int kV = kVec<In>;
  __shared__ MaxSum<Acc> shared[kWalkThreads];
  const int column = threadIdx.x % lanes, part = threadIdx.x / lanes;
  const int64_t packs = p.shape.row_size[p.shape.row_dims - 1] / kV;
  const int64_t tiles = (packs + lanes - 1) / lanes;
  int64_t tile;
  const int64_t outer = divide(linear_block(), tiles, tile);
  if (outer * packs * kV >= p.shape.rows) return;
  const int64_t pack = tile * lanes + column;
  const bool active = pack < packs;
  const int64_t row = (outer * packs + (active ? pack : 0)) * kV;
  const int64_t n = active ? p.shape.n : 0;

  const In* x = static_cast<const In*>(p.x.data) + row_offset(p, row, p.x.row_stride);
  const int64_t step = p.x.reduce_stride[0];
  const Acc scale = static_cast<Acc>(p.scale);
  const uint64_t fill =
      p.scale < 0 ? fastops::cuda::Element<In>::kInfinity : fastops::cuda::kNegativeInfinity<In>;

  LongMaxSum<Acc> stat[kV];
#pragma unroll 1
  for (int64_t j0 = part; j0 < n; j0 += parts * kWalkUnroll) {
    Raw raw[kWalkUnroll];
#pragma unroll
    for (int k = 0; k < kWalkUnroll; ++k) {
      raw[k] = fastops::cuda::raw_of(fill, fill);
      const int64_t j = j0 + k * parts;
      if (j < n) raw[k] = ptx::ld_global_128(x + j * step);
    }
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      Acc s[kWalkUnroll];
#pragma unroll
      for (int k = 0; k < kWalkUnroll; ++k) s[k] = fastops::cuda::element<In>(raw[k], i) * scale;
      stat[i].add(s);
    }
  }

  RowFactor<Acc> factor[kV];
  const bool log = p.kind != Kind::softmax;
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const MaxSum<Acc> total =
        combine_parts(shared, stat[i].total(), part, parts, column, lanes, merge_max_sum<Acc>);
    __syncthreads();
    factor[i] = row_factor(log, p.zero_masked_rows, total);
    if (active && part == 0 && p.lse.data != nullptr)
      static_cast<Acc*>(p.lse.data)[row_offset(p, row + i, p.lse.row_stride)] = log_sum_exp(total);
  }
  if (p.out.data == nullptr) return;

  char* out = static_cast<char*>(p.out.data) +
              row_offset(p, row, p.out.row_stride) * element_bytes(p.out.dtype);
  const int64_t out_step = p.out.reduce_stride[0] * element_bytes(p.out.dtype);
#pragma unroll 2
  for (int64_t j = part; j < n; j += parts) {
    const Raw raw = ptx::ld_global_128(x + j * step);
    Acc y[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      const Acc t = fastops::cuda::element<In>(raw, i) * scale - factor[i].base;
      y[i] = log ? t - factor[i].factor : exponential(t) * factor[i].factor;
    }
    store_as<In>(p.out.dtype, out + j * out_step, 0, kV, true, y);
  }
}

// The backward of softmax and log_softmax over columns of memory.
//
//   bytes     y and dy twice (the second time mostly from L2), dx once
//   barriers  1 + log2(parts), each for one element of a pack at a time
//   shared    one statistic a thread
//   in flight 4 vectors a thread
template <typename In>
__global__ __launch_bounds__(kWalkThreads, 1) void column_backward_kernel(
    const __grid_constant__ BackwardParams p, int lanes, int parts) {
  using Acc = AccOf<In>;
  constexpr int kV = kVec<In>, kUnroll = 2;
  __shared__ SumLive<Acc> shared[kWalkThreads];
  const int column = threadIdx.x % lanes, part = threadIdx.x / lanes;
  const int64_t packs = p.shape.row_size[p.shape.row_dims - 1] / kV;
  const int64_t tiles = (packs + lanes - 1) / lanes;
  int64_t tile;
  const int64_t outer = divide(linear_block(), tiles, tile);
  if (outer * packs * kV >= p.shape.rows) return;
  const int64_t pack = tile * lanes + column;
  const bool active = pack < packs;
  const int64_t row = (outer * packs + (active ? pack : 0)) * kV;
  const int64_t n = active ? p.shape.n : 0;
  const bool log = p.kind == Kind::log_softmax;

  const In* y = static_cast<const In*>(p.y.data) + row_offset(p, row, p.y.row_stride);
  const In* dy = static_cast<const In*>(p.dy.data) + row_offset(p, row, p.dy.row_stride);
  const int64_t y_step = p.y.reduce_stride[0], dy_step = p.dy.reduce_stride[0];

  LongSum<Acc> sum[kV];
  Acc live[kV] = {};
#pragma unroll 1
  for (int64_t j0 = part; j0 < n; j0 += parts * kUnroll) {
    Raw raw_y[kUnroll], raw_dy[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t j = min(j0 + k * parts, n - 1);
      raw_y[k] = ptx::ld_global_128(y + j * y_step);
      raw_dy[k] = ptx::ld_global_128(dy + j * dy_step);
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (j0 + k * parts >= n) break;
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        const Acc yi = fastops::cuda::element<In>(raw_y[k], i);
        const Acc dyi = fastops::cuda::element<In>(raw_dy[k], i);
        sum[i].add(log ? dyi : yi * dyi);
        if (!(yi == -infinity<Acc>())) live[i] = Acc(1);
      }
    }
  }

  Acc c[kV], factor[kV];
  uint32_t masked_out = 0;
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const SumLive<Acc> total = combine_parts(shared, SumLive<Acc>{sum[i].total(), live[i]}, part,
                                             parts, column, lanes, merge_sum_live<Acc>);
    __syncthreads();
    c[i] = total.sum;
    if (p.dlse.data != nullptr)
      c[i] -= static_cast<const Acc*>(p.dlse.data)[row_offset(p, row + i, p.dlse.row_stride)];
    factor[i] = static_cast<Acc>(p.scale);
    if (p.row_scale.data != nullptr)
      factor[i] *=
          static_cast<const Acc*>(p.row_scale.data)[row_offset(p, row + i, p.row_scale.row_stride)];
    if (log && p.zero_masked_rows && total.live == Acc(0)) masked_out |= 1u << i;
  }

  char* dx = static_cast<char*>(p.dx.data) +
             row_offset(p, row, p.dx.row_stride) * element_bytes(p.dx.dtype);
  const int64_t dx_step = p.dx.reduce_stride[0] * element_bytes(p.dx.dtype);
#pragma unroll 2
  for (int64_t j = part; j < n; j += parts) {
    const Raw raw_y = ptx::ld_global_128(y + j * y_step);
    const Raw raw_dy = ptx::ld_global_128(dy + j * dy_step);
    Acc d[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      const Acc yi = fastops::cuda::element<In>(raw_y, i);
      const Acc dyi = fastops::cuda::element<In>(raw_dy, i);
      const Acc ds = log ? dyi - exponential(yi) * c[i] : yi * (dyi - c[i]);
      d[i] = masked_out >> i & 1 ? Acc(0) : ds * factor[i];
    }
    store_as<In>(p.dx.dtype, dx + j * dx_step, 0, kV, true, d);
  }
}

// Offset of element j of a row in an operand.
__device__ __forceinline__ int64_t element_offset(const Shape& shape, const int64_t* strides,
                                                  int64_t j) {
  int64_t offset = 0;
#pragma unroll 1
  for (int d = shape.reduce_dims - 1; d >= 0; --d) {
    int64_t at = j;
    if (d > 0) j = divide(j, shape.reduce_size[d], at);
    offset += at * strides[d];
  }
  return offset;
}

// A row of the strided kernels: everything at run time.
template <typename Acc>
struct AnyRow {
  int64_t x, mask, bias, limit;
  Acc scale;

  template <typename Params>
  __device__ __forceinline__ static AnyRow locate(const Params& p, const Operand& x, int64_t row) {
    AnyRow r;
    r.x = row_offset(p, row, x.row_stride);
    r.mask = row_offset(p, row, p.mask.row_stride);
    r.bias = row_offset(p, row, p.bias.row_stride);
    r.limit = valid_length(p, row);
    r.scale = static_cast<Acc>(p.scale);
    if (p.row_scale.data != nullptr)
      r.scale *=
          static_cast<const Acc*>(p.row_scale.data)[row_offset(p, row, p.row_scale.row_stride)];
    return r;
  }

  template <typename Params>
  __device__ __forceinline__ bool takes_part(const Params& p, int64_t j) const {
    if (j >= limit) return false;
    if (p.mask.data == nullptr) return true;
    const int64_t i = mask + element_offset(p.shape, p.mask.reduce_stride, j);
    return static_cast<const uint8_t*>(p.mask.data)[i] != 0;
  }

  // -inf where j does not take part.
  template <typename Params>
  __device__ __forceinline__ Acc score(const Params& p, const Operand& operand, int64_t j) const {
    if (!takes_part(p, j)) return -infinity<Acc>();
    Acc s = scale * load_any<Acc>(operand.dtype, operand.data,
                                  x + element_offset(p.shape, operand.reduce_stride, j));
    if (p.bias.data != nullptr)
      s += load_any<Acc>(p.bias.dtype, p.bias.data,
                         bias + element_offset(p.shape, p.bias.reduce_stride, j));
    return s;
  }
};

// Where a thread of the strided kernels works: neighbours go where memory is dense.
struct Place {
  int column, part;
};
__device__ __forceinline__ Place place(int lanes, int parts, bool rows_fast) {
  const int t = threadIdx.x;
  return rows_fast ? Place{t % lanes, t / lanes} : Place{t / parts, t % parts};
}

// Any strides, any dtypes.
//
//   bytes     inputs twice, out once, as the strides allow
//   barriers  1 + log2(parts)
//   shared    one statistic a thread
template <typename Acc>
__global__ __launch_bounds__(kWalkThreads,
                             1) void strided_forward_kernel(const __grid_constant__ ForwardParams p,
                                                            int lanes, int parts, bool rows_fast) {
  __shared__ MaxSum<Acc> shared[kWalkThreads];
  const Place at = place(lanes, parts, rows_fast);
  const int64_t index = linear_block() * lanes + at.column;
  const bool active = index < p.shape.rows;
  const int64_t row = active ? index : 0;
  const int64_t n = active ? p.shape.n : 0;
  const AnyRow<Acc> any = AnyRow<Acc>::locate(p, p.x, row);

  LongMaxSum<Acc> stat;
#pragma unroll 1
  for (int64_t j0 = at.part; j0 < n; j0 += parts * kWalkUnroll) {
    Acc s[kWalkUnroll];
#pragma unroll
    for (int k = 0; k < kWalkUnroll; ++k) s[k] = any.score(p, p.x, j0 + k * parts);
    stat.add(s);
  }
  const MaxSum<Acc> total =
      combine_parts(shared, stat.total(), at.part, parts, at.column, lanes, merge_max_sum<Acc>);
  if (active && at.part == 0 && p.lse.data != nullptr)
    static_cast<Acc*>(p.lse.data)[row_offset(p, row, p.lse.row_stride)] = log_sum_exp(total);
  if (p.out.data == nullptr) return;

  const bool log = p.kind != Kind::softmax;
  const RowFactor<Acc> f = row_factor(log, p.zero_masked_rows, total);
  const int64_t out = row_offset(p, row, p.out.row_stride);
#pragma unroll 1
  for (int64_t j = at.part; j < n; j += parts) {
    const Acc t = any.score(p, p.x, j) - f.base;
    const Acc y = log ? t - f.factor : exponential(t) * f.factor;
    store_any(p.out.dtype, p.out.data, out + element_offset(p.shape, p.out.reduce_stride, j), y);
  }
}

// The backward of every kind for any strides and dtypes.
//
//   bytes     inputs twice (once for logsumexp), dx once, as the strides allow
//   barriers  1 + log2(parts)
//   shared    one statistic a thread
template <typename Acc>
__global__ __launch_bounds__(kWalkThreads, 1) void strided_backward_kernel(
    const __grid_constant__ BackwardParams p, int lanes, int parts, bool rows_fast) {
  __shared__ SumLive<Acc> shared[kWalkThreads];
  const Place at = place(lanes, parts, rows_fast);
  const int64_t index = linear_block() * lanes + at.column;
  const bool active = index < p.shape.rows;
  const int64_t row = active ? index : 0;
  const int64_t n = active ? p.shape.n : 0;
  const AnyRow<Acc> any = AnyRow<Acc>::locate(p, p.y, row);
  const int64_t dy_row = row_offset(p, row, p.dy.row_stride);
  const Acc dlse = p.dlse.data != nullptr
                       ? static_cast<const Acc*>(p.dlse.data)[row_offset(p, row, p.dlse.row_stride)]
                       : Acc(0);
  const bool log = p.kind == Kind::log_softmax;
  const auto y_at = [&](int64_t j) {
    return load_any<Acc>(p.y.dtype, p.y.data,
                         any.x + element_offset(p.shape, p.y.reduce_stride, j));
  };
  const auto dy_at = [&](int64_t j) {
    return load_any<Acc>(p.dy.dtype, p.dy.data,
                         dy_row + element_offset(p.shape, p.dy.reduce_stride, j));
  };

  Acc c = 0, lse = 0;
  bool masked_out = false;
  if (p.kind == Kind::logsumexp) {
    lse = static_cast<const Acc*>(p.lse.data)[row_offset(p, row, p.lse.row_stride)];
  } else {
    LongSum<Acc> sum;
    Acc live = 0;
#pragma unroll 1
    for (int64_t j = at.part; j < n; j += parts) {
      if (!any.takes_part(p, j)) continue;
      const Acc y = y_at(j), dy = dy_at(j);
      sum.add(log ? dy : y * dy);
      if (!(y == -infinity<Acc>())) live = Acc(1);
    }
    const SumLive<Acc> total = combine_parts(shared, SumLive<Acc>{sum.total(), live}, at.part,
                                             parts, at.column, lanes, merge_sum_live<Acc>);
    c = total.sum - dlse;
    masked_out = log && p.zero_masked_rows && total.live == Acc(0);
  }

  const int64_t dx = row_offset(p, row, p.dx.row_stride);
#pragma unroll 1
  for (int64_t j = at.part; j < n; j += parts) {
    Acc ds = 0;
    if (!masked_out && any.takes_part(p, j)) {
      if (p.kind == Kind::logsumexp) ds = dlse * exponential(any.score(p, p.y, j) - lse);
      else if (log) ds = dy_at(j) - exponential(y_at(j)) * c;
      else ds = y_at(j) * (dy_at(j) - c);
      ds *= any.scale;
    }
    store_any(p.dx.dtype, p.dx.data, dx + element_offset(p.shape, p.dx.reduce_stride, j), ds);
  }
}

}  // namespace fastops::softmax::cuda
