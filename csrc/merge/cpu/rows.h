// What the row kernels share: the members of an output row, the order of the walk, and the moving
// of rows. Internal linkage, as everything compiled per instruction set.
#pragma once

#include "cpu/cache.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "merge/merge.h"

namespace fastops::merge::cpu {
namespace {

using namespace fastops::cpu;

inline constexpr int64_t kBytesPerTask = 128 * 1024;  // below this a second thread does not pay
// As far ahead of reads and of writes as a copy needs to keep the memory busy.
inline constexpr int64_t kReadAhead = 6144, kWriteAhead = 4096;

// Whether an output leaves past the cache, of `bytes` read and written. Streaming stores do not
// read what they overwrite, which wins by an eighth where that is not in the cache, and loses by
// 40 % where it is: so it is with memory fresh from the allocator, which either the last owner or
// the kernel has just written, unless it cannot stay there.
inline bool use_streaming(int64_t bytes, bool fresh) {
  return bytes >= (fresh ? last_level_cache() : int64_t{16} << 20);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// The tokens of an output row. Whatever of the plan is out of bounds is left out; `filtered` has
// room for num_tokens.
struct Members {
  const int32_t* at;
  int64_t count;

  Members(const PlanView& plan, int64_t sample, int64_t row, int32_t* filtered) {
    const int32_t* offsets = plan.offsets + sample * (plan.num_out + 1) + row;
    const int64_t begin = at_most(at_least(offsets[0], 0), plan.num_tokens);
    const int64_t end = at_most(at_least(offsets[1], begin), plan.num_tokens);
    at = plan.perm + sample * plan.num_tokens + begin;
    count = end - begin;
    for (int64_t m = 0; m < count; ++m) {
      if (at[m] >= 0 && at[m] < plan.num_tokens) continue;
      int64_t kept = 0;
      for (int64_t i = 0; i < count; ++i)
        if (at[i] >= 0 && at[i] < plan.num_tokens) filtered[kept++] = at[i];
      at = filtered;
      count = kept;
      return;
    }
  }
};

// Every output row once, in the order in which their first tokens lie in memory, then rows that no
// token names. `order` and `seen` have room for num_out.
inline void walk_order(const PlanView& plan, int64_t sample, int32_t* order, uint8_t* seen) {
  const int32_t* map = plan.map + sample * plan.num_tokens;
  __builtin_memset(seen, 0, size_t(plan.num_out));
  int64_t count = 0;
  for (int64_t i = 0; i < plan.num_tokens; ++i) {
    const int32_t row = map[i];
    if (row < 0 || row >= plan.num_out || seen[row]) continue;
    seen[row] = 1;
    order[count++] = row;
  }
  for (int64_t row = 0; row < plan.num_out && count < plan.num_out; ++row)
    if (!seen[row]) order[count++] = int32_t(row);
}

// The tokens of a task in the order in which they are read.
struct Reads {
  const int32_t* at;
  int64_t count;
};

// Not std::sqrt: see simd.h.
inline float root(float v) { return __builtin_sqrtf(v); }
inline double root(double v) { return __builtin_sqrt(v); }

// A value of sizes or their sums.
template <typename S>
inline S scalar_at(const void* data, DType dtype, int64_t i) {
  return dtype == DType::f64 ? S(static_cast<const double*>(data)[i])
                             : S(static_cast<const float*>(data)[i]);
}
inline void set_scalar(void* data, DType dtype, int64_t i, double value) {
  if (dtype == DType::f64) static_cast<double*>(data)[i] = value;
  else static_cast<float*>(data)[i] = float(value);
}

template <typename T>
inline T* row_at(const Rows& rows, int64_t sample, int64_t middle, int64_t row) {
  return static_cast<T*>(rows.data) + sample * rows.stride[0] + middle * rows.stride[1] +
         row * rows.stride[2];
}

// A vector of a row whose channels may lie apart. Not inlined: rare, and in every loop.
template <typename V, typename T>
__attribute__((noinline)) V load_apart(const T* p, int64_t step, int lanes) {
  typename V::Scalar values[V::size] = {};
  for (int i = 0; i < lanes; ++i) V::load(p + i * step, 1).store(values + i, 1);
  return V::load(values);
}
template <typename V, typename T>
inline V load_lanes(const T* p, int64_t step, int lanes) {
  if (step != 1) return load_apart<V>(p, step, lanes);
  return lanes == V::size ? V::load(p) : V::load(p, lanes);
}
template <typename V, typename T>
inline void store_lanes(T* p, V v, int lanes, bool stream) {
  if (lanes != V::size) v.store(p, lanes);
  else if (stream) v.stream(p);
  else v.store(p);
}

// Whether a row of an output can leave with streaming stores: whole lines.
template <typename T>
inline bool streamable(const Rows& out) {
  return reinterpret_cast<uintptr_t>(out.data) % 64 == 0 &&
         out.channels * int64_t(sizeof(T)) % 64 == 0;
}

template <typename T>
inline void zero_row(T* to, int64_t channels) {
  __builtin_memset(to, 0, size_t(channels) * sizeof(T));
}

// Rows between the one that is read and the one that is asked for meanwhile.
template <typename T>
inline int64_t rows_ahead(int64_t channels) {
  const int64_t bytes = at_least(channels * int64_t(sizeof(T)), 1);
  return at_least((kReadAhead + bytes / 2) / bytes, 1);
}

// A row as it is, bit for bit. `soon`: a row that will be read a little later.
template <typename T>
inline void copy_row(const T* from, int64_t step, T* to, int64_t channels, bool stream,
                     const T* soon) {
  if (step != 1) {
    for (int64_t c = 0; c < channels; ++c) to[c] = from[c * step];
    return;
  }
  constexpr int kLine = 16 / VecF32::size;  // vectors of a 64-byte line
  const float* source = reinterpret_cast<const float*>(from);
  const float* later = reinterpret_cast<const float*>(soon);
  float* target = reinterpret_cast<float*>(to);
  const int64_t bytes = channels * int64_t(sizeof(T)), floats = bytes / 64 * 16;
  for (int64_t c = 0; c < floats; c += 16) {
    __builtin_prefetch(later + c, 0, 2);
    if (!stream) __builtin_prefetch(reinterpret_cast<char*>(target + c) + kWriteAhead, 1);
    for (int v = 0; v < kLine; ++v) {
      const VecF32 values = VecF32::load(source + c + v * VecF32::size);
      if (stream) values.stream(target + c + v * VecF32::size);
      else values.store(target + c + v * VecF32::size);
    }
  }
  __builtin_memcpy(target + floats, source + floats, size_t(bytes - 4 * floats));
}

// How a batch is cut into tasks: `pieces` per sample.
struct Tasks {
  int64_t batch, pieces, grain;

  Tasks(int64_t batch, int64_t rows, int64_t bytes_per_sample) : batch(batch) {
    const int64_t threads = num_threads();
    pieces = batch >= 2 * threads ? 1 : ceil_div(4 * threads, at_least(batch, 1));
    pieces = at_least(at_most(at_most(pieces, rows), bytes_per_sample / kBytesPerTask), 1);
    grain = at_least(kBytesPerTask * pieces / at_least(bytes_per_sample, 1), 1);
  }

  // body(sample, piece)
  template <typename Body>
  void run(const Body& body) const {
    parallel_for(0, batch * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(task / pieces, task % pieces);
      store_fence();
    });
  }
};

// fn(T(), V()) for the element type of a tensor and the vectors it is worked on in.
template <typename Fn>
inline void with_type(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::f64: return fn(double(), VecF64());
    case DType::f16: return fn(f16(), VecF32());
    case DType::bf16: return fn(bf16(), VecF32());
    default: return fn(float(), VecF32());
  }
}

inline int64_t sample_bytes(const Rows& rows, int64_t count) {
  return rows.middle * count * rows.channels * int64_t(size_of(rows.dtype));
}

}  // namespace
}  // namespace fastops::merge::cpu
