// bf16 with many rows on CPUs with matrix extensions (AMX): the weight is expanded block by block
// into tiles in cache and multiplied densely. Tensor units make zeros cheaper than looking them up;
// what is saved is the memory of the weight, and the reordering a dense product does every call.
//
// A is the activations (16 rows by 32 inputs a tile), B the weight (16 pairs of inputs by 16
// outputs, each pair a row that vpexpandw expands from a bit mask), so that sums lie as y does. 2 x
// 2 tiles of sums take four loads for four products, which is more than L2 has to give: A must hit
// L1, and B, loaded past it (tileloaddt1), must leave it there. Hence the order: a group of
// outputs, a slab of inputs of them (expanded: 768 KB, L2), 32 rows, a chunk of the slab (24 KB of
// A), blocks of outputs. Sums wait in L2 from chunk to chunk, and leave for y row by row between
// the products that follow.
#include <immintrin.h>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "nm/cpu/amx.h"
#include "nm/cpu/epilogue.h"
#include "nm/cpu/packing.h"

namespace fastops::nm::cpu::amx {
namespace {

using fastops::cpu::parallel_for;

constexpr int kTile = 512;      // bf16 in a tile of A or B: 16 x 32
constexpr int kSums = 4 * 256;  // fp32 sums of 32 rows by 32 outputs, tile by tile
constexpr int64_t kChunkSteps = 12, kSlabSteps = 24;  // of 32 inputs
constexpr int64_t kMostBlocks = 16;                   // of 32 outputs, in a group
constexpr int64_t kMostRows = 1024;                   // that share one expansion
constexpr int64_t kMostBytes = 32 << 20;              // of packed activations
constexpr int64_t kMostSums = 1 << 18;                // of a group while there are slabs to come

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles of one thread, from here to the end of the scope.
class Tiles {
 public:
  Tiles() { _tile_loadconfig(&config_); }
  ~Tiles() { _tile_release(); }

 private:
  TileConfig config_;
};

// Piece `piece` of `pieces` equal ones, in whole units.
struct Piece {
  int64_t begin, end;
  Piece(int64_t size, int64_t piece, int64_t pieces)
      : begin(piece * size / pieces), end((piece + 1) * size / pieces) {}
};

// Memory that is needed soon, fetched piece by piece.
struct Ahead {
  const void* from = nullptr;
  int64_t bytes = 0;

  template <int kHint>
  void fetch(int64_t piece, int64_t pieces) const {
    const Piece lines(ceil_div(bytes, 64), piece, pieces);
    for (int64_t i = lines.begin; i < lines.end; ++i)
      _mm_prefetch(static_cast<const char*>(from) + i * 64, _mm_hint(kHint));
  }
};

class AmxMatmul {
 public:
  explicit AmxMatmul(const MatmulParams& p)
      : p_(p),
        layout_(p.weight),
        epilogue_(p),
        masks_(reinterpret_cast<const uint32_t*>(p.structure + layout_.masks_at())),
        start_(reinterpret_cast<const int64_t*>(p.structure)) {
    slabs_ = layout_.steps > kSlabSteps ? ceil_div(layout_.steps, kSlabSteps) : 1;
    slab_ = ceil_div(layout_.steps, slabs_);
  }

  void run() {
    const int64_t row_bytes = layout_.steps * 64 + 1;
    int64_t together = kMostBytes / row_bytes / kSide * kSide;
    together = together < kSide ? kSide : together > kMostRows ? kMostRows : together;
    for (int64_t row = 0; row < p_.x.count; row += together) {
      const int64_t left = p_.x.count - row;
      run_rows(row, left < together ? left : together);
    }
  }

 private:
  static constexpr int64_t kSide = kAmxSide;

  void run_rows(int64_t row, int64_t rows) {
    row_ = row;
    rows_ = rows;
    row_blocks_ = ceil_div(rows, kSide);
    // Where there is one slab sums live until the next 32 rows are done.
    kept_row_blocks_ = slabs_ > 1 ? row_blocks_ : 2;
    const int64_t threads = fastops::cpu::num_threads();
    const int64_t share = ceil_div(layout_.blocks, threads);
    int64_t most = kMostSums / (kept_row_blocks_ * kSums);
    most = most < 4 ? 4 : most < kMostBlocks ? most : kMostBlocks;
    group_ = ceil_div(share, ceil_div(share, most));
    const int64_t tasks = ceil_div(layout_.blocks, group_);
    const int64_t slots = tasks < threads ? tasks : threads;

    const int64_t x_bytes = row_blocks_ * kSide * layout_.steps * 64;
    const int64_t b_bytes = group_ * slab_ * 2 * kTile * 2;
    const int64_t slot_bytes = b_bytes + group_ * kept_row_blocks_ * kSums * 4;
    char* scratch =
        static_cast<char*>(fastops::cpu::thread_scratch(size_t(x_bytes + slots * slot_bytes)));
    x_ = reinterpret_cast<uint16_t*>(scratch);
    parallel_for(0, row_blocks_ * 2, 4, [&](int64_t begin, int64_t end) {
      for (int64_t half = begin; half < end; ++half) pack(half);
    });
    parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      const Tiles tiles;
      for (int64_t slot = begin; slot < end; ++slot) {
        char* own = scratch + x_bytes + slot * slot_bytes;
        for (int64_t task = slot * tasks / slots; task < (slot + 1) * tasks / slots; ++task) {
          const int64_t block = task * group_, left = layout_.blocks - block;
          run_group({block, left < group_ ? left : group_, reinterpret_cast<uint16_t*>(own),
                     reinterpret_cast<float*>(own + b_bytes)});
        }
      }
    });
  }

  // 16 rows as tiles of A: [step][row][input].
  void pack(int64_t half) const {
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t r = half * 16 + i;
      uint16_t* to = x_tile(half / 2, 0) + half % 2 * kTile + i * 32;
      const bf16* from =
          r < rows_ ? static_cast<const bf16*>(p_.x.data) + p_.x.offset(row_ + r) : nullptr;
      for (int64_t step = 0; step < layout_.steps; ++step, to += 2 * kTile) {
        const int64_t input = step * 32, left = p_.x.features - input;
        const int count = int(left < 32 ? left : 32);
        __m512i inputs = _mm512_setzero_si512();
        if (from && p_.x.feature_stride == 1) {
          inputs =
              _mm512_maskz_loadu_epi16(__mmask32(_bzhi_u32(~0u, unsigned(count))), from + input);
        } else if (from) {
          alignas(64) uint16_t bits[32] = {};
          for (int k = 0; k < count; ++k) bits[k] = from[(input + k) * p_.x.feature_stride].bits;
          inputs = _mm512_load_si512(bits);
        }
        _mm512_store_si512(to, inputs);
      }
    }
  }

  uint16_t* x_tile(int64_t row_block, int64_t step) const {
    return x_ + (row_block * layout_.steps + step) * 2 * kTile;
  }

  struct Group {
    int64_t block, blocks;
    uint16_t* b;
    float* sums;
  };

  void run_group(const Group& g) const {
    const bf16* weights[kMostBlocks];
    for (int64_t i = 0; i < g.blocks; ++i) weights[i] = first_weight(g.block + i);
    for (int64_t slab = 0; slab < slabs_; ++slab) {
      const Piece steps(layout_.steps, slab, slabs_);
      Ahead ahead[kMostBlocks];
      for (int64_t i = 0; i < g.blocks; ++i) {
        const bf16* from = weights[i];
        weights[i] =
            expand(mask(g.block + i, steps.begin), steps.end - steps.begin, from, b_tile(g, i, 0));
        ahead[i] = {slab + 1 < slabs_ ? weights[i] : first_weight(g.block + g.blocks + i),
                    (weights[i] - from) * 2};
      }
      for (int64_t r = 0; r < row_blocks_; ++r) run_slab(g, steps, r, ahead);
    }
    finish(g, row_blocks_ - 1, 0, 1);
  }

  // 32 rows; those before leave between the products of the last slab.
  void run_slab(const Group& g, Piece slab, int64_t r, const Ahead* weights) const {
    const int64_t steps = slab.end - slab.begin, chunks = steps ? ceil_div(steps, kChunkSteps) : 1;
    const bool first = slab.begin == 0, last = slab.end == layout_.steps;
    const bool more = r + 1 < row_blocks_;
    const Ahead x{x_tile(more ? r + 1 : 0, slab.begin), steps * kTile * 4};
    const Ahead sums{sums_of(g, r + 1, 0), first || !more ? 0 : g.blocks * kSums * 4};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Piece part(steps, chunk, chunks);
      for (int64_t i = 0; i < g.blocks; ++i) {
        const int64_t piece = chunk * g.blocks + i, pieces = chunks * g.blocks;
        weights[i].fetch<_MM_HINT_T1>(r * chunks + chunk, row_blocks_ * chunks);
        x.fetch<_MM_HINT_T1>(piece, pieces);
        sums.fetch<_MM_HINT_T1>(piece, pieces);
        if (last && r > 0) finish(g, r - 1, piece, pieces);
        multiply(x_tile(r, slab.begin + part.begin), b_tile(g, i, part.begin),
                 part.end - part.begin, sums_of(g, r, i),
                 sums_of(g, r, i + 1 < g.blocks ? i + 1 : 0), first && chunk == 0);
      }
    }
  }

  const bf16* first_weight(int64_t block) const {
    return static_cast<const bf16*>(p_.weights) + start_[block < layout_.blocks ? block : 0];
  }
  const uint32_t* mask(int64_t block, int64_t step) const {
    return masks_ + (block * layout_.steps + step) * kSide;
  }
  uint16_t* b_tile(const Group& g, int64_t block, int64_t step) const {
    return g.b + (block * slab_ + step) * 2 * kTile;
  }
  float* sums_of(const Group& g, int64_t row_block, int64_t block) const {
    return g.sums + (row_block % kept_row_blocks_ * group_ + block) * kSums;
  }

  // 32 outputs by 32 inputs a step, zeros between the kept; the end of the weights it took.
  static const bf16* expand(const uint32_t* mask, int64_t steps, const bf16* weight, uint16_t* to) {
    for (int64_t i = 0; i < steps * kSide; ++i, ++mask, to += 32) {
      const __m512i kept = _mm512_loadu_si512(weight);
      _mm512_store_si512(to, _mm512_maskz_expand_epi16(__mmask32(*mask), kept));
      weight += __builtin_popcount(*mask);
    }
    return weight;
  }

  static void multiply(const uint16_t* a, const uint16_t* b, int64_t steps, float* sums,
                       const float* next_sums, bool first) {
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, sums, 64);
      _tile_loadd(1, sums + 256, 64);
      _tile_loadd(2, sums + 512, 64);
      _tile_loadd(3, sums + 768, 64);
    }
    for (int64_t s = 0; s < steps; ++s, a += 2 * kTile, b += 2 * kTile) {
      Ahead{next_sums, kSums * 4}.fetch<_MM_HINT_T0>(s, steps);
      _tile_loadd(4, a, 64);
      _tile_stream_loadd(6, b, 64);
      _tile_stream_loadd(7, b + kTile, 64);
      _tile_loadd(5, a + kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }

  // A piece of 32 rows of y; a store that misses waits, so the next row's lines are fetched.
  void finish(const Group& g, int64_t row_block, int64_t piece, int64_t pieces) const {
    const int64_t row = row_block * kSide, left = rows_ - row;
    const int64_t outputs = p_.weight.out - g.block * kSide;
    const Piece rows(kSide, piece, pieces);
    const bf16* next =
        static_cast<const bf16*>(p_.y) + (row_ + row) * p_.weight.out + g.block * kSide;
    for (int64_t i = rows.begin; i < rows.end && i < left; ++i)
      for (int64_t block = 0; block < g.blocks; ++block) {
        const float* sum = sums_of(g, row_block, block) + i / 16 * 512 + i % 16 * 16;
        const int64_t output = block * kSide, count = outputs - output;
        if (i + 1 < left) __builtin_prefetch(next + (i + 1) * p_.weight.out + output, 1);
        epilogue_.store_pair(row_ + row + i, g.block * kSide + output,
                             int(count < kSide ? count : kSide), VecF32::load(sum),
                             VecF32::load(sum + 256));
      }
  }

  const MatmulParams& p_;
  const AmxLayout layout_;
  const Epilogue<bf16> epilogue_;
  const uint32_t* masks_;
  const int64_t* start_;
  int64_t slabs_ = 1, slab_ = 0;  // steps in one
  uint16_t* x_ = nullptr;
  int64_t row_ = 0, rows_ = 0, row_blocks_ = 0, kept_row_blocks_ = 0, group_ = 1;
};

}  // namespace

void matmul(const MatmulParams& p) { AmxMatmul(p).run(); }

}  // namespace fastops::nm::cpu::amx
