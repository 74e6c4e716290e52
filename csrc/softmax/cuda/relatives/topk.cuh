// Softmax and its k greatest, a block per row: any k, any strides, any dtypes.
//
// The k-th greatest score is found by radix selection on order-preserving keys, 8 bits a pass, the
// last of equal scores by selection on the index; what was chosen is then ranked one against all.
//
//   holds     the row's scores in shared memory while they fit; k keys and indices there, or in the
//             workspace where k > kSharedChosen
//   bytes     x once (kept) or once a pass (4 to 8, and one per 8 bits of n where scores tie)
//   barriers  3 a pass
#pragma once

#include "softmax/cuda/relatives/row.cuh"

namespace fastops::softmax::cuda {

inline constexpr int64_t kSharedChosen = 512;

__device__ __forceinline__ uint64_t key_of(float s) {
  const uint32_t bits = __float_as_uint(s + 0.0f);  // -0 is 0
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ uint64_t key_of(double s) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(s + 0.0));
  return bits ^ (bits >> 63 ? ~uint64_t(0) : uint64_t(1) << 63);
}

struct Chosen {
  uint64_t key;
  int64_t index;
};

// The `need`-th greatest of key(j) over the j for which it takes part, `bits` long, digit by digit;
// `need` becomes its rank among those equal to it, `equal` how many they are.
template <typename Key>
__device__ __forceinline__ uint64_t radix_select(int64_t n, int bits, const Key& key, int64_t& need,
                                                 int64_t& equal, int* histogram) {
  uint64_t prefix = 0, known = 0;
#pragma unroll 1
  for (int shift = bits - 8; shift >= 0; shift -= 8) {
    __syncthreads();  // whoever still reads the last histogram is done
#pragma unroll 1
    for (int d = threadIdx.x; d < 256; d += blockDim.x) histogram[d] = 0;
    __syncthreads();
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
      uint64_t k;
      if (key(j, k) && (k & known) == prefix) atomicAdd(&histogram[int(k >> shift & 255)], 1);
    }
    __syncthreads();
    int digit = 255;
#pragma unroll 1
    for (; digit > 0 && histogram[digit] < need; --digit) need -= histogram[digit];
    equal = histogram[digit];
    prefix |= static_cast<uint64_t>(digit) << shift;
    known |= uint64_t(255) << shift;
  }
  return prefix;
}

template <typename Acc>
__global__ __launch_bounds__(kRowThreadsMost,
                             1) void topk_kernel(const __grid_constant__ TopkParams p, bool kept,
                                                 int chosen_at) {
  FASTOPS_DYNAMIC_SHARED(bytes);
  __shared__ double partials[64];
  __shared__ int histogram[256];
  __shared__ int filled;
  const int64_t r = linear_block(), n = p.shape.n, k = p.k;
  if (r >= p.shape.rows) return;
  RowView<Acc> row{AnyRow<Acc>::locate(p, p.x, r), kept ? reinterpret_cast<Acc*>(bytes) : nullptr};
  const int64_t values = row_offset(p, r, p.values.row_stride);
  int64_t* const indices =
      static_cast<int64_t*>(p.indices.data) + row_offset(p, r, p.indices.row_stride);
  Acc* const lse = static_cast<Acc*>(p.lse.data) + row_offset(p, r, p.lse.row_stride);
  const auto put = [&](int64_t place, int64_t index, Acc value) {
    indices[place * p.indices_stride] = index;
    store_any(p.values.dtype, p.values.data, values + place * p.values_stride, value);
  };

  bool nan;
  const Acc max = load_row(p, row, nan, partials);
  const bool empty = !nan && max == -infinity<Acc>();
  if (empty || nan || max == infinity<Acc>()) {
    const Acc value = empty && p.zero_masked_rows ? Acc(0) : not_a_number<Acc>();
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) put(i, i, value);
    if (threadIdx.x == 0) *lse = empty ? -infinity<Acc>() : not_a_number<Acc>();
    return;
  }

  if (threadIdx.x == 0) filled = 0;
  int64_t need = k, equal = 0, last = n;
  const uint64_t pivot = radix_select(
      n, 8 * int(sizeof(Acc)),
      [&](int64_t j, uint64_t& key) {
        key = key_of(row.at(p, j));
        return true;
      },
      need, equal, histogram);
  if (need < equal) {  // of equal scores the lowest indices: the greatest of n - 1 - j
    int bits = 8;
    while (bits < 64 && (static_cast<uint64_t>(n - 1) >> bits) != 0) bits += 8;
    int64_t unused;
    last = n - 1 -
           static_cast<int64_t>(radix_select(
               n, bits,
               [&](int64_t j, uint64_t& key) {
                 key = static_cast<uint64_t>(n - 1 - j);
                 return key_of(row.at(p, j)) == pivot;
               },
               need, unused, histogram));
  }

  Chosen* const chosen = k <= kSharedChosen ? reinterpret_cast<Chosen*>(bytes + chosen_at)
                                            : static_cast<Chosen*>(p.workspace) + r * k;
  Acc total = 0;
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const Acc s = row.at(p, j);
    const uint64_t key = key_of(s);
    const bool in = key > pivot || (key == pivot && j <= last);
    if (in || !p.renormalize) total += exponential(s - max);
    if (!in) continue;
    const int slot = atomicAdd(&filled, 1);  // any order: places are by rank
    chosen[slot].key = key;
    chosen[slot].index = j;
  }
  double sums[1] = {static_cast<double>(total)};
  block_sums(sums, partials);
  __syncthreads();  // all are chosen
  if (threadIdx.x == 0) *lse = static_cast<Acc>(static_cast<double>(max) + log(sums[0]));
  const Acc factor = static_cast<Acc>(1 / sums[0]);
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
    const uint64_t key = chosen[i].key;
    const int64_t index = chosen[i].index;
    int64_t place = 0;
#pragma unroll 1
    for (int64_t other = 0; other < k; ++other) {
      const uint64_t its = chosen[other].key;
      place += its > key || (its == key && chosen[other].index < index);
    }
    put(place, index, exponential(row.any.score(p, p.x, index) - max) * factor);
  }
}

// dx of softmax for a gradient that is 0 but for k elements: what they say is overwritten by what
// all say. Indices that point out of the row, which no forward gives, choose nothing.
//
//   bytes     x once, dx once, and k elements of each again     barriers  3
template <typename Acc>
__global__ __launch_bounds__(kRowThreadsMost,
                             1) void topk_backward_kernel(const __grid_constant__ TopkParams p) {
  __shared__ double partials[64];
  const int64_t r = linear_block(), n = p.shape.n, k = p.k;
  if (r >= p.shape.rows) return;
  const AnyRow<Acc> row = AnyRow<Acc>::locate(p, p.x, r);
  const int64_t* const indices =
      static_cast<const int64_t*>(p.indices.data) + row_offset(p, r, p.indices.row_stride);
  const int64_t grads = row_offset(p, r, p.values.row_stride);
  const int64_t out = row_offset(p, r, p.out.row_stride);
  const Acc lse = static_cast<const Acc*>(p.lse.data)[row_offset(p, r, p.lse.row_stride)];
  const Acc low = -infinity<Acc>();
  const bool empty = lse == low;
  const auto value_of = [&](int64_t j) {
    const Acc s = row.score(p, p.x, j);
    return s == low ? Acc(0) : exponential(s - lse);
  };
  const auto grad_of = [&](int64_t i) {
    return load_any<Acc>(p.values.dtype, p.values.data, grads + i * p.values_stride);
  };

  double sums[1] = {0};
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < k && !empty; i += blockDim.x) {
    const int64_t j = indices[i * p.indices_stride];
    if (j < 0 || j >= n) continue;
    const Acc v = value_of(j);
    if (v != Acc(0)) sums[0] += static_cast<double>(v) * static_cast<double>(grad_of(i));
  }
  block_sums(sums, partials);
  const Acc inner = static_cast<Acc>(sums[0]);
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const Acc v = empty || (p.renormalize && lse == lse) ? Acc(0) : value_of(j);
    store(p, p.out, out, j, v == Acc(0) ? Acc(0) : -v * inner * row.scale);
  }
  __syncthreads();  // the chosen elements are written once more
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < k && !empty; i += blockDim.x) {
    const int64_t j = indices[i * p.indices_stride];
    if (j < 0 || j >= n) continue;
    const Acc v = value_of(j);
    store(p, p.out, out, j, v == Acc(0) ? Acc(0) : v * (grad_of(i) - inner) * row.scale);
  }
}

}  // namespace fastops::softmax::cuda
