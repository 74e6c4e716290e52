// Which kernel runs a problem, and how it is cut: pure functions of the shape, the dtypes and the
// device, so that they can be tested without one. No CUDA here.
//
// The limits are starting points of a design study, compiled and modelled but not yet measured on
// hardware; docs and tests refer to them by name.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "softmax/softmax.h"

namespace fastops::softmax::cuda {

struct Device {
  int sm_count;
  int major, minor;
  int shared_optin;  // most dynamic shared memory of one block, in bytes
  bool hopper;       // run the kernels for sm_90; off until a record from hardware says they pay
  // How many clusters of 1, 2, 4, 8 and 16 blocks, an SM each, run at a time; 0: not launched.
  std::array<int, 5> clusters;
};

enum class Kernel : int8_t {
  rows,       // several lanes per row, in registers
  ring,       // the same from rings in shared memory that bulk copies fill (sm_90)
  block_row,  // a block per row, in registers
  stream,     // a block per row, in shared memory, the next row on its way
  cluster,    // the same fed by bulk copies, one block or several per row (sm_90)
  split,      // two kernels over chunks of rows
  column,     // reduction across rows of memory
  strided,    // any strides, any dtypes
};

struct Plan {
  Kernel kernel = Kernel::strided;
  int vecs = 0;            // rows, ring: vectors a lane holds of a row
  bool loop = false;       // ring: the row does not fit them, so it is read twice from its slot
  int lanes = 0;           // rows, ring: lanes per row; column, strided: rows or packs along x
  int parts = 0;           // column, strided: threads that share a row
  int threads = 0;         // per block
  int slots = 0;           // stream, cluster: vectors a thread holds; ring: slots a warp
  bool beyond = false;     // cluster: the row is longer; the rest is read twice, by `full` kernels
  int group = 0;           // ring: rows a slot
  int blocks_per_row = 1;  // cluster: its size; split: chunks
  int chunk = 0;           // split: elements per chunk
  int64_t blocks = 0;
  size_t shared_bytes = 0;
  size_t workspace_bytes = 0;
};

// What a plan depends on.
struct Problem {
  int64_t rows = 1, n = 1;
  DType in = DType::f32;    // of x (or y), and what every vectorised input has
  bool tuned = false;       // the dtypes have vectorised kernels
  bool contiguous = false;  // rows lie in memory one element after the other
  bool columns = false;     // vectors lie across rows: last row dim contiguous and aligned
  bool aligned = false;     // every row starts on 16 bytes
  bool dense = false;       // rows of every input follow each other, the first one on 16 bytes
  bool full = false;        // mask, bias, lengths, causality or a scale per row
  bool log = false;         // log_softmax or logsumexp
  bool backward = false;
  bool reduces = true;  // false: logsumexp backward
  int inputs = 1;       // tensors of x's size that are read
  int64_t last_row_dim = 1;
  bool rows_fast = false;  // neighbouring rows are nearer in memory than neighbouring elements
};

inline constexpr int kVectorBytes = 16;
inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxBlockRowVectors = 2048;  // 512 threads * 4
inline constexpr int kSplitStep = 1024;         // vectors a block of the split kernels takes a turn
inline constexpr int kMaxChunkVectors = 65536;  // 256 additions a thread: error stays near 1e-7
inline constexpr int kSplitFrom = 8192;         // rows fewer than half the SMs: split above this
inline constexpr int kStreamBlock = 512;
inline constexpr int kStaticShared = 2048;            // more than any stream kernel declares
inline constexpr int kComfortableSlice = 112 * 1024;  // two blocks fit an SM of sm_90
inline constexpr int kLeastKept = 40;  // percent of a row that a cluster holds, else it is split
inline constexpr int kPortableClusterSize = 8;

inline constexpr int kRingThreads = 128, kRingStages = 4;
inline constexpr int kRingRowBytes = 128;         // shorter rows stay with `rows`
inline constexpr int kRingCopyBytes = 2048;       // of a bulk copy, at least
inline constexpr int kRingSlotBytes = 16 * 1024;  // of a slot, at most
inline constexpr int kRingSmBytes = 192 * 1024;   // of an SM's rings, unless two slots are longer

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int round_up_pow2(int64_t v) {
  int p = 1;
  while (p < v) p *= 2;
  return p;
}

// Vectors that a row may span, from the worst alignment on.
constexpr int64_t row_vectors(const Problem& q) {
  const int per = kVectorBytes / static_cast<int>(size_of(q.in));
  return ceil_div(q.n + (q.aligned ? 0 : per - 1), per);
}

// Rows in flight per lane, which the instantiations of rows_kernel follow.
constexpr int rows_in_flight(const Problem& q, int vecs) {
  if (q.full || q.in == DType::f64 || vecs == 8) return 1;
  if (q.backward) return vecs == 1 ? 4 : vecs == 2 ? 2 : 1;
  return vecs == 4 ? 2 : 4;
}

inline Plan plan_rows(const Problem& q, int64_t vectors) {
  Plan plan;
  plan.kernel = Kernel::rows;
  const bool few_variants = q.full || q.in == DType::f64;  // instantiated for 1 and 4 only
  if (few_variants) plan.vecs = vectors <= kWarpLanes ? 1 : 4;
  else plan.vecs = vectors <= 8 ? 1 : vectors <= 16 ? 2 : vectors <= 128 ? 4 : 8;
  plan.lanes = std::min(kWarpLanes, round_up_pow2(ceil_div(vectors, plan.vecs)));
  plan.threads = 128;
  plan.blocks = ceil_div(q.rows, int64_t(plan.threads / plan.lanes) * rows_in_flight(q, plan.vecs));
  return plan;
}

// Blocks of a ring kernel that registers let share an SM: 168, 128 or 80 a thread.
constexpr int ring_blocks_by_registers(int vecs, bool loop) { return vecs == 8 ? 3 : loop ? 4 : 6; }

// Rows of n elements whose bytes are a multiple of 16.
constexpr int whole_rows(const Problem& q) {
  int rows = 1;
  while (rows * q.n * static_cast<int>(size_of(q.in)) % 16 != 0) rows *= 2;
  return rows;
}

// Rings where rows are dense and every warp has more than one slot to fill; kernel stays strided
// elsewhere.
inline Plan plan_ring(const Problem& q, const Device& device, int64_t vectors) {
  Plan plan;
  const int64_t row_bytes = q.n * static_cast<int>(size_of(q.in)) * q.inputs;
  if (!q.dense || q.full || !q.reduces || q.in == DType::f64) return plan;
  if (row_bytes < kRingRowBytes * q.inputs || row_bytes > kRingSlotBytes) return plan;
  // Only exponentials are worth holding in registers: the other operators have none to save.
  const bool holds = !q.backward && !q.log;
  plan.vecs = vectors <= 16 ? 1 : holds && 128 < vectors && vectors <= 256 ? 8 : 4;
  plan.loop = plan.vecs == 4 && !(holds && vectors <= 128);
  plan.lanes = std::clamp(round_up_pow2(ceil_div(vectors, plan.vecs)), 8, kWarpLanes);
  const int64_t least = std::max(whole_rows(q), kWarpLanes / plan.lanes);
  const int64_t group = least * ceil_div(kRingCopyBytes, least * row_bytes);
  const int64_t slot = group * row_bytes;
  if (slot > kRingSlotBytes) return plan;
  plan.group = static_cast<int>(group);
  const int by_registers = ring_blocks_by_registers(plan.vecs, plan.loop);
  const int64_t wanted = kRingSmBytes / (by_registers * (kRingThreads / kWarpLanes)) / slot;
  plan.slots = static_cast<int>(std::clamp<int64_t>(wanted, 2, kRingStages));
  const int64_t ring = plan.slots * slot;
  const int64_t warps = std::clamp<int64_t>(kComfortableSlice / ring, 1, kRingThreads / kWarpLanes);
  plan.threads = static_cast<int>(warps) * kWarpLanes;
  plan.shared_bytes = static_cast<size_t>(warps * ring);
  const int64_t fit =
      (device.shared_optin + 1024) / static_cast<int64_t>(plan.shared_bytes + kStaticShared);
  const int64_t resident =
      device.sm_count * std::clamp<int64_t>(fit, 1, ring_blocks_by_registers(plan.vecs, plan.loop));
  const int64_t groups = ceil_div(q.rows, group);
  if (groups < 2 * resident * warps) return plan;
  plan.kernel = Kernel::ring;
  plan.blocks = resident;
  return plan;
}

inline Plan plan_split(const Problem& q, const Device& device, int64_t vectors) {
  Plan plan;
  plan.kernel = Kernel::split;
  const int per = kVectorBytes / static_cast<int>(size_of(q.in));
  const int64_t wanted = std::max<int64_t>(1, ceil_div(4 * device.sm_count, q.rows));
  const int64_t turns = ceil_div(ceil_div(vectors, wanted), kSplitStep);
  const int64_t chunk = std::min<int64_t>(turns * kSplitStep, kMaxChunkVectors);
  plan.chunk = static_cast<int>(chunk * per);
  plan.blocks_per_row = static_cast<int>(ceil_div(q.n, plan.chunk));
  plan.threads = 256;
  plan.blocks = q.rows * plan.blocks_per_row;
  if (q.reduces) plan.workspace_bytes = plan.blocks * (q.in == DType::f64 ? 16 : 8);
  return plan;
}

constexpr int largest_cluster(const Device& device) {
  int size = 1;
  for (int i = 1; i < int(device.clusters.size()); ++i)
    if (device.clusters[i] > 0) size = 1 << i;
  return size;
}

// Rows that run at a time where blocks have an SM each. A persistent cluster more would wait until
// another has done all its rows.
constexpr int rows_at_once(const Device& device, int cluster) {
  if (cluster == 1) return device.sm_count;
  int i = 0;
  while (1 << i < cluster) ++i;
  return device.clusters[i];
}

// Blocks of a stream kernel that share an SM: by shared memory, and by registers (stream.cuh).
inline int stream_blocks_per_sm(const Problem& q, const Device& device, size_t shared_bytes) {
  if (q.full || q.in == DType::f64) return 1;
  const int64_t fit = (device.shared_optin + 1024) / int64_t(shared_bytes + kStaticShared);
  return static_cast<int>(std::clamp<int64_t>(fit, 1, 2));
}

// One block per row, or `cluster` of them; kernel stays strided if the slices do not fit and are
// not let be read twice beyond what fits.
inline Plan plan_stream(const Problem& q, const Device& device, int64_t vectors, int cluster,
                        bool beyond = false) {
  Plan plan;
  const int at_once = rows_at_once(device, cluster);
  if (at_once == 0) return plan;
  const int slot_bytes = kStreamBlock * kVectorBytes * q.inputs;
  const int64_t needed = ceil_div(ceil_div(vectors, cluster), kStreamBlock);
  const int64_t most = (device.shared_optin - kStaticShared) / slot_bytes;
  if (needed > most && (!beyond || needed * kLeastKept > most * 100)) return plan;
  const int64_t slots = std::min(needed, most);
  const int64_t shared = slots * slot_bytes;
  plan.kernel = cluster > 1 ? Kernel::cluster : Kernel::stream;
  plan.slots = static_cast<int>(slots);
  plan.beyond = needed > most;
  plan.threads = kStreamBlock;
  plan.shared_bytes = static_cast<size_t>(shared);
  plan.blocks_per_row = cluster;
  const int64_t resident = int64_t(at_once) * stream_blocks_per_sm(q, device, plan.shared_bytes);
  plan.blocks = cluster * std::min(q.rows, resident);
  return plan;
}

// The smallest cluster whose slices let two blocks share an SM, else the smallest that fits, else
// the largest that holds a good part of the row.
inline Plan plan_cluster(const Problem& q, const Device& device, int64_t vectors) {
  const int largest = largest_cluster(device), most = std::min(largest, kPortableClusterSize);
  for (int cluster = 2; cluster <= most; cluster *= 2) {
    const Plan plan = plan_stream(q, device, vectors, cluster);
    if (plan.kernel == Kernel::cluster && plan.shared_bytes <= size_t(kComfortableSlice))
      return plan;
  }
  for (int cluster = most; cluster <= largest; cluster *= 2) {
    const Plan plan = plan_stream(q, device, vectors, cluster);
    if (plan.kernel == Kernel::cluster) return plan;
  }
  return plan_stream(q, device, vectors, largest, true);
}

// Threads along the rows and along the reduced elements for kernels that walk across memory.
inline Plan plan_walk(const Problem& q, Kernel kernel) {
  Plan plan;
  plan.kernel = kernel;
  plan.threads = 256;
  const int per = kernel == Kernel::column ? kVectorBytes / static_cast<int>(size_of(q.in)) : 1;
  const int64_t across = kernel == Kernel::column ? q.last_row_dim / per : q.rows;
  // Whole rows of lanes across memory where neighbours lie there; the rest shares the reduction.
  const bool wide = kernel == Kernel::column || q.rows_fast;
  const int most_parts = round_up_pow2(std::clamp<int64_t>(ceil_div(q.n, 16), 1, 256));
  plan.lanes = wide ? std::min(32, round_up_pow2(across)) : 1;
  plan.parts = wide ? std::min(most_parts, 256 / plan.lanes) : std::max(32, most_parts);
  if (plan.lanes * plan.parts < 128) plan.lanes = std::min(128 / plan.parts, round_up_pow2(across));
  plan.threads = std::max(32, plan.lanes * plan.parts);
  plan.lanes = plan.threads / plan.parts;
  plan.blocks =
      ceil_div(across, plan.lanes) * (kernel == Kernel::column ? q.rows / q.last_row_dim : 1);
  return plan;
}

inline Plan plan(const Problem& q, const Device& device) {
  if (!q.tuned || !q.contiguous) {
    const bool column = q.tuned && q.columns && !q.full && q.reduces;
    return plan_walk(q, column ? Kernel::column : Kernel::strided);
  }
  const int64_t vectors = row_vectors(q);
  const bool hopper = device.hopper && device.major == 9;
  if (hopper) {
    const Plan ring = plan_ring(q, device, vectors);
    if (ring.kernel == Kernel::ring) return ring;
  }
  const bool single = q.full || q.in == DType::f64 || q.backward;
  if (vectors <= (single ? 4 : 8) * kWarpLanes) return plan_rows(q, vectors);
  if (vectors <= kMaxBlockRowVectors) {
    Plan block;
    block.kernel = Kernel::block_row;
    block.threads = static_cast<int>(ceil_div(ceil_div(vectors, 4), kWarpLanes)) * kWarpLanes;
    block.blocks = q.rows;
    return block;
  }
  const bool few_rows = q.rows * 2 < device.sm_count && vectors > kSplitFrom;
  if (!q.reduces || few_rows) return plan_split(q, device, vectors);
  Plan stream = plan_stream(q, device, vectors, 1);
  const bool comfortable =
      stream.kernel == Kernel::stream && stream.shared_bytes <= size_t(kComfortableSlice);
  if (hopper && comfortable) stream.kernel = Kernel::cluster;
  if (hopper && !comfortable) {
    const Plan cluster = plan_cluster(q, device, vectors);
    if (cluster.kernel == Kernel::cluster) return cluster;
  }
  return stream.kernel != Kernel::strided ? stream : plan_split(q, device, vectors);
}

// ---- Params -> Problem ----------------------------------------------------------------------

// Both strides and address of an operand's rows are multiples of `bytes`.
inline bool rows_aligned(const Shape& s, const Operand& t, size_t bytes, int skip_last = 0) {
  if (!t) return true;
  const size_t size = size_of(t.dtype);
  if (reinterpret_cast<uintptr_t>(t.data) % bytes != 0) return false;
  for (int d = 0; d < s.row_dims - skip_last; ++d)
    if (s.row_size[d] > 1 && t.row_stride[d] * size % bytes != 0) return false;
  return true;
}

// The rows of an operand follow each other, from an address that is a multiple of 16 bytes on.
inline bool rows_dense(const Shape& s, const Operand& t) {
  if (reinterpret_cast<uintptr_t>(t.data) % kVectorBytes != 0 || s.row_dims > 1) return false;
  return s.rows == 1 || t.row_stride[0] == s.n;
}

inline bool reduces_contiguously(const Shape& s, const Operand& t) {
  return !t || s.n == 1 || (s.reduce_dims == 1 && t.reduce_stride[0] == 1);
}

// Vectors of `per` elements lie across the last row dim.
inline bool has_columns(const Shape& s, const Operand& t, int per) {
  if (!t) return true;
  if (s.row_dims == 0 || s.reduce_dims != 1) return false;
  const int last = s.row_dims - 1;
  const size_t bytes = std::min<size_t>(16, per * size_of(t.dtype));
  return t.row_stride[last] == 1 && s.row_size[last] % per == 0 &&
         t.reduce_stride[0] * size_of(t.dtype) % bytes == 0 && rows_aligned(s, t, bytes, 1);
}

// The output dtypes that vectorised kernels of an input dtype can store.
constexpr bool has_store(DType in, DType out) {
  if (in == out) return true;
  if (in == DType::f64 || out == DType::f64) return false;
  return in == DType::f32 || out == DType::f32;
}

template <typename Params>
void describe(Problem& q, const Params& p, const Operand& x, const Operand& out) {
  const Shape& s = p.shape;
  q.rows = s.rows;
  q.n = s.n;
  q.in = x.dtype;
  const int per = kVectorBytes / static_cast<int>(size_of(x.dtype));
  q.tuned = !out || has_store(x.dtype, out.dtype);
  q.contiguous = reduces_contiguously(s, x) && reduces_contiguously(s, out);
  q.columns = has_columns(s, x, per) && has_columns(s, out, per);
  q.aligned = rows_aligned(s, x, kVectorBytes);
  q.dense = rows_dense(s, x);
  q.log = p.kind != Kind::softmax;
  q.last_row_dim = s.row_dims > 0 ? s.row_size[s.row_dims - 1] : 1;
  auto magnitude = [](int64_t v) { return v < 0 ? -v : v; };
  q.rows_fast =
      s.row_dims > 0 && (s.reduce_dims == 0 || magnitude(x.row_stride[s.row_dims - 1]) <
                                                   magnitude(x.reduce_stride[s.reduce_dims - 1]));
  // A scale of 0 or NaN does not keep the -inf that stands for an absent element.
  q.full = p.mask || p.bias || p.lengths || p.causal || !(p.scale < 0 || p.scale > 0);
}

inline Problem problem(const ForwardParams& p) {
  Problem q;
  describe(q, p, p.x, p.out);
  q.full |= bool(p.row_scale);
  return q;
}

inline Problem problem(const BackwardParams& p) {
  Problem q;
  describe(q, p, p.y, p.dx);
  q.backward = true;
  q.reduces = p.kind != Kind::logsumexp;
  if (q.reduces) {
    const int per = kVectorBytes / static_cast<int>(size_of(q.in));
    q.inputs = 2;
    q.full = p.mask || p.lengths || p.causal;  // the scale is applied after the fact
    q.tuned = q.tuned && p.dy.dtype == q.in;
    q.contiguous = q.contiguous && reduces_contiguously(p.shape, p.dy);
    q.dense = q.dense && rows_dense(p.shape, p.dy);
    q.columns = q.columns && has_columns(p.shape, p.dy, per);
  } else {
    q.full |= bool(p.row_scale);
  }
  return q;
}

}  // namespace fastops::softmax::cuda
