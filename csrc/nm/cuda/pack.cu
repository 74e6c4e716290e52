// Builds the packing of sparse_tiles.cuh from the stored indices, once per weight.
#include "nm/cuda/heuristics.h"
#include "nm/cuda/sparse_tiles.cuh"

namespace fastops::nm::cuda {

constexpr int kInputsPerThread = 16;  // four quads: half a word of metadata

// The kept elements of one quad of inputs: at most two, their places and positions in the values.
struct Quad {
  int place[2];
  int source[2];
};

__device__ __forceinline__ Quad read_quad(const Shape& s, const uint8_t* indices, int64_t row,
                                          int64_t input) {
  Quad quad{{0, 1}, {-1, -1}};
  if (row >= s.out || input >= s.in) return quad;
  const int64_t group = input / s.m;
  const int first = static_cast<int>(input - group * s.m);
  int found = 0;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (j >= s.n) break;
    const int64_t q = group * s.n + j;
    const int place = stored_index(s, indices + row * s.index_bytes, q) - first;
    if (place < 0 || place >= 4) continue;
    const int source = static_cast<int>(row * s.kept + q);
    if (found == 0) {
      quad = {{place, place}, {source, -1}};
    } else if (place > quad.place[0]) {  // false only for indices that do not rise
      quad.place[1] = place;
      quad.source[1] = source;
    }
    ++found;
  }
  if (quad.source[0] >= 0 && quad.source[1] < 0) {  // one alone: last, or before the last
    if (quad.place[0] == 3) quad = {{0, 3}, {-1, quad.source[0]}};
    else quad.place[1] = 3;
  }
  return quad;
}

__global__ void __launch_bounds__(kThreads)
    pack_kernel(const uint8_t* indices, uint8_t* structure, int32_t* source, Shape s,
                SparseTiles tiles) {
  const int64_t chunks = tiles.in_blocks * (kTileInputs / kInputsPerThread);
  const int64_t all = tiles.out_blocks * kTileOutputs * chunks;
  for (int64_t i = first_thread(); i < all; i += all_threads()) {
    const int64_t row = i / chunks, chunk = i % chunks;
    const int64_t block = row / kTileOutputs * tiles.in_blocks + chunk / 4;
    const int r = static_cast<int>(row % kTileOutputs), t = static_cast<int>(chunk % 4);
    const int m_tile = r / 16, g = r % 8, upper = r % 16 / 8;
    unsigned metadata = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Quad quad = read_quad(s, indices, row, chunk * kInputsPerThread + k * 4);
      metadata |= static_cast<unsigned>(quad.place[0] | quad.place[1] << 2) << 4 * k;
      const int in_half = t % 2 * 4 + k;  // quad 0 to 7 of its 32 inputs
      const int lane = g * 4 + in_half % 4, reg = upper + in_half / 4 * 2;
      const int64_t to = block * kBlockHalves + ((t / 2 * 4 + m_tile) * 32 + lane) * 8 + reg * 2;
      source[to] = quad.source[0];
      source[to + 1] = quad.source[1];
    }
    uint16_t* words = reinterpret_cast<uint16_t*>(structure + block * kBlockMetadataBytes);
    words[((g * 4 + t) * 4 + m_tile) * 2 + upper] = static_cast<uint16_t>(metadata);
  }
}

PackSizes pack_sizes(PackParams& p, void*) {
  if (p.kind != Kind::sparse_tiles || !satisfies_two_of_four(p.weight.pattern))
    fail("fastops._nm_pack: no such packing of this weight on CUDA");
  const SparseTiles tiles = sparse_tiles_of(p.weight);
  const int64_t blocks = tiles.out_blocks * tiles.in_blocks;
  return {blocks * kBlockMetadataBytes, blocks * kBlockHalves};
}

void pack(const PackParams& p, void* stream) {
  const SparseTiles tiles = sparse_tiles_of(p.weight);
  const int64_t threads =
      tiles.out_blocks * kTileOutputs * tiles.in_blocks * (kTileInputs / kInputsPerThread);
  launch(&pack_kernel, {"nm pack", grid_of(threads), dim3(kThreads), 0, 1, stream}, p.indices,
         p.structure, p.source, shape_of(p.weight), tiles);
}

}  // namespace fastops::nm::cuda
