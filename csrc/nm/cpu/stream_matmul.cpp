// A few rows: lanes are outputs. The compressed weight is read once, front to back; the activations
// of a group are in cache, and each lane looks up its own (lookup.h). Several vectors of outputs
// side by side share what they load of the activations and keep enough sums in flight.
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "nm/cpu/epilogue.h"
#include "nm/cpu/heuristics.h"
#include "nm/cpu/kernels.h"
#include "nm/cpu/lookup.h"
#include "nm/cpu/packing.h"

namespace fastops::nm::cpu::FASTOPS_ISA {
namespace {

constexpr int kLanes = VecF32::size;
constexpr int kMostRows = 8;
// Kept elements whose products are summed before they join the total: shorter sums round less.
constexpr int64_t kSumLength = 64;
// Beyond the last group a lookup may load up to this many floats.
constexpr int64_t kOverhang = 32;
constexpr int kLine = 16;  // floats

template <typename T>
struct Problem {
  const MatmulParams& p;
  StreamLayout layout;
  Epilogue<T> epilogue;
  const float* x;  // [row][pitch]
  int64_t pitch;
  const int32_t* group;  // where the group of each kept element starts
  int64_t row;           // of y that x starts with
  int64_t ahead;         // in elements of T

  const T* weights(int64_t vector) const {
    return static_cast<const T*>(p.weights) + vector * layout.kept * kLanes;
  }
  const uint32_t* words(int64_t vector) const {
    return reinterpret_cast<const uint32_t*>(p.structure) + vector * layout.words * kLanes;
  }
};

// kVectors vectors of outputs from `vector` on, `stride` apart, for kRows rows.
template <int kRows, int kVectors, int kBits, bool kByLine, typename T>
void run_vectors(const Problem<T>& q, int64_t vector, int64_t stride) {
  constexpr int kPerWord = 32 / kBits;
  const T* weight[kVectors];
  const uint32_t* word[kVectors];
  VecF32 total[kVectors][kRows];
  for (int v = 0; v < kVectors; ++v) {
    weight[v] = q.weights(vector + v * stride);
    word[v] = q.words(vector + v * stride);
    for (int r = 0; r < kRows; ++r) total[v][r] = VecF32(0.f);
  }
  const int64_t kept = q.layout.kept;
  for (int64_t block = 0; block < kept; block += kSumLength) {
    const int64_t end = kept < block + kSumLength ? kept : block + kSumLength;
    VecF32 sum[kVectors][kRows];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[v][r] = VecF32(0.f);
    for (int64_t at = block; at < end; at += kPerWord) {
      Indices index[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        index[v] = Indices::load(word[v]);
        word[v] += kLanes;
      }
      const int64_t stop = end < at + kPerWord ? end : at + kPerWord;
      for (int64_t k = at; k < stop; ++k) {
        const int32_t group = q.group[k];
        const float* x = q.x + (kByLine ? group / kLine * kLine : group);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const T* from = weight[v] + k * kLanes;
          prefetch_stream<kRows>(from + q.ahead);
          const VecF32 w = VecF32::load(from);
          const auto look = [&](const float* row) {
            if constexpr (kByLine)
              return lookup_in_line(row, index[v].template from_line<kBits>(group));
            else return lookup<kBits>(row, index[v]);
          };
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sum[v][r] = fma(w, look(x + r * q.pitch), sum[v][r]);
          index[v].template next<kBits>();
        }
      }
    }
    for (int v = 0; v < kVectors; ++v)
      for (int r = 0; r < kRows; ++r) total[v][r] = total[v][r] + sum[v][r];
  }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t output = (vector + v * stride) * kLanes, left = q.p.weight.out - output;
    for (int r = 0; r < kRows; ++r)
      q.epilogue.store(q.row + r, output, int(left < kLanes ? left : kLanes), total[v][r]);
  }
}

template <int kRows, int kBits, bool kByLine, typename T>
void run_range(const Problem<T>& q, int64_t begin, int64_t end) {
  constexpr int kVectors = kRows <= 4 ? 4 : 2;
  // Far apart in memory AMD's cores read several streams faster than near one another.
  const int64_t part = (end - begin) / kVectors;
  for (int64_t v = begin; v < begin + part; ++v)
    run_vectors<kRows, kVectors, kBits, kByLine>(q, v, part);
  for (int64_t v = begin + part * kVectors; v < end; ++v)
    run_vectors<kRows, 1, kBits, kByLine>(q, v, 0);
}

// With up to 4 rows more vectors share what is broadcast, and memory is waited for.
template <int kBits, bool kByLine, typename T>
void run_rows(const Problem<T>& q, int rows, int64_t begin, int64_t end) {
  switch (rows) {
    case 1: return run_range<1, kBits, false>(q, begin, end);
    case 2: return run_range<2, kBits, false>(q, begin, end);
    case 3: return run_range<3, kBits, false>(q, begin, end);
    case 4: return run_range<4, kBits, false>(q, begin, end);
    case 5: return run_range<5, kBits, kByLine>(q, begin, end);
    case 6: return run_range<6, kBits, kByLine>(q, begin, end);
    case 7: return run_range<7, kBits, kByLine>(q, begin, end);
    default: return run_range<8, kBits, kByLine>(q, begin, end);
  }
}

template <typename T>
void run(const MatmulParams& p) {
  const StreamLayout layout(p.weight, kLanes);
  const int64_t pitch = round_up(p.weight.in + kOverhang, 16);
  float* x = static_cast<float*>(fastops::cpu::thread_scratch(
      size_t(kMostRows * pitch) * sizeof(float) + size_t(layout.kept) * sizeof(int32_t)));
  int32_t* group = reinterpret_cast<int32_t*>(x + kMostRows * pitch);
  const auto [n, m] = p.weight.pattern;
  for (int64_t q = 0; q < layout.kept; ++q) group[q] = int32_t(q / n * m);
  for (int64_t row = 0; row < p.x.count; row += kMostRows) {
    const int64_t left = p.x.count - row;
    const int rows = int(left < kMostRows ? left : kMostRows);
    for (int r = 0; r < rows; ++r) copy_row<T>(p.x, row + r, x + r * pitch, pitch);
    const int64_t ahead = stream_ahead(rows) / int64_t{sizeof(T)};
    const Problem<T> problem{p, layout, Epilogue<T>(p), x, pitch, group, row, ahead};
    const int64_t grain = round_up(1 + kWorkPerTask / (layout.kept * kLanes * rows + 1), 4);
    fastops::cpu::parallel_for(0, layout.vectors, grain, [&](int64_t begin, int64_t end) {
      const bool by_line = kLookupByLine && kLine % m == 0;
      switch (layout.bits) {
        case 2:
          if (by_line) return run_rows<2, kLookupByLine>(problem, rows, begin, end);
          return run_rows<2, false>(problem, rows, begin, end);
        case 4:
          if (by_line) return run_rows<4, kLookupByLine>(problem, rows, begin, end);
          return run_rows<4, false>(problem, rows, begin, end);
        default: return run_rows<8, false>(problem, rows, begin, end);
      }
    });
  }
}

}  // namespace

void stream_matmul(const MatmulParams& p) {
  with_element(p.x.dtype, [&](auto t) { run<decltype(t)>(p); });
}

}  // namespace fastops::nm::cpu::FASTOPS_ISA
