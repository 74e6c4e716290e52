// Pruning, compression and their inverses: one pass over the weight each, rows to threads.
#include <atomic>

#include "cpu/parallel.h"
#include "nm/cpu/elements.h"
#include "nm/indices.h"

namespace fastops::nm::cpu {
namespace {

using fastops::cpu::float_to_bits;
using fastops::cpu::parallel_for;

constexpr int64_t kElementsPerTask = 16384;

int64_t rows_per_task(const Weight& w) { return 1 + kElementsPerTask / (w.in + 1); }

// Floats in the order of the contract as integers: NaN above everything, +0 and -0 equal.
uint32_t rank(float f) {
  const uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
  if ((u & 0x7fffffffu) == 0) return 0x80000000u;
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
uint32_t magnitude_rank(float f) { return rank(float_to_bits(f) >> 31 ? -f : f); }

template <typename T>
const T& at(const Matrix& a, int64_t row, int64_t col) {
  return static_cast<const T*>(a.data)[row * a.row_stride + col * a.col_stride];
}

// Bit i set: element i of the group is among the n of the largest keys.
uint32_t largest(const uint64_t* key, int n, int m) {
  uint32_t kept = 0;
  for (int i = 0; i < m; ++i) {
    int before = 0;
    for (int j = 0; j < m; ++j) before += key[j] > key[i] || (key[j] == key[i] && j < i);
    kept |= uint32_t(before < n) << i;
  }
  return kept;
}

template <typename T, typename S>
void select_rows(const SelectParams& p, int64_t begin, int64_t end) {
  const auto [n, m] = p.weight.pattern;
  uint64_t key[kMaxGroup];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < p.weight.groups(); ++g) {
      for (int i = 0; i < m; ++i) {
        const uint32_t size = magnitude_rank(to_float(at<T>(p.w, row, g * m + i)));
        const uint32_t score = p.scores ? rank(to_float(at<S>(p.scores, row, g * m + i))) : size;
        key[i] = uint64_t(score) << 32 | size;
      }
      const uint32_t kept = largest(key, n, m);
      for (int i = 0; i < m; ++i) {
        const bool keep = kept >> i & 1;
        const int64_t to = row * p.weight.in + g * m + i;
        if (p.mask) p.mask[to] = keep;
        else static_cast<T*>(p.pruned)[to] = keep ? at<T>(p.w, row, g * m + i) : T{};
      }
    }
  }
}

// Bits from 0 on until `kept` has n of them.
uint32_t fill_up(uint32_t kept, int n) {
  for (uint32_t bit = 1; __builtin_popcount(kept) < n; bit <<= 1) kept |= bit;
  return kept;
}

template <typename T>
int64_t compress_row(const CompressParams& p, int64_t row) {
  const auto [n, m] = p.weight.pattern;
  const int bits = index_bits(m);
  const int64_t groups = p.weight.groups(), kept_in_row = p.weight.kept();
  T* values = static_cast<T*>(p.values) + row * kept_in_row;
  uint8_t* indices = p.indices + row * p.weight.index_row_bytes();
  int64_t bad = kNoneBad, q = 0;
  for (int64_t b = 0; b < p.weight.index_row_bytes(); ++b) indices[b] = 0;
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t kept = 0;
    for (int i = 0; i < m; ++i) {
      const bool keep = p.mask ? at<uint8_t>(p.mask, row, g * m + i) != 0
                               : to_float(at<T>(p.w, row, g * m + i)) != 0;  // NaN is not 0
      kept |= uint32_t(keep) << i;
    }
    if (__builtin_popcount(kept) > n && bad == kNoneBad) bad = row * groups + g;
    const uint32_t in_mask = kept;
    kept = fill_up(kept, n);
    for (int taken = 0; taken < n; ++taken, ++q, kept &= kept - 1) {
      const int i = __builtin_ctz(kept);
      indices[q * bits >> 3] |= uint8_t(i << (q * bits & 7));
      values[q] = in_mask >> i & 1 ? at<T>(p.w, row, g * m + i) : T{};
    }
  }
  return bad;
}

// Keeps the least of the groups that threads report.
void note_bad(std::atomic<int64_t>& first, int64_t bad) {
  int64_t known = first.load();
  while (bad < known && !first.compare_exchange_weak(known, bad)) {
  }
}

}  // namespace

void select(const SelectParams& p) {
  with_dtype(p.w.dtype, [&](auto t) {
    with_dtype(p.scores.dtype, [&](auto s) {
      parallel_for(0, p.weight.out, rows_per_task(p.weight), [&](int64_t begin, int64_t end) {
        select_rows<decltype(t), decltype(s)>(p, begin, end);
      });
    });
  });
}

void compress(const CompressParams& p) {
  std::atomic<int64_t> first{kNoneBad};
  with_dtype(p.w.dtype, [&](auto t) {
    parallel_for(0, p.weight.out, rows_per_task(p.weight), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        note_bad(first, compress_row<decltype(t)>(p, row));
    });
  });
  *p.bad = first;
}

void decompress(const DecompressParams& p) {
  const auto [n, m] = p.weight.pattern;
  const int bits = index_bits(m);
  const int64_t kept = p.weight.kept();
  with_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(0, p.weight.out, rows_per_task(p.weight), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* w = static_cast<T*>(p.w) + row * p.weight.in;
        const T* values = static_cast<const T*>(p.values) + row * kept;
        const uint8_t* indices = p.indices + row * p.weight.index_row_bytes();
        for (int64_t i = 0; i < p.weight.in; ++i) w[i] = T{};
        for (int64_t q = 0; q < kept; ++q)
          w[q / n * m + stored_index(indices, q, bits, m)] = values[q];
      }
    });
  });
}

void check(const CheckParams& p) {
  const auto [n, m] = p.weight.pattern;
  const int bits = index_bits(m), low = (1 << bits) - 1;
  std::atomic<int64_t> first{kNoneBad};
  parallel_for(0, p.weight.out, rows_per_task(p.weight), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* indices = p.indices + row * p.weight.index_row_bytes();
      int before = -1;
      for (int64_t q = 0; q < p.weight.kept(); ++q) {
        const int index = indices[q * bits >> 3] >> (q * bits & 7) & low;
        if (q % n == 0) before = -1;
        if (index <= before || index >= m) {
          note_bad(first, row * p.weight.groups() + q / n);
          break;
        }
        before = index;
      }
    }
  });
  *p.bad = first;
}

}  // namespace fastops::nm::cpu
