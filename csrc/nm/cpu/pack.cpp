// Builds the packings, once per weight: structures from the stored indices, weights by gathering.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/check.h"
#include "cpu/parallel.h"
#include "nm/cpu/elements.h"
#include "nm/cpu/kernels.h"
#include "nm/cpu/packing.h"
#include "nm/indices.h"

namespace fastops::nm::cpu {
namespace {

using fastops::cpu::parallel_for;

void pack_stream(const PackParams& p) {
  const StreamLayout layout(p.weight, kernels().lanes);
  const auto [n, m] = p.weight.pattern;
  const int bits = index_bits(m), lanes = layout.lanes;
  parallel_for(0, layout.vectors, 1, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      uint32_t* words = reinterpret_cast<uint32_t*>(p.structure) + v * layout.words * lanes;
      int32_t* source = p.source + v * layout.kept * lanes;
      std::memset(words, 0, size_t(layout.words * lanes) * 4);
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t row = v * lanes + lane;
        const uint8_t* indices = p.indices + row * p.weight.index_row_bytes();
        for (int64_t q = 0; q < layout.kept; ++q) {
          source[q * lanes + lane] = row < p.weight.out ? int32_t(row * layout.kept + q) : -1;
          if (row >= p.weight.out) continue;
          words[q / layout.per_word * lanes + lane] |= uint32_t(stored_index(indices, q, bits, m))
                                                       << q % layout.per_word * layout.bits;
        }
      }
    }
  });
}

void pack_pairs(const PackParams& p) {
  const PairLayout layout(p.weight);
  constexpr int kLanes = PairLayout::kLanes;
  const auto [n, m] = p.weight.pattern;
  const int bits = index_bits(m);
  const int64_t kept = p.weight.kept(), slots = 2 * layout.pairs;  // slots of a unit
  parallel_for(0, layout.vectors, 1, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      uint16_t* words = reinterpret_cast<uint16_t*>(p.structure) + v * layout.words * kLanes * 2;
      int32_t* source = p.source + v * layout.steps * kLanes * 2;
      std::memset(words, 0, size_t(layout.words * kLanes * 2) * sizeof(*words));
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t row = v * kLanes + lane;
        const uint8_t* indices = p.indices + row * p.weight.index_row_bytes();
        int place = 0;
        for (int64_t slot = 0; slot < layout.steps * 2; ++slot) {
          const int64_t j = slot % slots, q = slot / slots * layout.groups * n + j;
          const bool real = row < p.weight.out && j < layout.groups * n && q < kept;
          // A zero meets what its neighbour is multiplied by: an infinity elsewhere stays there.
          if (real)
            place = stored_index(indices, q, bits, m) + (layout.by_group ? 0 : int(j / n * m));
          const int64_t step = slot / 2, at = lane * 2 + slot % 2;
          source[step * kLanes * 2 + at] = real ? int32_t(row * kept + q) : -1;
          words[step / layout.per_word * kLanes * 2 + at] |=
              uint16_t(place << step % layout.per_word * layout.bits);
        }
      }
    }
  });
}

// One bit for each input of a tile.
__extension__ using Inputs = unsigned __int128;
static_assert(kPanelInputs <= 128 && kWideInputs <= 128);

int count(Inputs inputs) {
  return __builtin_popcountll(uint64_t(inputs)) + __builtin_popcountll(uint64_t(inputs >> 64));
}

// The lowest input of those left, which is taken.
int take(Inputs& inputs) {
  const uint64_t low = uint64_t(inputs);
  const int input = low ? __builtin_ctzll(low) : 64 + __builtin_ctzll(uint64_t(inputs >> 64));
  inputs &= inputs - 1;
  return input;
}

// A tile of the weight as bit masks: which inputs each output has, and where their values are.
class Tile {
 public:
  Tile(const PackParams& p, const PanelLayout& layout)
      : p_(p),
        layout_(layout),
        source_(size_t(kPanelOutputs * layout.tile_inputs * layout.together())) {}

  void read(int64_t output_tile, int64_t input_tile) {
    std::fill(inputs_, inputs_ + kPanelOutputs, Inputs{0});
    const int64_t output = output_tile * kPanelOutputs, input = input_tile * layout_.tile_inputs;
    const int64_t outputs = layout_.outputs_of(output_tile);
    const int64_t inputs = layout_.inputs_of(input_tile);
    if (layout_.pairing == Pairing::six) {
      read_sixes(output, outputs, input / kPairsOfFour, inputs / kPairsOfFour);
    } else if (layout_.pairing == Pairing::neighbours) {
      std::fill(source_.begin(), source_.end(), -1);
      const int64_t first = 2 * input, features = std::min(2 * inputs, p_.weight.in - first);
      read_rows(output, outputs, first, features, [&](int64_t row, int64_t col, int32_t from) {
        const int o = int(row - output), i = int(col - first);
        inputs_[o] |= Inputs{1} << i / 2;
        sources(o, i / 2)[i % 2] = from;
      });
    } else if (p_.kind == Kind::panels_transposed) {
      read_rows(input, inputs, output, outputs, [&](int64_t row, int64_t col, int32_t source) {
        add(int(col - output), int(row - input), source);
      });
    } else {
      read_rows(output, outputs, input, inputs, [&](int64_t row, int64_t col, int32_t source) {
        add(int(row - output), int(col - input), source);
      });
    }
  }

  Inputs inputs(int output) const { return inputs_[output]; }
  // Where the elements of a weight are.
  const int32_t* sources(int output, int input) const {
    return &source_[size_t((output * layout_.tile_inputs + input) * layout_.together())];
  }

 private:
  int32_t* sources(int output, int input) {
    return const_cast<int32_t*>(std::as_const(*this).sources(output, input));
  }

  void add(int output, int input, int32_t source) {
    inputs_[output] |= Inputs{1} << input;
    for (int i = 0; i < layout_.together(); ++i) sources(output, input)[i] = source + i;
  }

  // Which pair of its group is kept in each of `groups` groups from `group` on.
  void read_sixes(int64_t row, int64_t rows, int64_t group, int64_t groups) {
    const int m = p_.weight.pattern.m, bits = index_bits(m);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* indices = p_.indices + (row + r) * p_.weight.index_row_bytes();
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t q = (group + g) * 2;
        const int a = stored_index(indices, q, bits, m), b = stored_index(indices, q + 1, bits, m);
        const int pair = a < b ? a * (5 - a) / 2 + b - 1 : 0;  // they rise, or are broken
        add(int(r), int(g) * kPairsOfFour + pair, int32_t((row + r) * p_.weight.kept() + q));
      }
    }
  }

  // Every kept element in `rows` rows from `row` on and `cols` columns from `col` on.
  template <typename F>
  void read_rows(int64_t row, int64_t rows, int64_t col, int64_t cols, F f) const {
    const auto [n, m] = p_.weight.pattern;
    const int bits = index_bits(m);
    const int64_t first = col / m, last = ceil_div(col + cols, m);
    for (int64_t r = row; r < row + rows; ++r) {
      const uint8_t* indices = p_.indices + r * p_.weight.index_row_bytes();
      for (int64_t g = first; g < last; ++g)
        for (int j = 0; j < n; ++j) {
          const int64_t q = g * n + j, c = g * m + stored_index(indices, q, bits, m);
          if (c >= col && c < col + cols) f(r, c, int32_t(r * p_.weight.kept() + q));
        }
    }
  }

  const PackParams& p_;
  const PanelLayout& layout_;
  Inputs inputs_[kPanelOutputs];
  std::vector<int32_t> source_;
};

struct Pair {
  int first, second;
  Inputs shared, first_rest, second_rest;
};

// Each output in turn takes of those left the one with which it shares the most inputs.
std::vector<Pair> match(const Tile& tile, int outputs) {
  std::vector<int> left(static_cast<size_t>(outputs));
  for (int i = 0; i < outputs; ++i) left[size_t(i)] = i;
  std::vector<Pair> pairs;
  while (!left.empty()) {
    const int first = left.back();
    left.pop_back();
    const Inputs a = tile.inputs(first);
    if (left.empty()) {
      pairs.push_back({first, kPanelOutputs, 0, a, 0});
      break;
    }
    size_t best = 0;
    int most = -1;
    for (size_t i = 0; i < left.size(); ++i) {
      const int shared = count(a & tile.inputs(left[i]));
      if (shared > most) most = shared, best = i;
    }
    const Inputs b = tile.inputs(left[best]);
    pairs.push_back({first, left[best], a & b, a & ~b, b & ~a});
    left.erase(left.begin() + int64_t(best));
  }
  // Neighbours with equal counts: the loops of the kernel then run equally often.
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& x, const Pair& y) { return count(x.shared) < count(y.shared); });
  return pairs;
}

void emit(const Tile& tile, const std::vector<Pair>& pairs, PairHead* head, uint16_t* offset,
          int32_t* source, int together) {
  const int pitch = kernels().pitch;
  for (Pair pair : pairs) {
    const int rest_a = count(pair.first_rest), rest_b = count(pair.second_rest);
    const int apart = rest_a < rest_b ? rest_a : rest_b;
    *head++ = {uint16_t(pair.first), uint16_t(pair.second),    uint16_t(count(pair.shared)),
               uint16_t(apart),      uint16_t(rest_a - apart), uint16_t(rest_b - apart)};
    const auto put = [&](int output, int input) {
      source = std::copy_n(tile.sources(output, input), together, source);
    };
    const auto one = [&](int output, Inputs& inputs) {
      const int input = take(inputs);
      *offset++ = uint16_t(input * pitch);
      put(output, input);
    };
    while (pair.shared) {
      const int input = take(pair.shared);
      *offset++ = uint16_t(input * pitch);
      put(pair.first, input);
      put(pair.second, input);
    }
    for (int i = 0; i < apart; ++i) {
      one(pair.first, pair.first_rest);
      one(pair.second, pair.second_rest);
    }
    while (pair.first_rest) one(pair.first, pair.first_rest);
    while (pair.second_rest) one(pair.second, pair.second_rest);
  }
}

void pack_panels(const PackParams& p) {
  const PanelStructure out(p.weight, p.kind, p.structure);
  const int together = out.together();
  int64_t* start = out.start();
  parallel_for(0, out.tiles(), 1, [&](int64_t begin, int64_t end) {
    Tile tile(p, out);
    for (int64_t t = begin; t < end; ++t) {
      tile.read(t / out.input_tiles, t % out.input_tiles);
      start[t + 1] = 0;
      for (int o = 0; o < kPanelOutputs; ++o) start[t + 1] += count(tile.inputs(o));
    }
  });
  start[0] = 0;
  for (int64_t t = 0; t < out.tiles(); ++t) start[t + 1] += start[t];
  // Indices that repeat within a group are refused before; here they only must do no harm.
  for (int64_t i = start[out.tiles()] * together; i < out.weights(p.weight); ++i) p.source[i] = -1;
  parallel_for(0, out.tiles(), 1, [&](int64_t begin, int64_t end) {
    Tile tile(p, out);
    for (int64_t t = begin; t < end; ++t) {
      tile.read(t / out.input_tiles, t % out.input_tiles);
      emit(tile, match(tile, out.outputs_of(t / out.input_tiles)), out.heads(t),
           out.offsets_from(t), p.source + start[t] * together, together);
    }
  });
}

void pack_amx(const PackParams& p) {
  const AmxLayout layout(p.weight);
  const auto [n, m] = p.weight.pattern;
  const int bits = index_bits(m);
  const int64_t kept = p.weight.kept();
  int64_t* start = reinterpret_cast<int64_t*>(p.structure);
  uint32_t* masks = reinterpret_cast<uint32_t*>(p.structure + layout.masks_at());
  for (int64_t b = 0; b <= layout.blocks; ++b) {
    const int64_t rows = b * kAmxSide;
    start[b] = (rows < p.weight.out ? rows : p.weight.out) * kept;
  }
  for (int64_t i = layout.kept; i < layout.weights(); ++i) p.source[i] = -1;
  parallel_for(0, layout.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int32_t* source = p.source + start[b];
      for (int64_t step = 0; step < layout.steps; ++step) {
        uint32_t mask[kAmxSide] = {};  // by output
        int32_t from[kAmxSide][kAmxSide];
        for (int64_t o = 0; o < kAmxSide; ++o) {
          const int64_t row = b * kAmxSide + o, input = step * kAmxSide;
          if (row >= p.weight.out) continue;
          const uint8_t* indices = p.indices + row * p.weight.index_row_bytes();
          const int64_t last = ceil_div(input + kAmxSide, m);
          const int64_t groups = last < p.weight.groups() ? last : p.weight.groups();
          for (int64_t q = input / m * n; q < groups * n; ++q) {
            const int64_t i = q / n * m + stored_index(indices, q, bits, m) - input;
            if (i < 0 || i >= kAmxSide || mask[o] >> i) continue;  // indices rise, or are broken
            mask[o] |= uint32_t(1) << i;
            from[o][i] = int32_t(row * kept + q);
          }
        }
        for (int64_t line = 0; line < kAmxSide; ++line) {
          uint32_t bits_of_line = 0;
          for (int64_t bit = 0; bit < kAmxSide; ++bit) {
            const int64_t o = line / 16 * 16 + bit / 2, i = line % 16 * 2 + bit % 2;
            if (!(mask[o] >> i & 1)) continue;
            bits_of_line |= uint32_t(1) << bit;
            *source++ = from[o][i];
          }
          masks[(b * layout.steps + step) * kAmxSide + line] = bits_of_line;
        }
      }
      while (source < p.source + start[b + 1]) *source++ = -1;
    }
  });
}

}  // namespace

PackSizes pack_sizes(PackParams& p) {
  switch (p.kind) {
    case Kind::stream: {
      const StreamLayout layout(p.weight, kernels().lanes);
      return {layout.structure_bytes(), layout.weights()};
    }
    case Kind::pair_panels:
      if (!kernels().pair_matmul) break;
      [[fallthrough]];
    case Kind::panels:
    case Kind::panels_transposed: {
      const PanelLayout layout(p.weight, p.kind);
      const int64_t weights = layout.weights(p.weight);
      return {layout.offsets_at() + weights / layout.together() * int64_t(sizeof(uint16_t)),
              weights};
    }
    case Kind::pairs: {
      const PairLayout layout(p.weight);
      return {layout.structure_bytes(), layout.weights()};
    }
    case Kind::amx_tiles: {
      const AmxLayout layout(p.weight);
      return {layout.structure_bytes(), layout.weights()};
    }
    default: break;
  }
  fail("fastops._nm_pack: no such packing on the CPU");
}

void pack(const PackParams& p) {
  switch (p.kind) {
    case Kind::stream: return pack_stream(p);
    case Kind::pairs: return pack_pairs(p);
    case Kind::amx_tiles: return pack_amx(p);
    default: return pack_panels(p);
  }
}

void gather(const GatherParams& p) {
  with_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    const T* values = static_cast<const T*>(p.values);
    T* weights = static_cast<T*>(p.weights);
    parallel_for(0, p.size, 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = p.source[i];
        weights[i] = at >= 0 && at < p.count ? values[at] : T{};
      }
    });
  });
}

}  // namespace fastops::nm::cpu
