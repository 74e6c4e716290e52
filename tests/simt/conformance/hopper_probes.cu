// sm_90: stmatrix.
#include <utility>

#include "conformance/manual.h"
#include "conformance/probe.h"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/stmatrix.cuh"

namespace conformance {
namespace {

using namespace fastops::ptx;

// ---- stmatrix --------------------------------------------------------------------------------

template <int kCount, bool kTransposed>
__global__ void stmatrix_probe(unsigned* out) {
  __shared__ __align__(16) unsigned tile[kCount * 32];
  const unsigned lane = threadIdx.x;
  const unsigned row = lane < 8 * kCount ? 8 * kCount - 1 - lane : 0;
  const unsigned address = smem_addr(&tile[row * 4]);
  unsigned r[kCount];
  for (unsigned i = 0; i < kCount; ++i) {
    const unsigned word = i * 32 + lane;
    r[i] = 2 * word | (2 * word + 1) << 16;
  }
  if constexpr (kCount == 1 && !kTransposed) stmatrix_x1(address, r[0]);
  if constexpr (kCount == 1 && kTransposed) stmatrix_x1_trans(address, r[0]);
  if constexpr (kCount == 2 && !kTransposed) stmatrix_x2(address, r);
  if constexpr (kCount == 2 && kTransposed) stmatrix_x2_trans(address, r);
  if constexpr (kCount == 4 && !kTransposed) stmatrix_x4(address, r);
  if constexpr (kCount == 4 && kTransposed) stmatrix_x4_trans(address, r);
  __syncwarp();
  for (unsigned i = 0; i < kCount; ++i) out[i * 32 + lane] = tile[i * 32 + lane];
}

template <int kCount, bool kTransposed>
Words run_stmatrix() {
  const Array out = Array::output(kCount * 32);
  launch(stmatrix_probe<kCount, kTransposed>, 1, 32, 0, 1, out.data());
  return out.words();
}

// Thread 4r + c stores elements 2c and 2c + 1 of row r; with .trans of column r.
template <int kCount, bool kTransposed>
Words manual_stmatrix() {
  Words words(kCount * 32, 0);
  for (int matrix = 0; matrix < kCount; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 2; ++e) {
        int row = lane / 4, column = lane % 4 * 2 + e;
        if (kTransposed) std::swap(row, column);
        const int tile_row = 8 * kCount - 1 - (matrix * 8 + row);
        const uint32_t value = uint32_t(2 * (matrix * 32 + lane) + e);
        words[size_t(tile_row * 4 + column / 2)] |= value << (column % 2 * 16);
      }
    }
  }
  return words;
}

template <int kCount>
void add_stmatrix(std::vector<Probe>& probes) {
  const std::string name = "stmatrix_x" + std::to_string(kCount);
  probes.push_back({name, 90, run_stmatrix<kCount, false>, manual_stmatrix<kCount, false>});
  probes.push_back(
      {name + "_trans", 90, run_stmatrix<kCount, true>, manual_stmatrix<kCount, true>});
}

}  // namespace

std::vector<Probe> hopper_probes() {
  std::vector<Probe> probes;
  add_stmatrix<1>(probes);
  add_stmatrix<2>(probes);
  add_stmatrix<4>(probes);
  return probes;
}

}  // namespace conformance
