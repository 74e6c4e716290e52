// bf16 with many rows on CPUs with matrix extensions (AMX): the weight is expanded block by block
// into tiles in cache and multiplied densely. Tensor units make zeros cheaper than looking them up;
// what is saved is the memory of the weight, and the reordering a dense product does every call.
//
// A is the weight (16 outputs by 32 inputs a tile, expanded by vpexpandw from a bit mask a row), B
// the activations (pairs of inputs by 16 rows). 2 x 2 tiles of sums. Order: 256 outputs, 1024
// inputs of them (512 KB expanded), every 32 rows.
#include <immintrin.h>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "nm/cpu/amx.h"
#include "nm/cpu/epilogue.h"
#include "nm/cpu/packing.h"

namespace fastops::nm::cpu::amx {
namespace {

using fastops::cpu::parallel_for;

constexpr int kTile = 512;                // bf16 in a tile of A or B: 16 x 32
constexpr int kSums = 4 * 256;            // fp32 sums of 32 outputs by 32 rows, tile by tile
constexpr int64_t kStepsTogether = 32;    // of 32 inputs
constexpr int64_t kBlocksTogether = 8;    // of 32 outputs
constexpr int64_t kMostBytes = 32 << 20;  // of packed activations

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

class AmxMatmul {
 public:
  explicit AmxMatmul(const MatmulParams& p)
      : p_(p),
        layout_(p.weight),
        epilogue_(p),
        masks_(reinterpret_cast<const uint32_t*>(p.structure + layout_.masks_at())),
        start_(reinterpret_cast<const int64_t*>(p.structure)) {}

  void run() {
    const int64_t row_bytes = layout_.steps * 64;
    int64_t together = kMostBytes / row_bytes / kSide * kSide;
    together = together < kSide ? kSide : together;
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
    const int64_t threads = fastops::cpu::num_threads();
    const int64_t share = ceil_div(layout_.blocks, threads);
    group_ = share < kBlocksTogether ? share : kBlocksTogether;
    const int64_t tasks = ceil_div(layout_.blocks, group_);
    const int64_t slots = tasks < threads ? tasks : threads;

    const int64_t x_bytes = row_blocks_ * kSide * layout_.steps * 64;
    const int64_t a_bytes = group_ * kStepsTogether * 2 * kTile * 2;
    const int64_t slot_bytes = a_bytes + group_ * row_blocks_ * kSums * 4;
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
        for (int64_t task = slot * tasks / slots; task < (slot + 1) * tasks / slots; ++task)
          run_task(task * group_, reinterpret_cast<uint16_t*>(own),
                   reinterpret_cast<float*>(own + a_bytes));
      }
    });
  }

  // 16 rows as tiles of B: [step][pair of inputs][row].
  void pack(int64_t half) const {
    const bf16* from[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t r = half * 16 + i;
      from[i] = r < rows_ ? static_cast<const bf16*>(p_.x.data) + p_.x.offset(row_ + r) : nullptr;
    }
    for (int64_t step = 0; step < layout_.steps; ++step) {
      const int64_t input = step * 32, left = p_.x.features - input;
      const int count = int(left < 32 ? left : 32);
      VecF32 square[16];
      for (int i = 0; i < 16; ++i) {
        __m512i pairs = _mm512_setzero_si512();
        if (from[i] && p_.x.feature_stride == 1) {
          pairs =
              _mm512_maskz_loadu_epi16(__mmask32(_bzhi_u32(~0u, unsigned(count))), from[i] + input);
        } else if (from[i]) {
          alignas(64) uint16_t bits[32] = {};
          for (int k = 0; k < count; ++k) bits[k] = from[i][(input + k) * p_.x.feature_stride].bits;
          pairs = _mm512_load_si512(bits);
        }
        square[i] = _mm512_castsi512_ps(pairs);
      }
      fastops::cpu::transpose(square);
      float* to = reinterpret_cast<float*>(x_tile(half / 2, step) + half % 2 * kTile);
      for (int i = 0; i < 16; ++i) square[i].store(to + i * 16);
    }
  }

  uint16_t* x_tile(int64_t row_block, int64_t step) const {
    return x_ + (row_block * layout_.steps + step) * 2 * kTile;
  }

  void run_task(int64_t block, uint16_t* a, float* sums) const {
    const int64_t left = layout_.blocks - block, blocks = left < group_ ? left : group_;
    const bf16* weights[kBlocksTogether];
    for (int64_t b = 0; b < blocks; ++b)
      weights[b] = static_cast<const bf16*>(p_.weights) + start_[block + b];
    const bool several = layout_.steps > kStepsTogether;  // else sums need not outlive a block
    for (int64_t step = 0; step < layout_.steps; step += kStepsTogether) {
      const int64_t rest = layout_.steps - step;
      const int64_t steps = rest < kStepsTogether ? rest : kStepsTogether;
      const bool last = steps == rest;
      for (int64_t b = 0; b < blocks; ++b)
        weights[b] = expand(block + b, step, steps, weights[b], a_block(a, b));
      for (int64_t r = 0; r < row_blocks_; ++r)
        for (int64_t b = 0; b < blocks; ++b) {
          float* sum = sums + (several ? (r * group_ + b) * kSums : 0);
          multiply(a_block(a, b), x_tile(r, step), steps, sum, step == 0);
          if (last) finish(r, block + b, sum);
        }
    }
  }

  static uint16_t* a_block(uint16_t* a, int64_t b) { return a + b * kStepsTogether * 2 * kTile; }

  // 32 outputs by 32 inputs a step, zeros between the kept; the end of the weights it took.
  const bf16* expand(int64_t block, int64_t step, int64_t steps, const bf16* weight,
                     uint16_t* to) const {
    const uint32_t* mask = masks_ + (block * layout_.steps + step) * kSide;
    for (int64_t i = 0; i < steps * kSide; ++i, ++mask, to += 32) {
      const __m512i kept = _mm512_loadu_si512(weight);
      _mm512_store_si512(to, _mm512_maskz_expand_epi16(__mmask32(*mask), kept));
      weight += __builtin_popcount(*mask);
    }
    return weight;
  }

  static void multiply(const uint16_t* a, const uint16_t* x, int64_t steps, float* sums,
                       bool first) {
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
    for (int64_t s = 0; s < steps; ++s, a += 2 * kTile, x += 2 * kTile) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, x, 64);
      _tile_loadd(7, x + kTile, 64);
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

  // From tiles of [output][row] to rows of outputs.
  void finish(int64_t row_block, int64_t block, const float* sums) const {
    for (int tile = 0; tile < 4; ++tile) {
      const int64_t output = block * kSide + tile / 2 * 16, row = row_block * kSide + tile % 2 * 16;
      const int64_t left = p_.weight.out - output;
      if (left <= 0) continue;
      VecF32 square[16];
      for (int i = 0; i < 16; ++i) square[i] = VecF32::load(sums + tile * 256 + i * 16);
      fastops::cpu::transpose(square);
      for (int i = 0; i < 16 && row + i < rows_; ++i)
        epilogue_.store(row_ + row + i, output, int(left < 16 ? left : 16), square[i]);
    }
  }

  const MatmulParams& p_;
  const AmxLayout layout_;
  const Epilogue<bf16> epilogue_;
  const uint32_t* masks_;
  const int64_t* start_;
  uint16_t* x_ = nullptr;
  int64_t row_ = 0, rows_ = 0, row_blocks_ = 0, group_ = 1;
};

}  // namespace

void matmul(const MatmulParams& p) { AmxMatmul(p).run(); }

}  // namespace fastops::nm::cpu::amx
