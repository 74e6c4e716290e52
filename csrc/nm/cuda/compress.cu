// Pruning, compression and their inverses. Each is one pass bound by memory: a thread per element
// of the dense weight, or per run of groups that ends with a whole byte of indices.
#include "nm/cuda/shape.cuh"

namespace fastops::nm::cuda {

// Floats in the order of the contract as integers: NaN above everything, +0 and -0 equal.
__device__ __forceinline__ uint32_t rank(float f) {
  const uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
  if ((u & 0x7fffffffu) == 0) return 0x80000000u;
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

template <typename T>
__device__ __forceinline__ const T& at(const Matrix& a, int64_t row, int64_t col) {
  return static_cast<const T*>(a.data)[row * a.row_stride + col * a.col_stride];
}

template <typename T, typename S>
__device__ __forceinline__ uint64_t key(const SelectParams& p, int64_t row, int64_t col) {
  const uint32_t size = rank(fabsf(to_float(at<T>(p.w, row, col))));
  const uint32_t score = p.scores.data ? rank(to_float(at<S>(p.scores, row, col))) : size;
  return static_cast<uint64_t>(score) << 32 | size;
}

// A thread per element, which compares itself with its group; the group's loads hit L1.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads) select_kernel(SelectParams p, Shape s) {
  for (int64_t i = first_thread(); i < s.out * s.in; i += all_threads()) {
    const int64_t row = i / s.in, col = i % s.in, group = col / s.m * s.m;
    const uint64_t mine = key<T, S>(p, row, col);
    int before = 0;
#pragma unroll 1
    for (int j = 0; j < s.m; ++j) {
      const uint64_t other = key<T, S>(p, row, group + j);
      before += other > mine || (other == mine && group + j < col);
    }
    const bool keep = before < s.n;
    if (p.mask) p.mask[i] = keep;
    else static_cast<T*>(p.pruned)[i] = keep ? at<T>(p.w, row, col) : T(0.f);
  }
}

__global__ void none_bad_kernel(int64_t* bad) { *bad = kNoneBad; }

__device__ __forceinline__ void note_bad(int64_t* bad, int64_t group) {
  static_assert(sizeof(unsigned long long) == sizeof(int64_t));
  atomicMin(reinterpret_cast<unsigned long long*>(bad), static_cast<unsigned long long>(group));
}

// A thread per `run` groups: as many as fill whole bytes of indices.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) compress_kernel(CompressParams p, Shape s, int run) {
  const int64_t runs = (s.groups + run - 1) / run;
  for (int64_t i = first_thread(); i < s.out * runs; i += all_threads()) {
    const int64_t row = i / runs, first = i % runs * run;
    T* values = static_cast<T*>(p.values) + row * s.kept + first * s.n;
    uint8_t* indices = p.indices + row * s.index_bytes + first * s.n * s.bits / 8;
    int filled = 0;
    unsigned byte = 0;
#pragma unroll 1
    for (int64_t g = first; g < min(first + run, s.groups); ++g) {
      uint32_t kept = 0;
#pragma unroll 1
      for (int j = 0; j < s.m; ++j) {
        const bool keep = p.mask.data ? at<uint8_t>(p.mask, row, g * s.m + j) != 0
                                      : to_float(at<T>(p.w, row, g * s.m + j)) != 0.f;
        kept |= static_cast<uint32_t>(keep) << j;
      }
      if (__popc(kept) > s.n) note_bad(p.bad, row * s.groups + g);
      const uint32_t chosen = kept;
#pragma unroll 1
      for (uint32_t bit = 1; __popc(kept) < s.n; bit <<= 1) kept |= bit;
#pragma unroll 1
      for (int j = 0; j < s.n; ++j, kept &= kept - 1) {
        const int place = __ffs(static_cast<int>(kept)) - 1;
        *values++ = chosen >> place & 1 ? at<T>(p.w, row, g * s.m + place) : T(0.f);
        byte |= static_cast<unsigned>(place) << filled;
        filled += s.bits;
        if (filled == 8) {
          *indices++ = static_cast<uint8_t>(byte);
          filled = 0;
          byte = 0;
        }
      }
    }
    if (filled) *indices = static_cast<uint8_t>(byte);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) decompress_kernel(DecompressParams p, Shape s) {
  for (int64_t i = first_thread(); i < s.out * s.in; i += all_threads()) {
    const int64_t row = i / s.in, col = i % s.in, group = col / s.m;
    const uint8_t* indices = p.indices + row * s.index_bytes;
    const T* values = static_cast<const T*>(p.values) + row * s.kept;
    T value = T(0.f);
#pragma unroll 1
    for (int64_t q = group * s.n; q < (group + 1) * s.n; ++q)
      if (stored_index(s, indices, q) == col - group * s.m) value = values[q];
    static_cast<T*>(p.w)[i] = value;
  }
}

__global__ void __launch_bounds__(kThreads) check_kernel(CheckParams p, Shape s) {
  for (int64_t i = first_thread(); i < s.out * s.groups; i += all_threads()) {
    const int64_t row = i / s.groups, group = i % s.groups;
    const uint8_t* indices = p.indices + row * s.index_bytes;
    int before = -1;
    bool good = true;
#pragma unroll 1
    for (int64_t q = group * s.n; q < (group + 1) * s.n; ++q) {
      const int64_t bit = q * s.bits;
      const int index = indices[bit >> 3] >> (bit & 7) & ((1 << s.bits) - 1);
      good = good && index > before && index < s.m;
      before = index;
    }
    if (!good) note_bad(p.bad, i);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(GatherParams p) {
  for (int64_t i = first_thread(); i < p.size; i += all_threads()) {
    const int64_t from = p.source[i];
    const bool there = from >= 0 && from < p.count;
    static_cast<T*>(p.weights)[i] = there ? static_cast<const T*>(p.values)[from] : T(0.f);
  }
}

template <typename T>
using Pointee = std::remove_pointer_t<T>;

void select(const SelectParams& p, void* stream) {
  with_type(p.w.dtype, [&](auto* t) {
    with_type(p.scores.dtype, [&](auto* score) {
      launch(&select_kernel<Pointee<decltype(t)>, Pointee<decltype(score)>>,
             {"nm select", grid_of(p.weight.out * p.weight.in), dim3(kThreads), 0, 1, stream}, p,
             shape_of(p.weight));
    });
  });
}

void compress(const CompressParams& p, void* stream) {
  launch(&none_bad_kernel, {"nm none_bad", dim3(1), dim3(1), 0, 1, stream}, p.bad);
  const Shape s = shape_of(p.weight);
  if (s.out * s.groups == 0) return;
  int run = 1;
  while (run * s.n * s.bits % 8) ++run;
  with_type(p.w.dtype, [&](auto* t) {
    launch(&compress_kernel<Pointee<decltype(t)>>,
           {"nm compress", grid_of(s.out * ceil_div(s.groups, run)), dim3(kThreads), 0, 1, stream},
           p, s, run);
  });
}

void decompress(const DecompressParams& p, void* stream) {
  with_type(p.dtype, [&](auto* t) {
    launch(&decompress_kernel<Pointee<decltype(t)>>,
           {"nm decompress", grid_of(p.weight.out * p.weight.in), dim3(kThreads), 0, 1, stream}, p,
           shape_of(p.weight));
  });
}

void check(const CheckParams& p, void* stream) {
  launch(&none_bad_kernel, {"nm none_bad", dim3(1), dim3(1), 0, 1, stream}, p.bad);
  const Shape s = shape_of(p.weight);
  if (s.out * s.groups == 0) return;
  launch(&check_kernel, {"nm check", grid_of(s.out * s.groups), dim3(kThreads), 0, 1, stream}, p,
         s);
}

void gather(const GatherParams& p, void* stream) {
  with_type(p.dtype, [&](auto* t) {
    launch(&gather_kernel<Pointee<decltype(t)>>,
           {"nm gather", grid_of(p.size), dim3(kThreads), 0, 1, stream}, p);
  });
}

}  // namespace fastops::nm::cuda
