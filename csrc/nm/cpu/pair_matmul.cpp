// bf16 where the CPU multiplies pairs (vdpbf16ps): lanes are outputs, each with two kept elements
// at a time. The few activations they may meet are broadcast, and each lane looks its two up
// (vpermw). One kernel for few rows, where it streams the weight once, and for many, 16 at a time.
//
// Order with many rows: outputs whose weights fit in L2, 16 rows, 768 inputs of them (25 KB, L1),
// vectors of outputs.
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "nm/cpu/epilogue.h"
#include "nm/cpu/heuristics.h"
#include "nm/cpu/kernels.h"
#include "nm/cpu/packing.h"

#ifdef FASTOPS_AVX512
namespace fastops::nm::cpu::FASTOPS_ISA {
namespace {

constexpr int kLanes = VecF32::size;
constexpr int kMostRows = 16;
constexpr int64_t kChunk = 768;                // inputs
constexpr int64_t kOverhang = 32;              // a lookup may load so many from a unit's first on
constexpr int64_t kBytesTogether = 512 << 10;  // of packed weight
constexpr int64_t kRowsPacked = 1024;

// What lookups of kBits choose from: as many bf16 as they can tell apart, again and again.
template <int kBits>
__m512i broadcast(const bf16* unit) {
  if constexpr (kBits == 2) {
    int64_t four;
    __builtin_memcpy(&four, unit, sizeof(four));
    return _mm512_set1_epi64(four);
  } else if constexpr (kBits == 3) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(unit)));
  } else if constexpr (kBits == 4) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit)));
  } else {
    return _mm512_loadu_si512(unit);
  }
}

// Some rows of the activation, packed [chunk][row][pitch], and the weight they meet.
struct Problem {
  const MatmulParams& p;
  PairLayout layout;
  Epilogue<bf16> epilogue;
  const int32_t* unit_at;  // by step: where its unit starts in a chunk
  int64_t chunk_units, chunks, pitch;
  int64_t ahead;  // of the weights, in elements

  const bf16* weights(int64_t vector, int64_t step) const {
    return static_cast<const bf16*>(p.weights) + (vector * layout.steps + step) * 2 * kLanes;
  }
  const uint16_t* words(int64_t vector, int64_t step) const {
    return reinterpret_cast<const uint16_t*>(p.structure) +
           (vector * layout.words + step / layout.per_word) * 2 * kLanes;
  }
};

// Vectors of outputs from `vector` on, kRows rows from `row` on, one chunk of inputs.
// sums: [vector][row][lane], of the chunks before.
template <int kRows, int kVectors, int kBits>
void run_vectors(const Problem& q, const bf16* x, int64_t chunk, int64_t row, int64_t vector,
                 float* sums) {
  constexpr int kPerWord = 16 / kBits;
  const int64_t first = chunk * q.chunk_units * q.layout.pairs;
  const int64_t last = first + q.chunk_units * q.layout.pairs;
  const int64_t end = last < q.layout.steps ? last : q.layout.steps;
  const bool continued = chunk > 0, done = end == q.layout.steps;
  const bf16* weight[kVectors];
  const uint16_t* word[kVectors];
  __m512 sum[kVectors][kRows];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    weight[v] = q.weights(vector + v, 0);
    word[v] = q.words(vector + v, first);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      sum[v][r] =
          continued ? _mm512_loadu_ps(sums + (v * kRows + r) * kLanes) : _mm512_setzero_ps();
  }
  for (int64_t at = first; at < end; at += kPerWord) {
    __m512i index[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      index[v] = _mm512_loadu_si512(word[v]);
      word[v] += 2 * kLanes;
    }
    const int64_t stop = end < at + kPerWord ? end : at + kPerWord;
    for (int64_t step = at; step < stop; ++step) {
      const bf16* unit = x + q.unit_at[step];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const bf16* from = weight[v] + step * 2 * kLanes;
        __builtin_prefetch(from + q.ahead);
        const auto w = (__m512bh)_mm512_loadu_si512(from);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512i of =
              _mm512_permutexvar_epi16(index[v], broadcast<kBits>(unit + r * q.pitch));
          sum[v][r] = _mm512_dpbf16_ps(sum[v][r], w, (__m512bh)of);
        }
        index[v] = _mm512_srli_epi16(index[v], kBits);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      if (done) {
        const int64_t output = (vector + v) * kLanes, left = q.p.weight.out - output;
        q.epilogue.store(row + r, output, int(left < kLanes ? left : kLanes), sum[v][r]);
      } else {
        _mm512_storeu_ps(sums + (v * kRows + r) * kLanes, sum[v][r]);
      }
    }
}

// Vectors [begin, end) of outputs for kRows rows.
template <int kRows, int kBits>
void run_rows(const Problem& q, const bf16* x, int64_t row, int64_t begin, int64_t end,
              float* sums) {
  constexpr int kVectors = kRows <= 4 ? 4 : kRows <= 8 ? 2 : 1;
  for (int64_t c = 0; c < q.chunks; ++c, x += kRows * q.pitch) {
    int64_t v = begin;
    const auto sums_of = [&] { return sums + (v - begin) * kRows * kLanes; };
    for (; v + kVectors <= end; v += kVectors)
      run_vectors<kRows, kVectors, kBits>(q, x, c, row, v, sums_of());
    if constexpr (kVectors > 1)
      for (; v < end; ++v) run_vectors<kRows, 1, kBits>(q, x, c, row, v, sums_of());
  }
}

using RunRows = decltype(&run_rows<1, 2>);
#define FASTOPS_ROWS(bits)                                                         \
  {run_rows<1, bits>,  run_rows<2, bits>,  run_rows<3, bits>,  run_rows<4, bits>,  \
   run_rows<5, bits>,  run_rows<6, bits>,  run_rows<7, bits>,  run_rows<8, bits>,  \
   run_rows<9, bits>,  run_rows<10, bits>, run_rows<11, bits>, run_rows<12, bits>, \
   run_rows<13, bits>, run_rows<14, bits>, run_rows<15, bits>, run_rows<16, bits>}
constexpr RunRows kRunRows[][kMostRows] = {FASTOPS_ROWS(2), FASTOPS_ROWS(3), FASTOPS_ROWS(4),
                                           FASTOPS_ROWS(5)};
#undef FASTOPS_ROWS

// Inputs [begin, begin + count) of a row, zeros from there to `pitch`.
void copy_inputs(const Rows& x, int64_t row, int64_t begin, int64_t count, bf16* to,
                 int64_t pitch) {
  const bf16* from = static_cast<const bf16*>(x.data) + x.offset(row) + begin * x.feature_stride;
  if (x.feature_stride == 1) {
    __builtin_memcpy(to, from, size_t(count) * sizeof(bf16));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * x.feature_stride];
  }
  __builtin_memset(static_cast<void*>(to + count), 0, size_t(pitch - count) * sizeof(bf16));
}

// Rows [row, row + rows), rows <= kRowsPacked.
void run(const MatmulParams& p, int64_t row, int64_t rows) {
  const PairLayout layout(p.weight);
  const bool few = rows <= kStreamRows;                   // then the weight is one stream
  const int64_t whole = layout.units ? layout.units : 1;  // without inputs there is the bias
  // A chunk ends with a word of indices.
  const int64_t limit = kChunk / layout.width / layout.per_word * layout.per_word;
  const int64_t chunk_units = few || whole <= limit ? whole : limit;
  const int64_t chunks = ceil_div(whole, chunk_units);
  const int64_t inputs = chunk_units * layout.width, pitch = round_up(inputs + kOverhang, 32);

  const int64_t step_bytes = 64 + 64 / layout.per_word;
  int64_t together = kBytesTogether / (layout.steps * step_bytes + 1) / 4 * 4;
  together = few ? layout.vectors : together < 4 ? 4 : together;
  const int64_t sums_size = chunks > 1 ? together * kMostRows * kLanes : 0;
  const int64_t slots = fastops::cpu::num_threads();

  const int64_t x_bytes = round_up(rows * chunks * pitch * 2, 64);
  const int64_t steps_bytes = round_up(layout.steps * 4, 64);
  char* scratch = static_cast<char*>(
      fastops::cpu::thread_scratch(size_t(x_bytes + steps_bytes + slots * sums_size * 4)));
  bf16* const x = reinterpret_cast<bf16*>(scratch);
  int32_t* const unit_at = reinterpret_cast<int32_t*>(scratch + x_bytes);
  float* const sums = reinterpret_cast<float*>(scratch + x_bytes + steps_bytes);
  for (int64_t step = 0; step < layout.steps; ++step)
    unit_at[step] = int32_t(step / layout.pairs % chunk_units * layout.width);
  fastops::cpu::parallel_for(0, rows, few ? rows : 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t block = r / kMostRows * kMostRows;
      const int64_t side = rows - block < kMostRows ? rows - block : kMostRows;
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t left = p.x.features - c * inputs;
        bf16* to = x + (block * chunks + c * side + r - block) * pitch;
        copy_inputs(p.x, row + r, c * inputs, left < inputs ? left : inputs, to, pitch);
      }
    }
  });

  const int64_t ahead = stream_ahead() / int64_t{sizeof(bf16)};
  const Problem q{p, layout, Epilogue<bf16>(p), unit_at, chunk_units, chunks, pitch, ahead};
  const RunRows* run_rows = kRunRows[layout.bits - 2];
  // Neighbouring vectors share an address range and, with few rows, what is loaded of x.
  const int64_t work = layout.steps * 2 * kLanes * rows;
  const int64_t least = round_up(1 + kWorkPerTask / (work + 1), 4);
  const int64_t share = round_up(ceil_div(layout.vectors, slots), 4);
  const int64_t size = share < least ? least : share;
  fastops::cpu::parallel_for(
      0, ceil_div(layout.vectors, size), 1, [&](int64_t first, int64_t last) {
        for (int64_t slot = first; slot < last; ++slot) {
          const int64_t stop =
              (slot + 1) * size < layout.vectors ? (slot + 1) * size : layout.vectors;
          for (int64_t v = slot * size; v < stop; v += together) {
            const int64_t end = v + together < stop ? v + together : stop;
            for (int64_t r = 0; r < rows; r += kMostRows) {
              const int64_t side = rows - r < kMostRows ? rows - r : kMostRows;
              run_rows[side - 1](q, x + r * chunks * pitch, row + r, v, end,
                                 sums + slot * sums_size);
            }
          }
        }
      });
}

}  // namespace

void pair_matmul(const MatmulParams& p) {
  for (int64_t row = 0; row < p.x.count; row += kRowsPacked) {
    const int64_t left = p.x.count - row;
    run(p, row, left < kRowsPacked ? left : kRowsPacked);
  }
}

}  // namespace fastops::nm::cpu::FASTOPS_ISA
#endif
