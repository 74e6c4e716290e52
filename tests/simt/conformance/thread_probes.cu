// sm_80: what threads say to each other (shuffles, votes, reductions, atomics, named barriers),
// wide accesses, cp.async and the conversions and approximations of ptx/math.cuh.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "conformance/probe.h"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"

namespace conformance {
namespace {

using namespace fastops::ptx;

constexpr unsigned kAll = 0xffffffffu;

uint32_t bits(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

// ---- Shuffles --------------------------------------------------------------------------------

constexpr int kModes = 4, kWidths = 4, kLast = 32;  // widths 32, 16, 8, 4; arguments 0 to 31

__global__ void shuffle_probe(unsigned* out) {
  const unsigned lane = threadIdx.x, value = lane * 5 + 1;
  for (int w = 0; w < kWidths; ++w) {
    for (int b = 0; b < kLast; ++b) {
      unsigned* const row = out + (w * kLast + b) * kModes * 32 + lane;
      row[0] = __shfl_up_sync(kAll, value, b, 32 >> w);
      row[32] = __shfl_down_sync(kAll, value, b, 32 >> w);
      row[64] = __shfl_xor_sync(kAll, value, b, 32 >> w);
      row[96] = __shfl_sync(kAll, value, b, 32 >> w);
    }
  }
}

Words run_shuffles() {
  const Array out = Array::output(kWidths * kLast * kModes * 32);
  launch(shuffle_probe, 1, 32, 0, 1, out.data());
  return out.words();
}

// The pseudo-code of shfl.sync; CUDA's width is c = 32 - width << 8, with a clamp of 31 but for up.
Words manual_shuffles() {
  Words words;
  for (int width : {32, 16, 8, 4}) {
    for (int b = 0; b < kLast; ++b) {
      for (int mode = 0; mode < kModes; ++mode) {
        for (int lane = 0; lane < 32; ++lane) {
          const int segmask = 32 - width, clamp = mode == 0 ? 0 : 31;
          const int max_lane = (lane & segmask) | (clamp & ~segmask), min_lane = lane & segmask;
          int j = 0;
          bool valid = false;
          if (mode == 0) j = lane - b, valid = j >= max_lane;
          if (mode == 1) j = lane + b, valid = j <= max_lane;
          if (mode == 2) j = lane ^ b, valid = j <= max_lane;
          if (mode == 3) j = min_lane | (b & ~segmask), valid = j <= max_lane;
          words.push_back(uint32_t(valid ? j : lane) * 5 + 1);
        }
      }
    }
  }
  return words;
}

// ---- Votes and reductions, over two parts of a warp ------------------------------------------

constexpr int kVotes = 10, kSplit = 12;

__host__ __device__ inline int vote_value(int lane) { return lane * lane * 7 % 23 - 11; }

__global__ void vote_probe(unsigned* out) {
  const int lane = threadIdx.x, value = vote_value(lane);
  const unsigned low = (1u << kSplit) - 1, mask = lane < kSplit ? low : ~low;
  const auto word = static_cast<unsigned>(value);
  out[lane] = __ballot_sync(mask, value > 0);
  out[32 + lane] = __any_sync(mask, value > 9) != 0;
  out[64 + lane] = __all_sync(mask, value > -11) != 0;
  out[96 + lane] = __match_any_sync(mask, value % 3);
  out[128 + lane] = __reduce_add_sync(mask, value);
  out[160 + lane] = __reduce_min_sync(mask, value);
  out[192 + lane] = __reduce_max_sync(mask, word);
  out[224 + lane] = __reduce_and_sync(mask, word);
  out[256 + lane] = __reduce_or_sync(mask, word);
  out[288 + lane] = __reduce_xor_sync(mask, word);
}

Words run_votes() {
  const Array out = Array::output(kVotes * 32);
  launch(vote_probe, 1, 32, 0, 1, out.data());
  return out.words();
}

Words manual_votes() {
  Words words(kVotes * 32);
  for (int lane = 0; lane < 32; ++lane) {
    const int first = lane < kSplit ? 0 : kSplit, end = lane < kSplit ? kSplit : 32;
    uint32_t ballot = 0, same = 0, most = 0, all_bits = kAll, any_bits = 0, odd_bits = 0;
    bool any = false, all = true;
    int sum = 0, least = 1000;
    for (int other = first; other < end; ++other) {
      const int value = vote_value(other);
      const auto word = uint32_t(value);
      ballot |= uint32_t(value > 0) << other;
      same |= uint32_t(value % 3 == vote_value(lane) % 3) << other;
      any |= value > 9;
      all &= value > -11;
      sum += value;
      least = std::min(least, value);
      most = std::max(most, word);
      all_bits &= word;
      any_bits |= word;
      odd_bits ^= word;
    }
    const uint32_t rows[kVotes] = {ballot,          any,  all,      same,     uint32_t(sum),
                                   uint32_t(least), most, all_bits, any_bits, odd_bits};
    for (int i = 0; i < kVotes; ++i) words[size_t(i * 32 + lane)] = rows[i];
  }
  return words;
}

// ---- Of the block: votes of its barrier, named barriers --------------------------------------

// Warp 0 produces, warp 1 consumes, through two buffers, each with a barrier for full and empty.
__global__ void block_probe(unsigned* out) {
  __shared__ unsigned buffer[2][32];
  const int thread = threadIdx.x, lane = thread % 32;
  out[thread] = __syncthreads_count(thread % 5 == 0);
  out[64 + thread] = __syncthreads_or(thread == 63) != 0;
  out[128 + thread] = __syncthreads_and(thread != 63) != 0;
  for (int round = 0; round < 6; ++round) {
    const int full = 1 + round % 2, empty = 3 + round % 2;
    if (thread < 32) {
      if (round >= 2) named_barrier_sync(empty, 64);
      buffer[round % 2][31 - lane] = round * 100 + lane;
      named_barrier_arrive(full, 64);
    } else {
      named_barrier_sync(full, 64);
      out[192 + round * 32 + lane] = buffer[round % 2][lane];
      if (round < 4) named_barrier_arrive(empty, 64);
    }
  }
}

Words run_block() {
  const Array out = Array::output(192 + 6 * 32);
  launch(block_probe, 1, 64, 0, 1, out.data());
  return out.words();
}

Words manual_block() {
  Words words;
  for (uint32_t value : {13u, 1u, 0u}) words.insert(words.end(), 64, value);
  for (uint32_t round = 0; round < 6; ++round)
    for (uint32_t lane = 0; lane < 32; ++lane) words.push_back(round * 100 + 31 - lane);
  return words;
}

// ---- Atomics ---------------------------------------------------------------------------------

constexpr int kAtomics = 10;

// `words` is 8-byte aligned and holds kStart; the last two are one 64-bit word.
__device__ void atomics(unsigned* words, unsigned* old) {
  const unsigned lane = threadIdx.x;
  old[lane] = atomicAdd(&words[0], 3u);
  atomicSub(&words[1], lane);
  atomicMax(reinterpret_cast<int*>(&words[2]), int(lane) - 16);
  atomicMin(reinterpret_cast<int*>(&words[3]), 5 - int(lane));
  atomicAnd(&words[4], ~(1u << lane / 2));
  atomicOr(&words[5], 1u << lane);
  atomicXor(&words[6], lane * 77);
  if (atomicCAS(&words[7], 100u, 7u) == 100u) atomicExch(&words[7], 9u);
  atomicMin(reinterpret_cast<unsigned long long*>(&words[8]), (1ull << 33) + lane);
}

__global__ void atomic_probe(unsigned* out, unsigned* old) {
  __shared__ __align__(8) unsigned shared[kAtomics];
  __shared__ unsigned olds[32];
  if (threadIdx.x < kAtomics) shared[threadIdx.x] = 100;
  __syncwarp();
  atomics(out, old);
  atomics(shared, olds);
  __syncwarp();
  if (threadIdx.x < kAtomics) out[kAtomics + threadIdx.x] = shared[threadIdx.x];
}

Words run_atomics() {
  const Array out = Array::output(2 * kAtomics), old = Array::output(32);
  for (int i = 0; i < kAtomics; ++i) {
    const uint32_t start = 100;
#ifdef SIMT_HOST
    out.data()[i] = start;
#else
    fastops::cuda::check(cudaMemcpy(out.data() + i, &start, 4, cudaMemcpyHostToDevice), "probe");
#endif
  }
  launch(atomic_probe, 1, 32, 0, 1, out.data(), old.data());
  Words words = out.words(), before = old.words();
  std::sort(before.begin(), before.end());  // in which order lanes came is nobody's business
  words.insert(words.end(), before.begin(), before.end());
  return words;
}

Words manual_atomics() {
  uint32_t odd = 100;
  for (uint32_t lane = 0; lane < 32; ++lane) odd ^= lane * 77;
  const Words once = {
      196, uint32_t(100 - 496), 100, uint32_t(-26), 100 & 0xffff0000u, kAll, odd, 9, 100, 100};
  Words words = once;
  // 100 | 100 << 32 is above 1 << 33, so the least of those offered stays: lane 0's.
  words[8] = 0, words[9] = 2;
  words.insert(words.end(), words.begin(), words.begin() + kAtomics);
  for (uint32_t i = 0; i < 32; ++i) words.push_back(100 + 3 * i);
  return words;
}

// ---- Wide accesses and cp.async --------------------------------------------------------------

// Each lane copies 16 bytes by four ways, from the lane's mirror image.
__global__ void access_probe(const unsigned* in, unsigned* out) {
  __shared__ __align__(16) unsigned tile[128];
  const int lane = threadIdx.x, other = 31 - lane;
  st_global_128(out + lane * 4, ld_global_128(in + other * 4));
  for (int half = 0; half < 2; ++half)
    st_global_64(out + 128 + lane * 4 + half * 2, ld_global_64(in + other * 4 + half * 2));
  st_shared_128(smem_addr(tile + other * 4), ld_global_128(in + lane * 4));
  __syncwarp();
  st_global_128(out + 256 + lane * 4, ld_shared_128(smem_addr(tile) + lane * 16));
  __syncwarp();
  cp_async_128(smem_addr(tile + lane * 4), in + other * 4);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  for (int i = 0; i < 4; ++i) out[384 + i * 32 + lane] = tile[i * 32 + lane];
}

Words run_access() {
  const Array in = Array::input(counting(128)), out = Array::output(512);
  launch(access_probe, 1, 32, 0, 1, in.data(), out.data());
  return out.words();
}

Words manual_access() {
  const Words in = counting(128);
  Words words;
  for (int way = 0; way < 4; ++way)
    for (int i = 0; i < 128; ++i) words.push_back(in[size_t((31 - i / 4) * 4 + i % 4)]);
  return words;
}

// ---- Numbers ---------------------------------------------------------------------------------

constexpr int kPowers = 254, kSpecials = 6;

// Powers of two are exact in the approximations too; so is what is flushed or overflows.
__global__ void math_probe(const float* specials, unsigned* out) {
  for (int i = threadIdx.x; i < kPowers; i += 32) {
    const float exponent = float(i - 126);
    out[i] = __float_as_uint(ex2(exponent));
    out[kPowers + i] = __float_as_uint(rcp(ex2(float(i % 253 - 126))));
  }
  if (threadIdx.x >= kSpecials) return;
  out[2 * kPowers + threadIdx.x] = __float_as_uint(ex2(specials[threadIdx.x]));
  out[2 * kPowers + kSpecials + threadIdx.x] = __float_as_uint(rcp(specials[threadIdx.x]));
}

Words specials() {
  const float inf = std::numeric_limits<float>::infinity();
  return {bits(inf), bits(-inf), bits(0.0f), bits(-0.0f), bits(1e-40f), bits(-300.0f)};
}

Words run_math() {
  const Array in = Array::input(specials()), out = Array::output(2 * kPowers + 2 * kSpecials);
  launch(math_probe, 1, 32, 0, 1, in.floats(), out.data());
  // 1 / -300 is no power of two: to 1 ulp only.
  Words words = out.words();
  words.pop_back();
  return words;
}

Words manual_math() {
  const float inf = std::numeric_limits<float>::infinity();
  Words words;
  for (int i = 0; i < kPowers; ++i) words.push_back(bits(std::ldexp(1.0f, i - 126)));
  for (int i = 0; i < kPowers; ++i) words.push_back(bits(std::ldexp(1.0f, 126 - i % 253)));
  for (float value : {inf, 0.0f, 1.0f, 1.0f, 1.0f, 0.0f}) words.push_back(bits(value));
  for (float value : {0.0f, -0.0f, inf, -inf, inf}) words.push_back(bits(value));
  return words;
}

constexpr int kRounded = 64;

__global__ void tf32_probe(const float* in, unsigned* out) {
  for (int i = threadIdx.x; i < kRounded; i += 32) out[i] = to_tf32(in[i]);
}

// 1 + i / 2^13, of either sign: tf32 has 10 bits, so that every eighth is exact and the ones
// between them tie.
Words tf32_inputs() {
  Words words;
  for (int i = 0; i < kRounded; ++i)
    words.push_back(bits((i % 2 ? -1.0f : 1.0f) * (1.0f + std::ldexp(float(i), -13))));
  return words;
}

Words run_tf32() {
  const Array in = Array::input(tf32_inputs()), out = Array::output(kRounded);
  launch(tf32_probe, 1, 32, 0, 1, in.floats(), out.data());
  return out.words();
}

// To nearest, ties away from zero.
Words manual_tf32() {
  Words words;
  for (int i = 0; i < kRounded; ++i) {
    const float rounded = 1.0f + std::ldexp(std::round(float(i) / 8.0f), -10);
    words.push_back(bits(i % 2 ? -rounded : rounded));
  }
  return words;
}

}  // namespace

std::vector<Probe> thread_probes() {
  return {{"shuffles", 80, run_shuffles, manual_shuffles},
          {"votes_and_reductions", 80, run_votes, manual_votes},
          {"block_votes_and_named_barriers", 80, run_block, manual_block},
          {"atomics", 80, run_atomics, manual_atomics},
          {"wide_accesses", 80, run_access, manual_access},
          {"ex2_and_rcp", 80, run_math, manual_math},
          {"to_tf32", 80, run_tf32, manual_tf32}};
}

}  // namespace conformance
