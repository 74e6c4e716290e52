// Both parts of the backward pass on Hopper (sm_90a): TMA, wgmma, warps that copy and warpgroups
// that multiply.
//
// A block is two teams of a warp that copies and a warpgroup that multiplies, which share only the
// registers that the former leave (24 of theirs; the latter have 240). A team has 64 rows
// (sides.cuh: keys, or queries, of which heads that share a list are packed) and walks their list
// by tiles of 64 columns, two of them in shared memory. Both matrices of a tile are several boxes
// under one mbarrier, a slot each; by key lse and delta of the columns come with them. Scores and
// their gradients lie as the accumulators of two products; packed in pairs they are the first
// operand of the next two, with the same tiles as the second, so nothing goes back to shared
// memory. In flight together: exponentials with dO v; gradients of scores with p dO; the next
// tile's scores with ds q.
// Shared: 2 teams * (2 * 64 rows + 4 * 64 columns) * 2 kD bytes, 192 KB at 128 channels. Registers:
// kD sums by key, kD / 2 by query; 64 scores and gradients; 16 packed. Global: both listed matrices
// once per 64 rows. Every sum has one order.
#pragma once

#include "attention/cuda/hopper_tile.cuh"
#include "attention/cuda/sides.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace fastops::attention::cuda {

// As (channel, row, head, sample), of both matrices of the rows and of what is listed.
struct BackwardMaps {
  CUtensorMap row_a, row_b, listed_a, listed_b;
};

// What comes with the boxes of a tile.
struct ListedTile {
  Slots slots;
  int head;                  // of queries
  int ends, last;            // the list of this head; all lists
  float lse[64], delta[64];  // by key, of the columns: lse in units of log2, +inf where p is 0
};

template <int kD>
struct BackwardTile {
  static constexpr int kRows = 64, kColumns = 64, kTeams = 2, kThreads = 128 * (1 + kTeams);
  // Registers of a thread that copies, and of one that multiplies: all that there are.
  static constexpr int kFew = 24, kMany = 240;
  static constexpr int kAtoms = kD / 64;           // of 64 channels: rows as wide as the swizzle
  static constexpr unsigned kBytes = 64 * kD * 2;  // of one matrix
  static constexpr unsigned kListedAt = 2 * kBytes, kBarriersAt = 6 * kBytes;
  static constexpr unsigned kPlaceAt = kBarriersAt + 48, kRingAt = kBarriersAt + 64;
  static constexpr unsigned kBiasAt = kRingAt + 2 * sizeof(ListedTile);
  static constexpr unsigned kTeamBytes = (kBiasAt + kRows * 4 + 1023) / 1024 * 1024;
  static constexpr size_t kShared = kTeams * kTeamBytes;
  static_assert(kShared + 1024 <= 228 * 1024);

  // One for the rows; by stage: has come, may be overwritten.
  enum Barrier { kRowsHere = 0, kTileHere = 1, kTileFree = 3 };
  __device__ __forceinline__ static unsigned barrier(unsigned shared, int which) {
    return shared + kBarriersAt + 8 * which;
  }
  __device__ __forceinline__ static unsigned listed(unsigned shared, int stage, int matrix) {
    return shared + kListedAt + (2 * stage + matrix) * kBytes;
  }
};

// The warp of a team that copies: its rows, then every tile of every list, a lane for each slot. A
// list that names nothing has one tile of slots that hold nothing (boxes past the end, which arrive
// as zeros), as has what a list leaves of its last tile.
template <int kD, bool kByKey>
__device__ __forceinline__ void copy_tiles(const BackwardParams& p, const BackwardMaps& maps,
                                           const HopperCut& cut, const HopperPlace& place,
                                           unsigned shared, ListedTile* ring) {
  using Tile = BackwardTile<kD>;
  const int lane = int(threadIdx.x) % 32, group = int(unsigned(p.heads) / unsigned(p.kv_heads));
  const int length = int(kByKey ? p.seq_q : p.seq_kv);
  const int row = place.first >> shift_of(int(kByKey ? p.mask.block_kv : p.mask.block_q));
  if (lane == 0) {
    const unsigned here = Tile::barrier(shared, Tile::kRowsHere);
    ptx::mbarrier_arrive_expect(here, 2 * Tile::kBytes);
#pragma unroll
    for (int a = 0; a < Tile::kAtoms; ++a) {
      const unsigned to = shared + a * Tile::kRows * 128;
      ptx::tma_load(to, &maps.row_a, here, a * 64, place.first, place.h, place.b);
      ptx::tma_load(to + Tile::kBytes, &maps.row_b, here, a * 64, place.first, place.h, place.b);
    }
  }
  int tile = 0;
#pragma unroll 1
  for (int member = 0; member < (kByKey ? group : 1); ++member) {
    const int q_head = kByKey ? place.h * group + member : place.h;
    const int listed_head = kByKey ? q_head : place.h / group;
    const List list(kByKey ? p.mask.by_key : p.mask.by_query, p.mask, place.b, q_head, row,
                    cut.block_listed, Tile::kColumns, length);
    const int shift = list.shift(), per_tile = Tile::kColumns >> shift;
    const int steps = max((list.slots() + per_tile - 1) / per_tile, 1);
#pragma unroll 1
    for (int step = 0; step < steps; ++step, ++tile) {
      const int stage = tile & 1;
      ListedTile& to = ring[stage];
      NextSlots next;
      next.load(list, step, per_tile, lane);
      float lse[2], delta[2];
      if constexpr (kByKey) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int c = i * 32 + lane, start = __shfl_sync(kAllLanes, next.mine.start, c >> shift);
          const int query = start + (c & ((1 << shift) - 1));
          const int64_t at = (int64_t{place.b} * p.heads + q_head) * p.seq_q + query;
          const bool real = start >= 0 && query < length && p.lse[at] != -INFINITY;
          lse[i] = real ? p.lse[at] * kLog2e : INFINITY;
          delta[i] = real ? p.delta[at] : 0.f;
        }
      }
      ptx::mbarrier_wait(Tile::barrier(shared, Tile::kTileFree + stage), (tile >> 1 & 1) ^ 1);
      next.store(to.slots, per_tile, lane);
      if constexpr (kByKey) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          to.lse[i * 32 + lane] = lse[i];
          to.delta[i * 32 + lane] = delta[i];
        }
      }
      if (lane == 0) {
        to.head = q_head;
        to.ends = step + 1 == steps;
        to.last = step + 1 == steps && (!kByKey || member + 1 == group);
      }
      __syncwarp();
      const unsigned here = Tile::barrier(shared, Tile::kTileHere + stage);
      if (lane == 0) {
        ptx::mbarrier_arrive_expect(here, 2 * Tile::kBytes);
      }
      const int start = next.mine.start < 0 ? length : next.mine.start;
      const unsigned at = Tile::listed(shared, stage, 0) + (lane << shift) * 128;
      if (lane < per_tile)
#pragma unroll
        for (int a = 0; a < Tile::kAtoms; ++a) {
          const unsigned atom = at + a * Tile::kColumns * 128;
          ptx::tma_load(atom, &maps.listed_a, here, a * 64, start, listed_head, place.b);
          ptx::tma_load(atom + Tile::kBytes, &maps.listed_b, here, a * 64, start, listed_head,
                        place.b);
        }
    }
  }
}

// 0 in place of what does not count, queries as columns. A warp has 16 rows, from `row` of the
// block of keys on: each lane reads the bits of all of them in two columns.
template <int kColumns>
__device__ __forceinline__ void mask_queries(float (&weights)[kColumns / 2],
                                             const BackwardParams& p, const Slots& slots, int shift,
                                             int row) {
  const int lane = ptx::opaque(int(threadIdx.x)) % 32, g = lane / 4, t = lane % 4;
  unsigned words[kColumns / 32];
#pragma unroll
  for (int i = 0; i < kColumns / 32; ++i)
    words[i] = column_bits(p.mask, slots, i * 32 + lane, ptx::opaque(shift), p.seq_q, row);
#pragma unroll
  for (int n = 0; n < kColumns; n += 8)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned keep = __shfl_sync(kAllLanes, words[n / 32], n % 32 + 2 * t + i) >> g;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (!(keep >> 8 * half & 1)) weights[n / 2 + 2 * half + i] = 0.f;
    }
}

template <typename T, int kD, bool kByKey>
__global__ void __launch_bounds__(BackwardTile<kD>::kThreads, 1)
    backward_hopper_kernel(const __grid_constant__ BackwardParams p,
                           const __grid_constant__ BackwardMaps maps, HopperCut cut,
                           const __grid_constant__ RowOrder order) {
  using Tile = BackwardTile<kD>;
  constexpr int kColumns = Tile::kColumns;
  constexpr ptx::Swizzle kSwizzle = ptx::Swizzle::b128;
  FASTOPS_DYNAMIC_SHARED(dynamic);
  // A warp of the first warpgroup copies for each of the others.
  const int lane = int(threadIdx.x) % 32, t = lane % 4, warp = int(threadIdx.x) / 32;
  const bool copies = warp < 4;
  const int team = __shfl_sync(kAllLanes, copies ? warp : warp / 4 - 1, 0);
  const unsigned at = team * Tile::kTeamBytes, shared = ptx::smem_addr(dynamic) + at;
  ListedTile* const ring = reinterpret_cast<ListedTile*>(dynamic + at + Tile::kRingAt);
  HopperPlace& place = *reinterpret_cast<HopperPlace*>(dynamic + at + Tile::kPlaceAt);
  float* const bias_sums = reinterpret_cast<float*>(dynamic + at + Tile::kBiasAt);
  const unsigned item = blockIdx.x * Tile::kTeams + team;
  const bool none = team >= Tile::kTeams || item >= order.tiles;

  if (copies && !none) {
    if (lane == 0) {
      place = place_of(order, cut, item);
      ptx::mbarrier_init(Tile::barrier(shared, Tile::kRowsHere), 1);
      for (int stage = 0; stage < 2; ++stage) {
        ptx::mbarrier_init(Tile::barrier(shared, Tile::kTileHere + stage), 1);
        ptx::mbarrier_init(Tile::barrier(shared, Tile::kTileFree + stage), 4);
      }
      ptx::fence_mbarrier_init();
    }
    if constexpr (kByKey)
      for (int r = lane; r < Tile::kRows; r += 32) bias_sums[r] = 0.f;
  }
  __syncthreads();
  const bool idle = none || place.first >= (kByKey ? p.seq_kv : p.seq_q);

  if (copies) {
    ptx::setmaxnreg_dec<Tile::kFew>();
    if (!idle) copy_tiles<kD, kByKey>(p, maps, cut, place, shared, ring);
    return;
  }
  ptx::setmaxnreg_inc<Tile::kMany>();
  if (idle) return;

  // What only some tiles ask for is worked out again each time: there are no registers to keep it.
  const auto thread = [&] { return ptx::opaque(int(threadIdx.x)); };
  const auto warp_row = [&] { return thread() / 32 % 4 * 16; };  // of the tile
  const auto head_of_warp = [&] { return place.h + (warp_row() >> shift_of(cut.rows)); };
  const auto first_row = [&] { return place.first + (warp_row() & (cut.rows - 1)); };
  const auto row_of = [&](int half) { return first_row() + half * 8 + thread() % 32 / 4; };
  const auto shift = [&] { return shift_of(min(ptx::opaque(cut.block_listed), kColumns)); };
  const float factor = p.key_bias ? 1.f : p.scale * kLog2e;
  float row_lse[2], row_delta[2];
  if constexpr (!kByKey) {
    const int64_t head = int64_t{place.b} * p.heads + head_of_warp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row_of(half);
      const bool real = r < p.seq_q && p.lse[head * p.seq_q + r] != -INFINITY;
      row_lse[half] = real ? p.lse[head * p.seq_q + r] * kLog2e : INFINITY;
      row_delta[half] = real ? p.delta[head * p.seq_q + r] : 0.f;
    }
  }

  float weights[kColumns / 2], grads[kColumns / 2], sum_a[kD / 2], sum_b[kByKey ? kD / 2 : 1];
  unsigned packed[kColumns / 16][4];
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) {
    sum_a[i] = 0.f;
    if constexpr (kByKey) sum_b[i] = 0.f;
  }

  // Rows by columns: weights of the first matrices, gradients of the second.
  const auto multiply_rows = [&](float (&to)[kColumns / 2], int stage, int matrix) {
    const uint64_t rows = ptx::wgmma_descriptor(
        unsigned(ptx::opaque(int(shared))) + matrix * Tile::kBytes, 16, 1024, kSwizzle);
    const uint64_t columns =
        ptx::wgmma_descriptor(Tile::listed(shared, stage, matrix), 16, 1024, kSwizzle);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k)
      ptx::wgmma_ss<T, kColumns>(to, rows + (k / 4 * Tile::kRows * 128 + k % 4 * 32) / 16,
                                 columns + (k / 4 * kColumns * 128 + k % 4 * 32) / 16, k > 0);
  };
  // What has been packed by what is listed.
  const auto multiply_listed = [&](float (&sums)[kD / 2],
                                   const unsigned (&packed)[kColumns / 16][4], int stage,
                                   int matrix) {
    const uint64_t columns =
        ptx::wgmma_descriptor(Tile::listed(shared, stage, matrix), kColumns * 128, 1024, kSwizzle);
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k)
      ptx::wgmma_rs<T, kD, ptx::Major::mn>(sums, packed[k], columns + k * 2048 / 16);
  };
  const auto weigh = [&](const ListedTile& here) {
    if (const float* bias = p.key_bias) {
      const int head = kByKey ? here.head : head_of_warp();
      bias += place.b * p.key_bias_stride[0] + head * p.key_bias_stride[1];
      if constexpr (kByKey) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = row_of(half);
          const float add = r < p.seq_kv ? bias[r * p.key_bias_stride[2]] * kLog2e : 0.f;
#pragma unroll
          for (int i = 0; i < kColumns / 4; ++i) {
            float& s = weights[i / 2 * 4 + 2 * half + i % 2];
            s = s * (p.scale * kLog2e) + add;
          }
        }
      } else {
        scale_scores<kColumns>(weights, p, here.slots, shift(), bias);
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const float lse = kByKey ? here.lse[i / 4 * 8 + 2 * t + i % 2] : row_lse[i / 2 % 2];
      weights[i] = ptx::ex2(__fmaf_rn(weights[i], factor, -lse));
    }
    // After the exponentials, which ptxas would otherwise move below the wait for what they are to
    // overlap with.
    if (here.slots.masked) {
      const int row = first_row() & (int(kByKey ? p.mask.block_kv : p.mask.block_q) - 1);
      if constexpr (kByKey) mask_queries<kColumns>(weights, p, here.slots, shift(), row);
      else mask_keys<kColumns>(weights, p, here.slots, shift(), row, 0.f);
    }
  };
  const auto add_bias_gradient = [&](const ListedTile& here) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < kColumns / 4; ++i) sum += grads[i / 2 * 4 + 2 * half + i % 2];
      sum = quad_sum(sum);
      if (thread() % 4 != 0) continue;
      float& all = bias_sums[warp_row() + half * 8 + thread() % 32 / 4];
      const int r = row_of(half);
      all += sum;
      if (!here.ends) continue;
      if (r < p.seq_kv)
        p.grad_key_bias[(int64_t{place.b} * p.heads + here.head) * p.seq_kv + r] = all;
      all = 0.f;
    }
  };

  ptx::mbarrier_wait(Tile::barrier(shared, Tile::kRowsHere), 0);
  ptx::mbarrier_wait(Tile::barrier(shared, Tile::kTileHere), 0);
  ptx::wgmma_hold(weights);
  ptx::wgmma_hold(grads);
  ptx::wgmma_fence();
  multiply_rows(weights, 0, 0);
  ptx::wgmma_commit();
  multiply_rows(grads, 0, 1);
  ptx::wgmma_commit();
  ptx::wgmma_wait<1>();
  ptx::wgmma_hold(weights);
  int stage = 0;
#pragma unroll 1
  for (int tile = 1;; ++tile, stage ^= 1) {
    const ListedTile& here = ring[stage];
    weigh(here);
    ptx::wgmma_wait<0>();
    ptx::wgmma_hold(grads);
    if constexpr (kByKey) {
      pack_pairs<T>(packed, weights);
      ptx::wgmma_hold(sum_b);
      ptx::wgmma_fence();
      multiply_listed(sum_b, packed, stage, 1);
      ptx::wgmma_commit();
    }
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const float delta = kByKey ? here.delta[i / 4 * 8 + 2 * t + i % 2] : row_delta[i / 2 % 2];
      grads[i] = weights[i] * (grads[i] - delta);
    }
    if constexpr (kByKey) {
      if (p.grad_key_bias) add_bias_gradient(here);
      ptx::wgmma_wait<0>();  // there are no registers for a second packed operand
      ptx::wgmma_hold(sum_b);
    }
    pack_pairs<T>(packed, grads);
    if (here.last) break;
    ptx::mbarrier_wait(Tile::barrier(shared, Tile::kTileHere + (stage ^ 1)), tile >> 1 & 1);
    ptx::wgmma_hold(weights);
    ptx::wgmma_hold(grads);
    ptx::wgmma_hold(sum_a);
    ptx::wgmma_fence();
    multiply_listed(sum_a, packed, stage, 0);
    multiply_rows(weights, stage ^ 1, 0);
    ptx::wgmma_commit();
    multiply_rows(grads, stage ^ 1, 1);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    ptx::wgmma_hold(weights);
    ptx::wgmma_hold(sum_a);
    __syncwarp();  // all lanes have read what came with the tile
    if (lane == 0) {
      ptx::mbarrier_arrive(Tile::barrier(shared, Tile::kTileFree + stage));
    }
  }
  ptx::wgmma_hold(sum_a);
  ptx::wgmma_fence();
  multiply_listed(sum_a, packed, stage, 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_hold(sum_a);

  const int64_t head = head_of_warp();
  const Heads& to_a = kByKey ? p.grad_k : p.grad_q;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row_of(half);
    if (r >= (kByKey ? p.seq_kv : p.seq_q)) continue;
    if (to_a.data)
      store_row<T, kD>(head_of<T>(to_a, place.b, head) + r * to_a.stride[2], sum_a, half, p.scale,
                       int(p.head_dim));
    if constexpr (kByKey)
      if (p.grad_v.data)
        store_row<T, kD>(head_of<T>(p.grad_v, place.b, head) + r * p.grad_v.stride[2], sum_b, half,
                         1.f, int(p.value_dim));
  }
}

}  // namespace fastops::attention::cuda
