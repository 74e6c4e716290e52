// Many rows: lanes are rows of the activation. Activations are packed feature by feature; a weight
// is one broadcast that multiplies the packed feature it was kept for, and where two outputs of a
// pair kept the same feature, it is loaded once for both: the load port is the narrow one.
//
// Order: a tile of outputs, a panel of rows, along the inputs. The sums of the tile stay in L2, 64
// packed features of the panel in L1 over all outputs of the tile; where few are kept, 128 of half
// as many rows, lest the sums' way to L2 and back take as long as what is added to them.
//
// bf16 where the CPU multiplies pairs well (pair_panels): the same, with a pair of activations in
// place of one and vdpbf16ps in place of a multiply-add. For 2:4 all six pairs of a group of four
// are packed, so that none need be looked up; for patterns that keep most, pairs of neighbours,
// where a product with a zero costs less than avoiding it.
#include <utility>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "nm/cpu/epilogue.h"
#include "nm/cpu/heuristics.h"
#include "nm/cpu/kernels.h"
#include "nm/cpu/packing.h"
#include "nm/cpu/pair_features.h"

namespace fastops::nm::cpu::FASTOPS_ISA {
namespace {

using fastops::cpu::parallel_for;

constexpr int kLanes = VecF32::size;
#ifdef FASTOPS_AVX512
constexpr int kMaxVectors = 8;  // of rows in a panel: two outputs' sums fill half the registers
#else
constexpr int kMaxVectors = 4;
#endif
constexpr int kWideVectors = 4;                                    // where a tile has more inputs
constexpr int kPitch = kMaxVectors * kLanes * int(sizeof(float));  // of a packed feature
static_assert(kPitch * kWideInputs <= 1 << 16 && kSixPairInputs <= kWideInputs);
constexpr int kTileWeights = kPanelOutputs * kPanelInputs;  // wide tiles keep less

// Makes the compiler keep v in a register: it would rather load a value once for each use of it.
inline VecF32 in_register(VecF32 v) {
#if defined(FASTOPS_AVX512)
  asm("" : "+v"(v.v));
#elif defined(__x86_64__)
  asm("" : "+x"(v.v));
#endif
  return v;
}

struct Panel {
  int64_t row, rows;
  int vectors;
  int64_t x_at;  // in floats

  int64_t width() const { return int64_t(vectors) * kLanes; }
};

// Where the results of a tile will go.
struct Destination {
  const char* y = nullptr;
  int64_t row_bytes = 0, rows = 0, lines = 0;

  // A store that misses waits: each row's lines are fetched while the last inputs are added.
  void fetch(int64_t row) const {
    if (row >= rows) return;
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(y + row * row_bytes + i * 64, 1);
  }
};

// A packed feature by its offset in a panel of kMaxVectors.
template <int kVectors>
const float* at(const float* x, uint16_t offset) {
  const char* from = reinterpret_cast<const char*>(x);
  return reinterpret_cast<const float*>(from + uint32_t(offset) * kVectors / kMaxVectors);
}

template <bool kPairs>
VecF32 multiply_add(VecF32 w, VecF32 x, VecF32 sum) {
#ifdef FASTOPS_AVX512
  if constexpr (kPairs) return _mm512_dpbf16_ps(sum.v, (__m512bh)w.v, (__m512bh)x.v);
#endif
  return fma(w, x, sum);
}

// Calls f(weight 2 i, weight 2 i + 1), each in all lanes, for i < count; returns what follows them.
// With kLoadFour four leave one register in turn: where a core loads one vector a cycle, a load
// for each would take a fifth of them.
template <bool kLoadFour, typename F>
const float* by_twos(const float* weight, int count, F f) {
#ifdef FASTOPS_AVX512
  if constexpr (kLoadFour) {
    const __m512i place[] = {_mm512_set1_epi32(0), _mm512_set1_epi32(1), _mm512_set1_epi32(2),
                             _mm512_set1_epi32(3)};
    for (; count >= 2; count -= 2, weight += 4) {
      const __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(weight));
      const auto at = [&](int i) { return VecF32(_mm512_permutexvar_ps(place[i], four)); };
      f(at(0), at(1));
      f(at(2), at(3));
    }
  }
#endif
  for (; count > 0; --count, weight += 2) f(VecF32(weight[0]), VecF32(weight[1]));
  return weight;
}

// Sums of every pair of a tile over one panel. sums: [kPanelOutputs + 1][width].
template <int kVectors, int kInputs, bool kPairs = false, bool kLoadFour = false>
void add_tile(const PairHead* head, int64_t pairs, const uint16_t* offset, const float* weight,
              const float* x, const float* next_x, float* sums, bool first_tile,
              const Destination& to) {
  constexpr int kWidth = kVectors * kLanes;
  constexpr int kLinesPerPair = kInputs * kWidth * 4 / 64 / (kPanelOutputs / 2);
  for (int64_t pair = 0; pair < pairs; ++pair, ++head) {
    to.fetch(pair);
    for (int i = 0; i < kLinesPerPair; ++i)
      fastops::cpu::prefetch(next_x + (pair * kLinesPerPair + i) * 16);
    for (int v = 0; v < kVectors; ++v) {  // the next pair's sums, into L1
      __builtin_prefetch(sums + int64_t(head[1].first) * kWidth + v * kLanes, 1);
      __builtin_prefetch(sums + int64_t(head[1].second) * kWidth + v * kLanes, 1);
    }
    VecF32 a[kVectors], b[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) a[v] = b[v] = VecF32(0.f);
    const auto shared = [&](VecF32 wa, VecF32 wb) {
      const float* from = at<kVectors>(x, *offset++);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const VecF32 value = in_register(VecF32::load(from + v * kLanes));
        a[v] = multiply_add<kPairs>(wa, value, a[v]);
        b[v] = multiply_add<kPairs>(wb, value, b[v]);
      }
    };
    const auto apart = [&](VecF32 wa, VecF32 wb) {
      const float *from_a = at<kVectors>(x, offset[0]), *from_b = at<kVectors>(x, offset[1]);
      offset += 2;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        a[v] = multiply_add<kPairs>(wa, VecF32::load(from_a + v * kLanes), a[v]);
        b[v] = multiply_add<kPairs>(wb, VecF32::load(from_b + v * kLanes), b[v]);
      }
    };
    weight = by_twos<kLoadFour>(weight, head->shared, shared);
    weight = by_twos<kLoadFour>(weight, head->apart, apart);
    for (int i = 0; i < head->first_rest; ++i) {
      const float* from = at<kVectors>(x, *offset++);
      const VecF32 w(*weight++);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        a[v] = multiply_add<kPairs>(w, VecF32::load(from + v * kLanes), a[v]);
    }
    for (int i = 0; i < head->second_rest; ++i) {
      const float* from = at<kVectors>(x, *offset++);
      const VecF32 w(*weight++);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        b[v] = multiply_add<kPairs>(w, VecF32::load(from + v * kLanes), b[v]);
    }
    // Sums of a tile are added up on their own: shorter sums round less.
    float* to_a = sums + int64_t(head->first) * kWidth;
    float* to_b = sums + int64_t(head->second) * kWidth;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      if (!first_tile) a[v] = a[v] + VecF32::load(to_a + v * kLanes);
      a[v].store(to_a + v * kLanes);
      if (!first_tile) b[v] = b[v] + VecF32::load(to_b + v * kLanes);
      b[v].store(to_b + v * kLanes);
    }
  }
}

using AddTile = decltype(&add_tile<1, kPanelInputs>);

// add_tile of 1, 2, ... vectors.
template <int kMost>
struct AddTiles {
  AddTile of[kMost];
};
template <int kInputs, bool kPairs, bool kLoadFour, int... kBefore>
constexpr AddTiles<sizeof...(kBefore)> add_tiles(std::integer_sequence<int, kBefore...>) {
  return {{add_tile<kBefore + 1, kInputs, kPairs, kLoadFour>...}};
}
using Most = std::make_integer_sequence<int, kMaxVectors>;
using Wide = std::make_integer_sequence<int, kWideVectors>;
constexpr auto kAddTile = add_tiles<kPanelInputs, false, false>(Most{});
constexpr auto kAddWideTile = add_tiles<kWideInputs, false, false>(Wide{});
#ifdef FASTOPS_AVX512
constexpr auto kAddWideTileByFours = add_tiles<kWideInputs, false, true>(Wide{});
constexpr auto kAddPairTile = add_tiles<kPanelInputs, true, true>(Most{});
constexpr auto kAddSixPairTile = add_tiles<kSixPairInputs, true, true>(Wide{});
#endif

const AddTile* choose_add_tile(const PanelLayout& layout) {
#ifdef FASTOPS_AVX512
  if (layout.pairing == Pairing::six) return kAddSixPairTile.of;
  if (layout.pairing == Pairing::neighbours) return kAddPairTile.of;
  if (layout.wide && one_load_a_cycle()) return kAddWideTileByFours.of;
#endif
  return layout.wide ? kAddWideTile.of : kAddTile.of;
}

template <typename T>
class PanelMatmul {
 public:
  explicit PanelMatmul(const MatmulParams& p)
      : p_(p),
        structure_(p.weight, p.kind, p.structure),
        epilogue_(p),
        pairs_(structure_.pairing != Pairing::none),
        most_vectors_(structure_.tile_inputs > kPanelInputs ? kWideVectors : kMaxVectors),
        add_tile_(choose_add_tile(structure_)) {}

  void run() {
    const int64_t x_limit = (int64_t{32} << 20) / 4 / (structure_.inputs + 1);
    constexpr int64_t kLeast = kMaxVectors * kLanes;
    int64_t together = x_limit < kRowsTogether ? x_limit : kRowsTogether;
    together = together < kLeast ? kLeast : together / kLeast * kLeast;
    for (int64_t row = 0; row < p_.x.count; row += together) {
      const int64_t left = p_.x.count - row;
      run_rows(row, left < together ? left : together);
    }
  }

 private:
  static constexpr int kMostPanels = int(kRowsTogether / (kWideVectors * kLanes)) + 1;

  void run_rows(int64_t row, int64_t rows) {
    int64_t x_size = 0;
    panels_ = 0;
    for (int64_t r = 0; r < rows;) {
      const int64_t left = rows - r, most = most_vectors_ * kLanes;
      const int64_t take = left < most ? left : most;
      Panel& panel = panel_[panels_++];
      panel = {row + r, take, int(ceil_div(take, kLanes)), x_size};
      x_size += panel.width() * structure_.inputs;
      r += take;
    }
    // A task is a tile of outputs of one panel; neighbours share the weights.
    const int64_t tasks = structure_.output_tiles * panels_;
    const int64_t work = rows * p_.weight.out * p_.weight.kept();
    int64_t slots = fastops::cpu::num_threads();
    slots = slots < tasks ? slots : tasks;
    slots = slots < 1 + work / kWorkPerTask ? slots : 1 + work / kWorkPerTask;

    constexpr int64_t kSums = int64_t(kPanelOutputs + 1) * kMaxVectors * kLanes;
    constexpr int64_t kSlot = kSums + kTileWeights;
    x_ = static_cast<float*>(
        fastops::cpu::thread_scratch(size_t(round_up(x_size, 16) + slots * kSlot) * 4));
    float* const slots_at = x_ + round_up(x_size, 16);
    const int64_t blocks = ceil_div(rows, kLanes);
    parallel_for(0, blocks, slots == 1 ? blocks : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pack(panel_[i / most_vectors_], i % most_vectors_ * kLanes);
    });
    parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) {
        float* const sums = slots_at + slot * kSlot;
        for (int64_t task = slot * tasks / slots; task < (slot + 1) * tasks / slots; ++task)
          run_task(panel_[task % panels_], task / panels_, sums, sums + kSums);
      }
    });
  }

  void pack(const Panel& panel, int64_t first) const {
#ifdef FASTOPS_AVX512
    if constexpr (__is_same(T, bf16))
      if (pairs_)
        return pack_pair_block(p_.x, panel.row + first, panel.rows - first, panel.width(),
                               structure_.pairing, x_ + panel.x_at + first);
#endif
    pack_block<T>(p_.x, panel.row + first, panel.rows - first, panel.width(), 0, p_.x.features,
                  x_ + panel.x_at + first);
  }

  void run_task(const Panel& panel, int64_t output_tile, float* sums, float* scratch) const {
    const int64_t pairs = (structure_.outputs_of(output_tile) + 1) / 2;
    for (int64_t i = 0; i < structure_.input_tiles; ++i) {
      const int64_t tile = structure_.tile(output_tile, i);
      const int64_t next = i + 1 < structure_.input_tiles ? i + 1 : 0;
      add_tile_[panel.vectors - 1](structure_.heads(tile), pairs, structure_.offsets_from(tile),
                                   tile_weights(tile, scratch), x_tile(panel, i),
                                   x_tile(panel, next), sums, i == 0,
                                   next ? Destination{} : destination(panel, output_tile));
    }
    finish(panel, output_tile, sums);
  }

  Destination destination(const Panel& panel, int64_t output_tile) const {
    const int64_t begin = output_tile * kPanelOutputs, row_bytes = p_.outputs() * int(sizeof(T));
    const char* y = static_cast<const char*>(p_.y) + panel.row * row_bytes;
    return {y + begin * int(sizeof(T)), row_bytes, panel.rows,
            ceil_div(structure_.outputs_of(output_tile) * int64_t{sizeof(T)}, 64)};
  }

  const float* x_tile(const Panel& panel, int64_t input_tile) const {
    return x_ + panel.x_at + input_tile * structure_.tile_inputs * panel.width();
  }

  // The weights of a tile in fp32, pairs as they are.
  const float* tile_weights(int64_t tile, float* scratch) const {
    const int64_t begin = structure_.start()[tile], end = structure_.start()[tile + 1];
    const T* weights = static_cast<const T*>(p_.weights);
    if constexpr (__is_same(T, float)) {
      return weights + begin;
    } else {
      if (pairs_) return reinterpret_cast<const float*>(weights) + begin;
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) VecF32::load(weights + i).store(scratch + i - begin);
      VecF32::load(weights + i, int(end - i)).store(scratch + i - begin, int(end - i));
      return scratch;
    }
  }

  // From [output][row] to rows of outputs.
  void finish(const Panel& panel, int64_t output_tile, const float* sums) const {
    const int outputs = structure_.outputs_of(output_tile);
    for (int64_t r = 0; r < panel.rows; r += kLanes)
      for (int o = 0; o < outputs; o += kLanes) {
        VecF32 square[kLanes];
        for (int i = 0; i < kLanes; ++i)
          square[i] =
              o + i < outputs ? VecF32::load(sums + (o + i) * panel.width() + r) : VecF32(0.f);
        fastops::cpu::transpose(square);
        const int count = outputs - o < kLanes ? outputs - o : kLanes;
        for (int i = 0; i < kLanes && r + i < panel.rows; ++i)
          epilogue_.store(panel.row + r + i, output_tile * kPanelOutputs + o, count, square[i]);
      }
  }

  const MatmulParams& p_;
  const PanelStructure structure_;
  const Epilogue<T> epilogue_;
  const bool pairs_;
  const int64_t most_vectors_;  // in a panel
  const AddTile* const add_tile_;
  Panel panel_[kMostPanels];
  int panels_ = 0;
  float* x_ = nullptr;
};

}  // namespace

const int lanes = kLanes, pitch = kPitch;

void panel_matmul(const MatmulParams& p) {
  with_element(p.x.dtype, [&](auto t) { PanelMatmul<decltype(t)>(p).run(); });
}

}  // namespace fastops::nm::cpu::FASTOPS_ISA
