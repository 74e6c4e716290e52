// The packings of the CPU kernels as they lie in memory. Both list weights in the order in which
// the kernel reads them; `source` gives each its place in the stored values.
#pragma once

#include <cstdint>

#include "nm/nm.h"

namespace fastops::nm::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- stream: lanes are outputs -----------------------------------------------------------------
// weights:   [vector of outputs][kept][lane]
// structure: [vector of outputs][word][lane] uint32, each word the indices of the next per_word()
//            kept elements, the first in the low bits; only those bits count that the lookup reads.
struct StreamLayout {
  int lanes, bits, per_word;
  int64_t kept, words, vectors;

  StreamLayout(const Weight& w, int lanes)
      : lanes(lanes),
        bits(w.pattern.m <= 4    ? 2
             : w.pattern.m <= 16 ? 4
                                 : 8),
        per_word(32 / bits),
        kept(w.kept()),
        words(ceil_div(kept, per_word)),
        vectors(ceil_div(w.out, lanes)) {}
  int64_t structure_bytes() const { return vectors * words * lanes * 4; }
  int64_t weights() const { return vectors * kept * lanes; }
};

// ---- panels: lanes are rows of the activation ------------------------------------------------
// The (possibly transposed) weight is cut into tiles of kPanelOutputs outputs by kPanelInputs
// inputs, or kWideInputs where few are kept: an output's sums come and go once a tile. In a tile
// outputs go in pairs that share many inputs, so that a loaded input serves two.
//
// structure: int64 start[tiles + 1], then PairHead [tile][pair], then offsets uint16 from
//            start[tile] on: of the input in a packed panel, in bytes. Per pair those of inputs
//            shared, then (first, second) of inputs apart, then the rest of either.
// weights:   from start[tile] on, per pair (first, second) of each shared input, (first, second) of
//            inputs apart, then the rest of either.
// The offsets of a pair are fewer than its weights, so one start serves both.
//
// pair_panels: the same for bf16, where an input is a pair of features and a weight two elements.
// 2:4: the kPairsOfFour pairs that a group of four has, in lexicographic order, and the two kept of
// a group. Other patterns: neighbours, an even feature and the next, of which an output keeps those
// where it keeps either; the other element is a zero.
inline constexpr int kPanelOutputs = 256, kPanelInputs = 64, kWideInputs = 128;
inline constexpr int kPairsOfFour = 6, kSixPairInputs = 16 * kPairsOfFour;

enum class Pairing { none, six, neighbours };

struct PairHead {
  uint16_t first, second;  // outputs of the tile; second == kPanelOutputs: none
  uint16_t shared, apart, first_rest, second_rest;
};

struct PanelLayout {
  Pairing pairing;
  bool wide;
  int64_t outputs, inputs, tile_inputs, output_tiles, input_tiles, pairs;

  PanelLayout(const Weight& w, Kind kind)
      : pairing(kind != Kind::pair_panels              ? Pairing::none
                : w.pattern.n == 2 && w.pattern.m == 4 ? Pairing::six
                                                       : Pairing::neighbours),
        wide(pairing == Pairing::none && w.pattern.n * 8 <= w.pattern.m),
        outputs(kind == Kind::panels_transposed ? w.in : w.out),
        inputs(kind == Kind::panels_transposed  ? w.out
               : pairing == Pairing::six        ? w.in / 4 * kPairsOfFour
               : pairing == Pairing::neighbours ? ceil_div(w.in, 2)
                                                : w.in),
        tile_inputs(pairing == Pairing::six ? kSixPairInputs
                    : wide                  ? kWideInputs
                                            : kPanelInputs),
        output_tiles(ceil_div(outputs, kPanelOutputs)),
        input_tiles(ceil_div(inputs, tile_inputs)),
        pairs(kPanelOutputs / 2) {}
  // Elements of a weight, and of all weights at most.
  int together() const { return pairing == Pairing::none ? 1 : 2; }
  int64_t weights(const Weight& w) const {
    if (pairing != Pairing::neighbours) return w.out * w.kept();
    return w.out * 2 * (w.kept() < inputs ? w.kept() : inputs);
  }
  int64_t tiles() const { return output_tiles * input_tiles; }
  int64_t tile(int64_t output_tile, int64_t input_tile) const {
    return output_tile * input_tiles + input_tile;
  }
  int outputs_of(int64_t output_tile) const {
    const int64_t left = outputs - output_tile * kPanelOutputs;
    return int(left < kPanelOutputs ? left : kPanelOutputs);
  }
  int inputs_of(int64_t input_tile) const {
    const int64_t left = inputs - input_tile * tile_inputs;
    return int(left < tile_inputs ? left : tile_inputs);
  }
  int64_t heads_at() const { return (tiles() + 1) * int64_t(sizeof(int64_t)); }
  int64_t offsets_at() const { return heads_at() + tiles() * pairs * int64_t(sizeof(PairHead)); }
};

// The same, over a structure in memory.
struct PanelStructure : PanelLayout {
  uint8_t* bytes;

  PanelStructure(const Weight& w, Kind kind, const uint8_t* structure)
      : PanelLayout(w, kind), bytes(const_cast<uint8_t*>(structure)) {}
  int64_t* start() const { return reinterpret_cast<int64_t*>(bytes); }
  PairHead* heads(int64_t tile) const {
    return reinterpret_cast<PairHead*>(bytes + heads_at()) + tile * pairs;
  }
  uint16_t* offsets_from(int64_t tile) const {
    return reinterpret_cast<uint16_t*>(bytes + offsets_at()) + start()[tile];
  }
};

// ---- pairs: lanes are outputs, two kept elements each (bf16) -----------------------------------
// A unit is the fewest whole groups that keep an even number, where 32 inputs hold two groups.
// weights:   [vector of outputs][step][lane][2], a step being two kept elements of a unit; where a
//            unit keeps an odd number the last is a zero
// structure: [vector of outputs][word][lane][2] uint16, each the places of per_word steps'
//            elements, `bits` each, the first in the low bits. Places count from the unit's begin;
//            where each of two groups keeps one, from its group's. Bits above those count not.
struct PairLayout {
  static constexpr int kLanes = 16;
  int groups, width, pairs;  // of a unit: groups, inputs, steps
  int unit_bits;             // log2 of what a unit takes of a window
  bool by_group;
  int bits, per_word;
  int64_t units, steps, words, vectors;

  explicit PairLayout(const Weight& w)
      : groups(w.pattern.n % 2 && 2 * w.pattern.m <= 32 ? 2 : 1),
        width(groups * w.pattern.m),
        pairs((groups * w.pattern.n + 1) / 2),
        unit_bits(width <= 4    ? 2
                  : width <= 8  ? 3
                  : width <= 16 ? 4
                                : 5),
        by_group(w.pattern.n == 1 && groups == 2 && width == 1 << unit_bits && unit_bits > 2),
        bits(unit_bits - by_group),
        per_word(16 / bits),
        units(ceil_div(w.groups(), groups)),
        steps(units * pairs),
        words(ceil_div(steps, per_word)),
        vectors(ceil_div(w.out, kLanes)) {}
  int64_t structure_bytes() const { return vectors * words * kLanes * 4; }
  int64_t weights() const { return vectors * steps * kLanes * 2; }
};

// ---- amx_tiles: 32 outputs by 32 inputs ------------------------------------------------------
// structure: int64 start[blocks + 1], then uint32 [block of outputs][step of inputs][half of the
//            outputs][pair of inputs]: bit 2 o + i set where output o of the half keeps input i of
//            the pair.
// weights:   from start[block] on, in the order of the masks' bits. One load may reach kAmxOverhang
//            beyond the last.
inline constexpr int64_t kAmxSide = 32, kAmxOverhang = 32;

struct AmxLayout {
  int64_t blocks, steps, kept;

  explicit AmxLayout(const Weight& w)
      : blocks(ceil_div(w.out, kAmxSide)),
        steps(ceil_div(w.in, kAmxSide)),
        kept(w.out * w.kept()) {}
  int64_t masks_at() const { return (blocks + 1) * int64_t(sizeof(int64_t)); }
  int64_t structure_bytes() const { return masks_at() + blocks * steps * kAmxSide * 4; }
  int64_t weights() const { return kept + kAmxOverhang; }
};

}  // namespace fastops::nm::cpu
