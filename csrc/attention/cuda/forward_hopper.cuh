// The forward pass on Hopper (sm_90a): TMA, wgmma, a warpgroup that copies and one or two that
// multiply.
//
// As many blocks as run at once take rows one after the other: queries and first tiles of one come
// while the last is multiplied and written. Sorted rows, or pieces of them, go to whoever is done;
// where all have as many blocks, each block has every gridDim.x-th. Elsewhere each has one.
//
// A multiplying warpgroup has 64 rows of queries; all of a block share a list, of which a tile has
// 128 columns, or 64 where there is no room for more (hopper_columns). The first warp walks the
// list and copies K one tile ahead of V, two tiles of each in shared memory; a tile is several
// boxes under one mbarrier, one for each slot and 64 channels. Scores of the next tile and the
// product with V of the last are in flight together; the exponentials of the next are worked out
// while the latter is. Shared: (kRows + 4 kColumns) * 2 kD bytes, kD rounded up to 64. Registers:
// kD / 2 sums, kColumns / 2 scores, and half as many probabilities. Global: each listed row of K
// and V once per block, whole boxes at a time.
#pragma once

#include "attention/cuda/split.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace fastops::attention::cuda {

// Of q, k and v, as (channel, row, head, sample): a box that goes past the last row of a head reads
// zeros, not the next head.
struct HopperMaps {
  CUtensorMap q, k, v;
};

// What the first warp publishes with the queries.
struct HopperWork : HopperItem {
  int steps;  // tiles; -1: that was all
};

template <int kD, int kConsumers>
struct HopperTile {
  static constexpr int kRows = 64 * kConsumers, kColumns = hopper_columns(kD, kConsumers);
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kBlocksPerSm = hopper_blocks(kD, kConsumers);
  // The launch bound, from which ptxas takes the registers at launch. They must hold a product of
  // 256 columns, so a block alone on its SM has those of three warpgroups, also where it has two.
  static constexpr int kMostThreads = kBlocksPerSm == 1 ? 384 : kThreads;
  static constexpr int kAtLaunch = 65536 / (kMostThreads * kBlocksPerSm) / 8 * 8;
  // Registers of a thread that copies, and of one that multiplies.
  static constexpr int kFew = 24, kMany = kBlocksPerSm == 1 ? 240 : 232;
  static_assert(kFew + kConsumers * kMany <= (kConsumers + 1) * kAtLaunch);
  static constexpr int kAtoms = (kD + 63) / 64;  // of 64 channels: rows as wide as the swizzle
  static constexpr unsigned kQueryBytes = kRows * kAtoms * 128,
                            kTileBytes = kColumns * kAtoms * 128;
  static constexpr unsigned kKeysAt = kQueryBytes, kValuesAt = kKeysAt + 2 * kTileBytes;
  static constexpr unsigned kBarriersAt = kValuesAt + 2 * kTileBytes, kSlotsAt = kBarriersAt + 128;
  static constexpr int kRing = 4;  // tiles whose slots are kept
  static constexpr unsigned kWorksAt = kSlotsAt + kRing * sizeof(Slots);
  static constexpr size_t kShared = kWorksAt + 2 * sizeof(HopperWork);
  static_assert(kBlocksPerSm * (kShared + 1024) <= 228 * 1024);

  // Has come, may be overwritten: queries, and by stage K and V.
  enum Barrier {
    kQueries = 0,
    kKeysHere = 1,
    kKeysFree = 3,
    kValuesHere = 5,
    kValuesFree = 7,
    kQueriesFree = 9
  };
  __device__ __forceinline__ static unsigned barrier(unsigned shared, int which) {
    return shared + kBarriersAt + 8 * which;
  }
};

// The first warp: of each item copies the queries, then K and V of every tile, a lane for each
// slot. What a list leaves of its tiles comes first, as slots that hold nothing (boxes past the
// end, which arrive as zeros), so that only the first tiles need looking at element by element.
// Bytes may come before they are expected: no phase ends before the arrival that expects them.
// `step` counts the tiles of all items.
template <int kD, int kConsumers>
__device__ __forceinline__ void copy_tiles(const ForwardParams& p, const HopperMaps& maps,
                                           const HopperCut& cut, const RowOrder& order,
                                           const RowSplits& splits, unsigned shared, Slots* ring,
                                           HopperWork* works) {
  using Tile = HopperTile<kD, kConsumers>;
  const int lane = int(threadIdx.x), group = int(unsigned(p.heads) / unsigned(p.kv_heads));
  const int nowhere = int(p.seq_kv);
  int step = 0, turn = 0;
  unsigned block = blockIdx.x;
  bool first = true, more = true;
#pragma unroll 1
  while (more) {
    HopperWork work;
    bool nothing;
    do {
      if (!first && order.next) {  // whoever is done takes the next
        if (lane == 0) block = gridDim.x + unsigned(atomicAdd(order.next, 1));
        block = __shfl_sync(kAllLanes, block, 0);
      } else if (!first) {
        block += gridDim.x;
      }
      first = false;
      more = block < order.tiles;
      work = {more ? item_of(order, splits, cut, block) : HopperItem{}, -1};
      nothing = more && work.first >= p.seq_q;  // nor is there any to the end of its section
      if (nothing && lane == 0) atomicMax(order.next, work.slot - int(gridDim.x));
    } while (nothing);
    const List list(p.mask.by_query, p.mask, work.b, work.h, work.first >> shift_of(cut.rows),
                    cut.block_listed, Tile::kColumns, p.seq_kv);
    const int shift = list.shift(), per_tile = Tile::kColumns >> shift;
    const int tiles = (list.slots() + per_tile - 1) / per_tile, kv_head = work.h / group;
    int begin = 0;
    if (more) work.steps = tiles;
    if (more && work.slot >= 0) {  // a piece: they differ by a tile at most
      const int pieces = max(tiles / work.least, 1), longer = tiles % pieces;
      begin = work.piece * (tiles / pieces) + min(work.piece, longer);
      work.steps = tiles / pieces + (work.piece < longer);
    }
    const int absent = tiles * per_tile - list.slots() - begin * per_tile;
    ptx::mbarrier_wait(Tile::barrier(shared, Tile::kQueriesFree), (turn & 1) ^ 1);
    const unsigned queries_here = Tile::barrier(shared, Tile::kQueries);
    if (lane == 0) {
      works[turn & 1] = work;
      ptx::mbarrier_arrive_expect(queries_here, work.steps > 0 ? Tile::kQueryBytes : 0);
    }
    if (lane == 0 && work.steps > 0)
#pragma unroll
      for (int a = 0; a < Tile::kAtoms; ++a)
        ptx::tma_load(shared + a * Tile::kRows * 128, &maps.q, queries_here, a * 64, work.first,
                      work.h, work.b);
    ++turn;
    const auto copy = [&](const CUtensorMap& map, unsigned at, unsigned here, int row) {
      if (lane == 0) {
        ptx::mbarrier_arrive_expect(here, Tile::kTileBytes);
      }
      const unsigned to = shared + at + (lane << shift) * 128;
      if (lane < per_tile)
#pragma unroll
        for (int a = 0; a < Tile::kAtoms; ++a)
          ptx::tma_load(to + a * Tile::kColumns * 128, &map, here, a * 64, row, kv_head, work.b);
    };
    int start = 0, last = 0;  // of this lane's slot in this tile and in the one before
#pragma unroll 1
    for (int i = 0; i <= work.steps; ++i, last = start) {
      if (i < work.steps) {
        const int stage = step & 1;
        NextSlots next;
        next.load(list, i, per_tile, lane, absent);
        start = next.mine.start < 0 ? nowhere : next.mine.start;
        const unsigned here = Tile::barrier(shared, Tile::kKeysHere + stage);
        ptx::mbarrier_wait(Tile::barrier(shared, Tile::kKeysFree + stage), (step >> 1 & 1) ^ 1);
        next.store(ring[step % Tile::kRing], per_tile, lane);
        __syncwarp();
        copy(maps.k, Tile::kKeysAt + stage * Tile::kTileBytes, here, start);
      }
      if (i > 0) {
        const int stage = (step - 1) & 1, parity = ((step - 1) >> 1 & 1) ^ 1;
        const unsigned here = Tile::barrier(shared, Tile::kValuesHere + stage);
        ptx::mbarrier_wait(Tile::barrier(shared, Tile::kValuesFree + stage), parity);
        copy(maps.v, Tile::kValuesAt + stage * Tile::kTileBytes, here, last);
      }
      if (i < work.steps) ++step;
    }
  }
}

// Of the two rows that a thread has of a warp's 16: g and g + 8.
struct HopperRows {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
};

// scores become probabilities, against the maxima so far; `by`: what earlier sums are worth now.
template <int kCount>
__device__ __forceinline__ void exponentials(float (&scores)[kCount], HopperRows& rows,
                                             float (&by)[2], float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = rows.max[half];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) most = fmaxf(most, scores[i / 2 * 4 + 2 * half + i % 2]);
    most = quad_max(most);
    const float base = most == -INFINITY ? 0.f : __fmul_rn(most, factor);
    by[half] = ptx::ex2(__fmul_rn(rows.max[half], factor) - base);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      float& s = scores[i / 2 * 4 + 2 * half + i % 2];
      s = ptx::ex2(__fmaf_rn(s, factor, -base));
      sum += s;
    }
    rows.max[half] = most;
    rows.sum[half] = rows.sum[half] * by[half] + sum;
  }
}

template <typename T, int kD, int kConsumers>
__global__ void __launch_bounds__(HopperTile<kD, kConsumers>::kMostThreads,
                                  HopperTile<kD, kConsumers>::kBlocksPerSm)
    forward_hopper_kernel(const __grid_constant__ ForwardParams p,
                          const __grid_constant__ HopperMaps maps, HopperCut cut,
                          const __grid_constant__ RowOrder order,
                          const __grid_constant__ RowSplits splits) {
  using Tile = HopperTile<kD, kConsumers>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns;
  constexpr ptx::Swizzle kSwizzle = ptx::Swizzle::b128;
  FASTOPS_DYNAMIC_SHARED(dynamic);
  const unsigned shared = ptx::smem_addr(dynamic);
  Slots* const ring = reinterpret_cast<Slots*>(dynamic + Tile::kSlotsAt);
  const int lane = int(threadIdx.x) % 32,
            warp = int(threadIdx.x) / 32 - 4;  // of those that multiply

  HopperWork* const works = reinterpret_cast<HopperWork*>(dynamic + Tile::kWorksAt);

  if (threadIdx.x == 0) {
    ptx::mbarrier_init(Tile::barrier(shared, Tile::kQueries), 1);
    ptx::mbarrier_init(Tile::barrier(shared, Tile::kQueriesFree), 4 * kConsumers);
    for (int stage = 0; stage < 2; ++stage) {
      ptx::mbarrier_init(Tile::barrier(shared, Tile::kKeysHere + stage), 1);
      ptx::mbarrier_init(Tile::barrier(shared, Tile::kKeysFree + stage), 4 * kConsumers);
      ptx::mbarrier_init(Tile::barrier(shared, Tile::kValuesHere + stage), 1);
      ptx::mbarrier_init(Tile::barrier(shared, Tile::kValuesFree + stage), 4 * kConsumers);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  if (warp < 0) {
    ptx::setmaxnreg_dec<Tile::kFew>();
    if (warp == -4) copy_tiles<kD, kConsumers>(p, maps, cut, order, splits, shared, ring, works);
    return;
  }
  ptx::setmaxnreg_inc<Tile::kMany>();

  // A warp's rows are of one head.
  const int rows_shift = shift_of(cut.rows), of_tile = warp * 16;
  const int first_row = of_tile & (cut.rows - 1);
  const int shift = shift_of(min(cut.block_listed, kColumns)), channels = int(p.value_dim);
  const float* bias = nullptr;
  const bool scaled = p.key_bias || !(p.scale > 0);
  const float factor = scaled ? 1.f : p.scale * kLog2e;

  float out[kD / 2], scores[kColumns / 2], by[2];
  unsigned packed[kColumns / 16][4];
  HopperRows rows;

  const auto multiply_keys = [&](int stage) {
    const uint64_t queries = ptx::wgmma_descriptor(
        unsigned(ptx::opaque(int(shared))) + warp / 4 * 64 * 128, 16, 1024, kSwizzle);
    const uint64_t keys = ptx::wgmma_descriptor(shared + Tile::kKeysAt + stage * Tile::kTileBytes,
                                                16, 1024, kSwizzle);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k)
      ptx::wgmma_ss<T, kColumns>(scores, queries + (k / 4 * kRows * 128 + k % 4 * 32) / 16,
                                 keys + (k / 4 * kColumns * 128 + k % 4 * 32) / 16, k > 0);
  };
  const auto multiply_values = [&](int stage) {
    const uint64_t values = ptx::wgmma_descriptor(
        shared + Tile::kValuesAt + stage * Tile::kTileBytes, kColumns * 128, 1024, kSwizzle);
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k)
      ptx::wgmma_rs<T, kD, ptx::Major::mn>(out, packed[k], values + k * 2048 / 16);
  };
  const auto probabilities = [&](int step) {
    const Slots& slots = ring[step % Tile::kRing];
    if (scaled) scale_scores<kColumns>(scores, p, slots, shift, bias);
    if (slots.masked) mask_keys<kColumns>(scores, p, slots, shift, first_row, -INFINITY);
    exponentials(scores, rows, by, factor);
  };

  int step = 0;  // counts the tiles of all items
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    ptx::mbarrier_wait(Tile::barrier(shared, Tile::kQueries), turn & 1);
    const HopperWork& work = works[turn & 1];
    if (work.steps < 0) return;
    const int end = step + work.steps;
    if (p.key_bias)
      bias = p.key_bias + work.b * p.key_bias_stride[0] +
             (work.h + (of_tile >> rows_shift)) * p.key_bias_stride[1];
    rows = {};
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) out[i] = 0.f;

    if (step < end) {
      const int first = step & 1;
      ptx::mbarrier_wait(Tile::barrier(shared, Tile::kKeysHere + first), step >> 1 & 1);
      ptx::wgmma_hold(scores);
      ptx::wgmma_fence();
      multiply_keys(first);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_hold(scores);
      if (lane == 0) {
        ptx::mbarrier_arrive(Tile::barrier(shared, Tile::kKeysFree + first));
      }
      probabilities(step);
      ptx::mbarrier_wait(Tile::barrier(shared, Tile::kValuesHere + first), step >> 1 & 1);
      pack_pairs<T>(packed, scores);
#pragma unroll 1
      for (++step; step < end; ++step) {
        const int stage = step & 1, parity = step >> 1 & 1;
        ptx::mbarrier_wait(Tile::barrier(shared, Tile::kKeysHere + stage), parity);
        ptx::wgmma_hold(scores);
        ptx::wgmma_hold(out);
        ptx::wgmma_fence();
        multiply_keys(stage);
        ptx::wgmma_commit();
        multiply_values(stage ^ 1);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        ptx::wgmma_hold(scores);
        if (lane == 0) {
          ptx::mbarrier_arrive(Tile::barrier(shared, Tile::kKeysFree + stage));
        }
        probabilities(step);
        // V is needed only in the next step. But ptxas moves the exponentials below the wait for
        // the product that they are to overlap with, unless a loop lies between.
        ptx::mbarrier_wait(Tile::barrier(shared, Tile::kValuesHere + stage), parity);
        ptx::wgmma_wait<0>();
        ptx::wgmma_hold(out);
        __syncwarp();  // all lanes have read the slots
        if (lane == 0) {
          ptx::mbarrier_arrive(Tile::barrier(shared, Tile::kValuesFree + (stage ^ 1)));
        }
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) out[i] *= by[i / 2 % 2];
        pack_pairs<T>(packed, scores);
      }
    }
    __syncwarp();  // all lanes are done with the item before, and with its slots
    if (lane == 0) {
      ptx::mbarrier_arrive(Tile::barrier(shared, Tile::kQueriesFree));
    }
    if (work.steps > 0) {
      const int last = (step - 1) & 1;
      ptx::wgmma_hold(out);
      ptx::wgmma_fence();
      multiply_values(last);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_hold(out);
      if (lane == 0) {
        ptx::mbarrier_arrive(Tile::barrier(shared, Tile::kValuesFree + last));
      }
    }

    const int64_t head = work.h + (of_tile >> rows_shift);
    // Counted once, where pieces are joined.
    const float sink = p.sinks && work.slot < 0 ? p.sinks[head] * kLog2e : -INFINITY;
    T* out_head = head_of<T>(p.out, work.b, head);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(rows.sum[half]);
      const int64_t r = int64_t{work.first} + first_row + half * 8 + lane / 4;
      const float highest = __fmul_rn(rows.max[half], factor), most = fmaxf(highest, sink);
      const float base = most == -INFINITY ? 0.f : most;
      const float worth = ptx::ex2(highest - base);
      const float all = sum * worth + ptx::ex2(sink - base);
      if (r >= p.seq_q) continue;
      const float scale = all == 0.f ? 0.f : worth / all;
      const float lse = all == 0.f ? -INFINITY : base + log2f(all);
      if (work.slot >= 0) {
        const int64_t row = int64_t{work.slot} * kRows + of_tile + half * 8 + lane / 4;
        if (lane % 4 == 0) splits.lse[row] = lse;
        store_row<kD>(splits.out + row * p.value_dim, out, half, scale, channels);
        continue;
      }
      if (lane % 4 == 0) p.lse[(int64_t{work.b} * p.heads + head) * p.seq_q + r] = lse * kLn2;
      store_row<T, kD>(out_head + r * p.out.stride[2], out, half, scale, channels);
    }
  }
}

}  // namespace fastops::attention::cuda
