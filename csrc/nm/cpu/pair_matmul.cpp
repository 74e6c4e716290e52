// bf16 where the CPU multiplies pairs (vdpbf16ps): lanes are outputs, each with two kept elements
// at a time. 32 activations fill a register, from which each lane looks its two up (vpermw). One
// kernel for few rows, where it streams the weight once, and for many, 16 at a time.
//
// Order with many rows: outputs whose weights fit in L2, 16 rows, 512 inputs of them (16 KB, L1),
// vectors of outputs.
//
// A window of 32 activations is a line of its own for each row, the rows side by side. So a lookup
// loads what it looks up in, at a constant address: on AMD's cores a broadcast of 16 or 32 bytes
// costs as much as the lookup, and a pitch between rows would take more registers than there are.
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
constexpr int kWindow = 32;                    // inputs, of whole units with their padding
constexpr int64_t kChunk = 512;                // inputs
constexpr int64_t kBytesTogether = 512 << 10;  // of packed weight
constexpr int64_t kRowsPacked = 1024;

// Some rows of the activation, packed [chunk][window][row][kWindow], and the weight they meet.
struct Problem {
  const MatmulParams& p;
  PairLayout layout;
  Epilogue<bf16> epilogue;
  int64_t chunk_units, chunks, chunk_windows;
  int64_t ahead;  // of the weights, in elements

  const bf16* weights(int64_t vector, int64_t step) const {
    return static_cast<const bf16*>(p.weights) + (vector * layout.steps + step) * 2 * kLanes;
  }
  const uint16_t* words(int64_t vector, int64_t step) const {
    return reinterpret_cast<const uint16_t*>(p.structure) +
           (vector * layout.words + step / layout.per_word) * 2 * kLanes;
  }
};

// Vectors of outputs from `vector` on, `stride` apart, kRows rows from `row` on, one chunk of
// inputs. sums: [vector][row][lane], of the chunks before.
template <int kRows, int kVectors, int kBits>
void run_vectors(const Problem& q, const bf16* x, int64_t chunk, int64_t row, int64_t vector,
                 int64_t stride, float* sums) {
  constexpr int kPerWord = 16 / kBits;
  const int pairs = q.layout.pairs;
  const int64_t first = chunk * q.chunk_units * pairs;
  const int64_t last = first + q.chunk_units * pairs;
  const int64_t end = last < q.layout.steps ? last : q.layout.steps;
  const bool continued = chunk > 0, done = end == q.layout.steps;
  const bf16* weight[kVectors];
  const uint16_t* word[kVectors];
  __m512 sum[kVectors][kRows];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    weight[v] = q.weights(vector + v * stride, 0);
    word[v] = q.words(vector + v * stride, first);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      sum[v][r] =
          continued ? _mm512_loadu_ps(sums + (v * kRows + r) * kLanes) : _mm512_setzero_ps();
  }
  const __m512i mask = _mm512_set1_epi16((1 << kBits) - 1);
  const __m512i unit_size = _mm512_set1_epi16(short(1 << q.layout.unit_bits));
  // Where the places of the unit count from in its window; lookups ignore what is above.
  __m512i base = _mm512_set1_epi32(q.layout.by_group ? q.p.weight.pattern.m << 16 : 0);
  const int units = kWindow >> q.layout.unit_bits;  // in a window
  int pair = 0, unit = 0;
  for (int64_t at = first; at < end; at += kPerWord) {
    __m512i index[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      index[v] = _mm512_loadu_si512(word[v]);
      word[v] += 2 * kLanes;
    }
    const int64_t stop = end < at + kPerWord ? end : at + kPerWord;
    for (int64_t step = at; step < stop; ++step) {
      __m512bh w[kVectors];
      __m512i place[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const bf16* from = weight[v] + step * 2 * kLanes;
        if constexpr (kRows <= kStreamRows) prefetch_stream<kRows>(from + q.ahead);
        w[v] = (__m512bh)_mm512_loadu_si512(from);
        place[v] = _mm512_ternarylogic_epi32(index[v], mask, base, 0xEA);  // & mask | base
        index[v] = _mm512_srli_epi16(index[v], kBits);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        __m512i window = _mm512_load_si512(x + r * kWindow);
        if constexpr (kVectors > 1) asm("" : "+v"(window));  // loaded once for all vectors
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const __m512i of = _mm512_permutexvar_epi16(place[v], window);
          sum[v][r] = _mm512_dpbf16_ps(sum[v][r], w[v], (__m512bh)of);
        }
      }
      if (++pair < pairs) continue;
      pair = 0;
      base = _mm512_add_epi16(base, unit_size);
      if ((++unit & (units - 1)) == 0) x += kRows * kWindow;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      if (done) {
        const int64_t output = (vector + v * stride) * kLanes, left = q.p.weight.out - output;
        q.epilogue.store(row + r, output, int(left < kLanes ? left : kLanes), sum[v][r]);
      } else {
        _mm512_storeu_ps(sums + (v * kRows + r) * kLanes, sum[v][r]);
      }
    }
}

// Vectors [begin, end) of outputs for kRows rows. Those side by side are far apart in memory, where
// AMD's cores read several streams faster than near one another.
template <int kRows, int kBits>
void run_rows(const Problem& q, const bf16* x, int64_t row, int64_t begin, int64_t end,
              float* sums) {
  constexpr int kVectors = kRows <= 4 ? 4 : kRows <= 8 ? 2 : 1;
  const int64_t part = (end - begin) / kVectors;
  for (int64_t c = 0; c < q.chunks; ++c, x += q.chunk_windows * kRows * kWindow) {
    float* to = sums;
    for (int64_t v = begin; v < begin + part; ++v, to += kVectors * kRows * kLanes)
      run_vectors<kRows, kVectors, kBits>(q, x, c, row, v, part, to);
    if constexpr (kVectors > 1)
      for (int64_t v = begin + part * kVectors; v < end; ++v, to += kRows * kLanes)
        run_vectors<kRows, 1, kBits>(q, x, c, row, v, 0, to);
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

// One row; its windows are `pitch` apart.
void copy_windows(const MatmulParams& p, const PairLayout& layout, int64_t row, bf16* to,
                  int64_t pitch) {
  const int64_t stride = p.x.feature_stride, size = int64_t{1} << layout.unit_bits;
  const int64_t width = layout.width, window = width * (kWindow / size);  // inputs in each
  const bf16* from = static_cast<const bf16*>(p.x.data) + p.x.offset(row);
  for (int64_t left = p.x.features; left > 0;
       left -= window, from += window * stride, to += pitch) {
    if (stride == 1 && window == kWindow && left >= kWindow) {
      __builtin_memcpy(to, from, kWindow * sizeof(bf16));
      continue;
    }
    // Zeros after the last input: a unit may end without its second group.
    if (left < window) __builtin_memset(to, 0, kWindow * sizeof(bf16));
    for (int64_t i = 0; i < window && i < left; ++i)
      to[i / width * size + i % width] = from[i * stride];
  }
}

// Rows [row, row + rows), rows <= kRowsPacked.
void run(const MatmulParams& p, int64_t row, int64_t rows) {
  const PairLayout layout(p.weight);
  const bool few = rows <= kStreamRows;                   // then the weight is one stream
  const int64_t whole = layout.units ? layout.units : 1;  // without inputs there is the bias
  // A chunk ends with a word of indices and with a window.
  const int64_t units = kWindow >> layout.unit_bits;
  const int64_t step = units % layout.per_word ? units * layout.per_word : layout.per_word;
  const int64_t limit = (kChunk >> layout.unit_bits) / step * step;
  const int64_t chunk_units = few || whole <= limit ? whole : limit;
  const int64_t chunks = ceil_div(whole, chunk_units), windows = ceil_div(chunk_units, units);
  const int64_t step_bytes = 64 + 64 / layout.per_word;
  int64_t together = kBytesTogether / (layout.steps * step_bytes + 1) / 4 * 4;
  together = few ? layout.vectors : together < 4 ? 4 : together;
  const int64_t sums_size = chunks > 1 ? together * kMostRows * kLanes : 0;
  const int64_t slots = fastops::cpu::num_threads();

  const int64_t row_size = chunks * windows * kWindow;  // of packed x
  const int64_t x_bytes = round_up(rows * row_size * 2, 64);
  char* scratch =
      static_cast<char*>(fastops::cpu::thread_scratch(size_t(x_bytes + slots * sums_size * 4)));
  bf16* const x = reinterpret_cast<bf16*>(scratch);
  float* const sums = reinterpret_cast<float*>(scratch + x_bytes);
  fastops::cpu::parallel_for(0, rows, few ? rows : 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t block = r / kMostRows * kMostRows;
      const int64_t side = rows - block < kMostRows ? rows - block : kMostRows;
      copy_windows(p, layout, row + r, x + block * row_size + (r - block) * kWindow,
                   side * kWindow);
    }
  });

  const int64_t ahead = stream_ahead(rows) / int64_t{sizeof(bf16)};
  const Problem q{p, layout, Epilogue<bf16>(p), chunk_units, chunks, windows, ahead};
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
              run_rows[side - 1](q, x + r * row_size, row + r, v, end, sums + slot * sums_size);
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
