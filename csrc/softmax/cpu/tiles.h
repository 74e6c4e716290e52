// Tiles of rows side by side, one row a lane: the shared memory side of forward_tiles.cpp and
// backward_tiles.cpp. Nothing is reduced across lanes, so every layout is served: lanes that are
// neighbours in memory move as vectors (dim != -1), others are gathered and scattered through the
// tile, and a tile is small enough to stay in cache meanwhile.
#pragma once

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "softmax/cpu/heuristics.h"
#include "softmax/cpu/rows.h"
#include "softmax/cpu/staging.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int kGroup = 16;     // elements handled together
inline constexpr int kMaxLanes = 64;  // rows of a tile
inline constexpr int kLeastLanes = 16;

// Elements [first, first + count) of every row of a tile.
struct Group {
  int64_t index;
  int64_t first;
  int count;
};

inline Group group_at(int64_t index, int64_t n) {
  const int64_t first = index * kGroup;
  return {index, first, int(n - first < kGroup ? n - first : kGroup)};
}

// Which rows form which tile. Tiles do not cross the last row dim where that fills the lanes.
class Tiling {
 public:
  Tiling(const Shape& shape, int lanes) : rows_(shape.rows) {
    const int64_t inner = shape.row_dims ? shape.row_size[shape.row_dims - 1] : 1;
    span_ = inner >= kLeastLanes ? inner : rows_;
    // Enough tiles for every thread, as long as the lanes are not left empty.
    const int64_t wanted = 4 * fastops::cpu::num_threads();
    while (lanes > kLeastLanes && (rows_ + lanes - 1) / lanes < wanted) lanes /= 2;
    lanes_ = lanes;
    per_span_ = (span_ + lanes - 1) / lanes;
  }

  int lanes() const { return lanes_; }
  int64_t tiles() const { return rows_ / span_ * per_span_; }
  int64_t first_row(int64_t tile) const {
    return tile / per_span_ * span_ + tile % per_span_ * lanes_;
  }
  int width(int64_t tile) const {
    const int64_t left = span_ - tile % per_span_ * lanes_;
    return int(left < lanes_ ? left : lanes_);
  }

 private:
  int64_t rows_, span_, per_span_;
  int lanes_;
};

// Where an operand's elements are for the rows of one tile.
struct LaneOperand {
  int64_t lane[kMaxLanes];
  int runs;                     // stretches of lanes that are neighbours in memory
  int8_t begin[kMaxLanes + 1];  // of each run; then the width

  // Whether runs are long enough to be moved as (parts of) vectors.
  bool in_runs() const { return runs * 4 <= begin[runs]; }

  // body(first lane, its offset, lanes) of each run.
  template <typename Body>
  void each_run(const Body& body) const {
    for (int r = 0; r < runs; ++r) body(begin[r], lane[begin[r]], begin[r + 1] - begin[r]);
  }
};

// Offsets of a group's elements within a row.
inline void element_offsets(const Shape& shape, const Operand& o, const Group& g, int64_t* offset) {
  if (shape.reduce_dims <= 1) {
    const int64_t stride = shape.reduce_dims ? o.reduce_stride[0] : 0;
    for (int i = 0; i < g.count; ++i) offset[i] = (g.first + i) * stride;
    return;
  }
  for (int i = 0; i < g.count; ++i) {
    int64_t index = g.first + i, sum = 0;
    for (int d = shape.reduce_dims - 1; d >= 0; --d) {
      sum += index % shape.reduce_size[d] * o.reduce_stride[d];
      index /= shape.reduce_size[d];
    }
    offset[i] = sum;
  }
}

template <typename V>
class TileMemory {
 public:
  using S = typename V::Scalar;

  explicit TileMemory(const Shape& shape) : shape_(shape) {}

  // Call for each lane of a tile in order.
  void place(LaneOperand& at, const Operand& o, const RowCursor& row, int c) const {
    if (!o) return;
    at.lane[c] = row.offset(o.row_stride);
    if (c == 0) at.runs = 0;
    if (c == 0 || at.lane[c] != at.lane[c - 1] + 1) at.begin[at.runs++] = int8_t(c);
    at.begin[at.runs] = int8_t(c + 1);
  }

  // to[i * lanes + c] = element i of the group in row c.
  void load(const Operand& o, const LaneOperand& at, int width, const Group& g, S* to,
            int lanes) const {
    int64_t element[kGroup];
    element_offsets(shape_, o, g, element);
    with_float(o.dtype, [&]<typename T>() {
      const T* data = static_cast<const T*>(o.data);
      if (at.in_runs()) {
        const int64_t ahead = shape_.reduce_dims == 1 ? kGroup * o.reduce_stride[0] : 0;
        return at.each_run([&](int first, int64_t lane, int count) {
          for (int i = 0; i < g.count; ++i) {
            const T* from = data + lane + element[i];
            S* row = to + i * lanes + first;
            int c = 0;
            for (; c + V::size <= count; c += V::size) {
              fastops::cpu::prefetch(from + ahead + c);
              V::load(from + c).store(row + c);
            }
            if (c < count) V::load(from + c, count - c).store(row + c, count - c);
          }
        });
      }
      each(o, g, width,
           [&](int i, int c) { to[i * lanes + c] = scalar(data[at.lane[c] + element[i]]); });
    });
  }

  // The reverse, rounding. `stream`: past the caches where whole lines allow it.
  void store(const Operand& o, const LaneOperand& at, int width, const Group& g, const S* from,
             int lanes, bool stream) const {
    int64_t element[kGroup];
    element_offsets(shape_, o, g, element);
    with_float(o.dtype, [&]<typename T>() {
      T* data = static_cast<T*>(o.data);
      if (at.in_runs()) {
        return at.each_run([&](int first, int64_t lane, int count) {
          for (int i = 0; i < g.count; ++i) {
            T* to = data + lane + element[i];
            const S* row = from + i * lanes + first;
            const bool whole = stream && reinterpret_cast<uintptr_t>(to) % 64 == 0;
            int c = 0;
            for (; c + V::size <= count; c += V::size) {
              const V value = V::load(row + c);
              if (whole) value.stream(to + c);
              else value.store(to + c);
            }
            if (c < count) V::load(row + c, count - c).store(to + c, count - c);
          }
        });
      }
      each(o, g, width, [&](int i, int c) {
        V::load(from + i * lanes + c, 1).store(data + at.lane[c] + element[i], 1);
      });
    });
  }

  // to[i * kMaxLanes + c] = the mask's byte.
  void load_mask(const Operand& o, const LaneOperand& at, int width, const Group& g,
                 uint8_t* to) const {
    int64_t element[kGroup];
    element_offsets(shape_, o, g, element);
    const uint8_t* data = static_cast<const uint8_t*>(o.data);
    if (at.in_runs()) {
      return at.each_run([&](int first, int64_t lane, int count) {
        for (int i = 0; i < g.count; ++i)
          __builtin_memcpy(to + i * kMaxLanes + first, data + lane + element[i], size_t(count));
      });
    }
    each(o, g, width, [&](int i, int c) { to[i * kMaxLanes + c] = data[at.lane[c] + element[i]]; });
  }

 private:
  static float scalar(fastops::cpu::f16 h) { return fastops::cpu::to_float(h); }
  static float scalar(fastops::cpu::bf16 h) { return fastops::cpu::to_float(h); }
  static S scalar(float f) { return f; }
  static S scalar(double f) { return S(f); }

  // body(i, c) over the tile, along memory.
  template <typename Body>
  void each(const Operand& o, const Group& g, int width, const Body& body) const {
    const int64_t along = shape_.reduce_dims ? o.reduce_stride[shape_.reduce_dims - 1] : 0;
    const int64_t across = shape_.row_dims ? o.row_stride[shape_.row_dims - 1] : 0;
    if (along < across) {
      for (int c = 0; c < width; ++c)
        for (int i = 0; i < g.count; ++i) body(i, c);
    } else {
      for (int i = 0; i < g.count; ++i)
        for (int c = 0; c < width; ++c) body(i, c);
    }
  }

  const Shape& shape_;
};

// What decides which elements take part, and the scales, of one tile's rows.
template <typename V>
struct TileArgs {
  using S = typename V::Scalar;

  int width;
  bool cut;  // some row is shorter than n
  int64_t length[kMaxLanes];
  alignas(64) S scale[kMaxLanes];
  LaneOperand mask, bias;

  template <typename Params>
  void place(const Params& p, const TileMemory<V>& memory, const RowCursor& row, int c) {
    if (c == 0) cut = false;
    length[c] = row.length(p);
    cut |= length[c] < p.shape.n;
    scale[c] = S(p.scale);
    if (p.row_scale) scale[c] *= row.at<const S>(p.row_scale);
    memory.place(mask, p.mask, row, c);
    memory.place(bias, p.bias, row, c);
  }

  // valid[i * kMaxLanes + c]: whether the element takes part. False: all do, nothing written.
  template <typename Params>
  bool valid(const Params& p, const TileMemory<V>& memory, const Group& g, uint8_t* to) const {
    if (p.mask) memory.load_mask(p.mask, mask, width, g, to);
    if (!cut) return bool(p.mask);
    for (int i = 0; i < g.count; ++i)
      for (int c = 0; c < width; ++c) {
        const bool inside = g.first + i < length[c];
        uint8_t& v = to[i * kMaxLanes + c];
        v = p.mask ? uint8_t(v && inside) : uint8_t(inside);
      }
    return true;
  }
};

}  // namespace
}  // namespace fastops::softmax::cpu
