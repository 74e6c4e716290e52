#include "problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>

#include "core/strides.h"
#include "reference.h"

namespace fastops::test {
namespace {

using softmax::BackwardParams;
using softmax::ForwardParams;
using softmax::Kind;
using softmax::Operand;
using softmax::Shape;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr uint8_t kPoison = 0xff;  // NaN in every floating dtype, true, -1

enum Slot { kOut, kIn, kGrad, kMask, kBias, kLengths, kRowScale, kLse, kDlse, kQuery, kSlots };

// Memory of the case's operands; fills Params as csrc/softmax/torch.cpp does.
class Arena {
 public:
  explicit Arena(const Case& c) : c_(c), rng_(c.seed), rank_(int(c.size.size())) {
    is_reduced_.assign(rank_, false);
    for (int d : c.reduced) is_reduced_[d] = true;
    for (int d = 0; d < rank_; ++d) (is_reduced_[d] ? n_ : rows_) *= c.size[d];
  }

  void tensor(Slot slot, Operand& operand, DType dtype, Layout layout) {
    std::vector<int64_t> stride(rank_);
    int64_t step = layout == Layout::stepped ? 2 : 1;
    for (int i = 0; i < rank_; ++i) {
      const int d = layout == Layout::reversed ? i : rank_ - 1 - i;
      stride[d] = step;
      step *= c_.size[d];
    }
    place(slot, operand, dtype, stride);
  }

  void broadcast(Slot slot, Operand& operand, DType dtype, Span span) {
    if (span == Span::absent) return;
    std::vector<int64_t> stride(rank_);
    int64_t step = 1;
    for (int i = 0; i < rank_; ++i) {
      const int d = span == Span::reversed ? i : rank_ - 1 - i;
      if (span == (is_reduced_[d] ? Span::row : Span::reduced)) continue;
      stride[d] = step;
      step *= c_.size[d];
    }
    place(slot, operand, dtype, stride);
  }

  void per_row(Slot slot, Operand& operand, DType dtype) {
    broadcast(slot, operand, dtype, Span::row);
  }

  void alias(Slot slot, Operand& operand, Slot of) {
    operand = *operands_[of];
    operands_[slot] = &operand;
    stride_[slot] = stride_[of];
  }

  template <typename Params>
  void finish(Params& p) {
    if (c_.causal) {
      stride_[kQuery].assign(rank_, 0);
      stride_[kQuery][rank_ - 2] = 1;
      p.causal = true;
      p.causal_offset = c_.size[rank_ - 1] - c_.size[rank_ - 2];
    }
    std::vector<WalkDim<kSlots>> rows, reduced;
    for (int d = 0; d < rank_; ++d) {
      WalkDim<kSlots> w{c_.size[d], {}};
      for (int k = 0; k < kSlots; ++k) w.stride[k] = stride_[k].empty() ? 0 : stride_[k][d];
      (is_reduced_[d] ? reduced : rows).push_back(w);
    }
    int row_dims = drop_unit_dims(rows.data(), int(rows.size()));
    int reduce_dims = drop_unit_dims(reduced.data(), int(reduced.size()));
    order_by_stride(rows.data(), row_dims, operands_[kOut] ? kOut : kIn, kIn);
    row_dims = merge_dims(rows.data(), row_dims);
    reduce_dims = merge_dims(reduced.data(), reduce_dims);
    Shape& s = p.shape;
    s.rows = rows_;
    s.n = n_;
    s.row_dims = row_dims;
    s.reduce_dims = reduce_dims;
    for (int i = 0; i < row_dims; ++i) {
      s.row_size[i] = rows[i].size;
      p.query_stride[i] = rows[i].stride[kQuery];
    }
    for (int i = 0; i < reduce_dims; ++i) s.reduce_size[i] = reduced[i].size;
    for (int k = 0; k < kSlots; ++k) {
      if (!operands_[k]) continue;
      for (int i = 0; i < row_dims; ++i) operands_[k]->row_stride[i] = rows[i].stride[k];
      for (int i = 0; i < reduce_dims; ++i) operands_[k]->reduce_stride[i] = reduced[i].stride[k];
    }
  }

  // Calls draw(row, element) for every element and stores its value.
  template <typename Draw>
  void fill(const Shape& shape, const Operand& o, const Draw& draw, bool per_row = false) {
    if (!o) return;
    for (int64_t row = 0; row < shape.rows; ++row)
      for (int64_t j = 0; j < (per_row ? 1 : shape.n); ++j)
        store(o, row_offset(shape, o.row_stride, row) + element_offset(shape, o.reduce_stride, j),
              draw());
  }

  double normal() { return normal_(rng_); }
  bool chance(double probability) { return uniform_(rng_) < probability; }
  int64_t integer(int64_t most) { return int64_t(uniform_(rng_) * double(most + 1)); }

  // Gaps between the elements of a written operand, and the bytes around it, are untouched.
  bool untouched(Slot slot, const Shape& shape) const {
    const Operand& o = *operands_[slot];
    const GuardedBuffer& buffer = buffers_[slot];
    const size_t size = size_of(o.dtype);
    std::vector<char> written(buffer.bytes() / size);
    for (int64_t row = 0; row < shape.rows; ++row)
      for (int64_t j = 0; j < shape.n; ++j)
        written[row_offset(shape, o.row_stride, row) + element_offset(shape, o.reduce_stride, j)] =
            1;
    bool intact = buffer.margins_intact();
    for (size_t i = 0; i < buffer.bytes(); ++i)
      intact &= written[i / size] || buffer.data()[i] == kPoison;
    return intact;
  }

  const GuardedBuffer& buffer(Slot slot) const { return buffers_[slot]; }

 private:
  void place(Slot slot, Operand& operand, DType dtype, const std::vector<int64_t>& stride) {
    int64_t last = 0;
    for (int d = 0; d < rank_; ++d) last += (c_.size[d] - 1) * stride[d];
    using Place = GuardedBuffer::Place;
    buffers_[slot] =
        GuardedBuffer(size_t(last + 1) * size_of(dtype), kPoison,
                      c_.placement == 0 ? Place::at_end : Place::at_start,
                      c_.placement == 0 ? 0 : size_t(c_.placement - 1) * size_of(dtype));
    operand.data = buffers_[slot].data();
    operand.dtype = dtype;
    operands_[slot] = &operand;
    stride_[slot] = stride;
  }

  const Case& c_;
  std::mt19937 rng_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
  int rank_;
  int64_t rows_ = 1, n_ = 1;
  std::vector<bool> is_reduced_;
  std::vector<int64_t> stride_[kSlots];
  Operand* operands_[kSlots] = {};
  GuardedBuffer buffers_[kSlots];
};

// mask, bias, lengths, row_scale. Some rows are masked out whole, some lengths are 0 or all.
template <typename Params>
void place_score_args(const Case& c, Params& p, Arena& arena, DType acc) {
  arena.broadcast(kMask, p.mask, DType::boolean, c.mask);
  arena.broadcast(kBias, p.bias, c.bias_f32 ? DType::f32 : c.in, c.bias);
  if (c.lengths) arena.per_row(kLengths, p.lengths, c.seed % 2 ? DType::i32 : DType::i64);
  if (c.row_scale) arena.per_row(kRowScale, p.row_scale, acc);
  p.scale = c.scale;
  p.zero_masked_rows = c.zero_masked_rows;
  p.kind = c.kind;
}

template <typename Params>
void fill_score_args(const Case& c, Params& p, Arena& arena) {
  const bool sparse = c.seed % 3 == 0;
  arena.fill(p.shape, p.mask, [&] { return double(arena.chance(sparse ? 0.05 : 0.7)); });
  arena.fill(p.shape, p.bias, [&] { return arena.normal(); });
  arena.fill(p.shape, p.lengths, [&] { return double(arena.integer(p.shape.n)); }, true);
  arena.fill(p.shape, p.row_scale, [&] { return 0.5 + arena.integer(4) * 0.25; }, true);
}

// Powers of two: their scaled sums and lse are exact in every type.
double extreme(Arena& arena) {
  constexpr double kValues[] = {kInf,  -kInf,  NAN,     0.0,      -0.0,
                                1e-40, -1e-40, 0x1p126, -0x1p126, -kInf};
  return kValues[arena.integer(9)];
}

double rounding(DType t) {
  return t == DType::f64 ? 1.2e-16 : t == DType::f32 ? 6e-8 : t == DType::f16 ? 4.9e-4 : 3.91e-3;
}
double least(DType t) { return t == DType::f64 ? 0 : t == DType::f16 ? 6e-8 : 2e-38; }
double largest(DType t) { return t == DType::f16 ? 65504 : t == DType::f64 ? 1.7e308 : 3.38e38; }

// Within the accumulation's error of the exact value, rounded once to `out`.
bool close(double got, double want, double magnitude, DType out, DType acc) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return got == want;
  if (std::fabs(want) > largest(out)) return std::fabs(got) >= largest(out) * 0.99;
  // For fp64 the reference's own sums are as inexact as the kernel's.
  const double accumulated = acc == DType::f64 ? 4e-15 : 5e-7;
  const double tolerance =
      accumulated * magnitude + 1.01 * rounding(out) * std::fabs(want) + least(out);
  return std::fabs(got - want) <= tolerance;
}

bool check_values(const Case& c, const char* what, const Shape& shape, const Operand& o, int64_t n,
                  const std::vector<double>& value, const std::vector<double>& magnitude,
                  DType acc) {
  int64_t wrong = 0, at = 0;
  for (int64_t row = 0; row < shape.rows; ++row)
    for (int64_t j = 0; j < n; ++j, ++at) {
      const double got =
          load(o, row_offset(shape, o.row_stride, row) + element_offset(shape, o.reduce_stride, j));
      if (close(got, value[at], magnitude[at], o.dtype, acc)) continue;
      if (wrong++ == 0)
        std::printf("  %s: %s[%lld, %lld] is %.9g, expected %.9g\n", c.describe().c_str(), what,
                    static_cast<long long>(row), static_cast<long long>(j), got, value[at]);
    }
  return wrong == 0;
}

// The saved output that a backward reads: a true softmax (log_softmax) of drawn scores.
void fill_saved(const Case& c, BackwardParams& p, Arena& arena) {
  ForwardParams f;
  f.shape = p.shape;
  f.kind = c.kind;
  f.zero_masked_rows = c.zero_masked_rows;
  f.mask = p.mask;
  f.bias = p.bias;
  f.lengths = p.lengths;
  f.row_scale = p.row_scale;
  f.scale = p.scale;
  f.causal = p.causal;
  f.causal_offset = p.causal_offset;
  std::copy(p.query_stride, p.query_stride + softmax::kMaxRowDims, f.query_stride);
  f.x = p.y;
  if (c.kind != Kind::logsumexp) f.out = p.y;
  const auto score = [&] {
    return c.extremes && arena.chance(0.02) ? extreme(arena) : 2 * arena.normal();
  };
  arena.fill(p.shape, p.y, score);
  const Expected e = forward_reference(f);
  if (c.kind == Kind::logsumexp) {
    for (int64_t row = 0; row < p.shape.rows; ++row)
      store(p.lse, row_offset(p.shape, p.lse.row_stride, row), e.lse[row]);
    return;
  }
  size_t at = 0;
  arena.fill(p.shape, p.y, [&] { return e.value[at++]; });
}

void build_forward(const Case& c, ForwardParams& p, Arena& arena, DType acc) {
  arena.tensor(kIn, p.x, c.in, c.in_layout);
  if (c.kind != Kind::logsumexp) {
    if (c.in_place) arena.alias(kOut, p.out, kIn);
    else arena.tensor(kOut, p.out, c.out, c.out_layout);
  }
  if (c.lse || c.kind == Kind::logsumexp) arena.per_row(kLse, p.lse, acc);
  place_score_args(c, p, arena, acc);
  p.algorithm = c.algorithm;
  arena.finish(p);
  arena.fill(p.shape, p.x, [&] {
    return c.extremes && arena.chance(0.02) ? extreme(arena) : 3 * arena.normal();
  });
  fill_score_args(c, p, arena);
}

void build_backward(const Case& c, BackwardParams& p, Arena& arena, DType acc) {
  arena.tensor(kIn, p.y, c.in, c.in_layout);
  if (c.kind == Kind::logsumexp) {
    arena.per_row(kLse, p.lse, acc);
  } else {
    arena.tensor(kGrad, p.dy, c.grad, c.grad_layout);
  }
  if (c.lse || c.kind == Kind::logsumexp) arena.per_row(kDlse, p.dlse, acc);
  if (c.in_place) arena.alias(kOut, p.dx, c.kind == Kind::logsumexp ? kIn : kGrad);
  else arena.tensor(kOut, p.dx, c.out, c.out_layout);
  place_score_args(c, p, arena, acc);
  arena.finish(p);
  fill_score_args(c, p, arena);
  fill_saved(c, p, arena);
  arena.fill(p.shape, p.dy, [&] { return arena.normal(); });
  arena.fill(p.shape, p.dlse, [&] { return arena.normal(); }, true);
}

std::vector<uint8_t> bytes_of(const Arena& arena, std::initializer_list<Slot> slots) {
  std::vector<uint8_t> all;
  for (Slot slot : slots) {
    const GuardedBuffer& b = arena.buffer(slot);
    all.insert(all.end(), b.data(), b.data() + b.bytes());
  }
  return all;
}

const char* text(DType t) {
  constexpr const char* kNames[] = {"f32", "f64", "f16", "bf16", "bool", "i32", "i64"};
  return kNames[int(t)];
}

}  // namespace

std::string Case::describe() const {
  constexpr const char* kKinds[] = {"softmax", "log_softmax", "logsumexp"};
  std::ostringstream s;
  s << kKinds[int(kind)] << " [";
  for (int64_t n : size) s << n << ' ';
  s << "] over [";
  for (int d : reduced) s << d << ' ';
  s << "] " << text(in) << ' ' << text(grad) << ' ' << text(out) << " layouts " << int(in_layout)
    << int(grad_layout) << int(out_layout) << " mask " << int(mask) << " bias " << int(bias)
    << (bias_f32 ? "f32" : "") << (lengths ? " lengths" : "") << (causal ? " causal" : "")
    << (row_scale ? " row_scale" : "") << (lse ? " lse" : "") << (zero_masked_rows ? " zero" : "")
    << (in_place ? " in-place" : "") << (extremes ? " extremes" : "") << " scale " << scale
    << " algorithm " << int(algorithm) << " placement " << placement << " seed " << seed;
  return s.str();
}

void check_forward(const Case& c) {
  const DType acc = accumulator(c.in, c.kind == Kind::logsumexp ? c.in : c.out);
  Arena arena(c);
  ForwardParams p;
  build_forward(c, p, arena, acc);
  const Expected e = forward_reference(p);
  softmax::cpu::forward(p);
  if (p.out) {
    CHECK(check_values(c, "out", p.shape, p.out, p.shape.n, e.value, e.magnitude, acc));
    if (!c.in_place) CHECK(arena.untouched(kOut, p.shape));
  }
  if (p.lse) {
    CHECK(check_values(c, "lse", p.shape, p.lse, 1, e.lse, e.lse_magnitude, acc));
    CHECK(arena.buffer(kLse).margins_intact());
  }
}

void check_backward(const Case& c) {
  const DType acc = accumulator(c.in, c.out);
  Arena arena(c);
  BackwardParams p;
  build_backward(c, p, arena, acc);
  const Expected e = backward_reference(p);
  softmax::cpu::backward(p);
  CHECK(check_values(c, "dx", p.shape, p.dx, p.shape.n, e.value, e.magnitude, acc));
  if (!c.in_place) CHECK(arena.untouched(kOut, p.shape));
}

std::vector<uint8_t> forward_bytes(const Case& c) {
  Arena arena(c);
  ForwardParams p;
  build_forward(c, p, arena, accumulator(c.in, c.kind == Kind::logsumexp ? c.in : c.out));
  softmax::cpu::forward(p);
  return bytes_of(arena, {c.in_place ? kIn : kOut, kLse});
}

std::vector<uint8_t> backward_bytes(const Case& c) {
  Arena arena(c);
  BackwardParams p;
  build_backward(c, p, arena, accumulator(c.in, c.out));
  softmax::cpu::backward(p);
  return bytes_of(arena, {c.in_place ? kGrad : kOut});
}

}  // namespace fastops::test
