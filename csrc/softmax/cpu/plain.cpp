// Plain loops over any strides, in fp64: what the paths without a vector kernel run on.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "softmax/cpu/kernels.h"

namespace fastops::softmax::cpu {
namespace {

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
  float f;
  if (e == 0) f = std::ldexp(float(m), -24);
  else if (e == 31) f = m ? NAN : INFINITY;
  else f = std::ldexp(float(1024 + m), int(e) - 25);
  return sign ? -f : f;
}
uint16_t float_to_half(float f) {
  if (std::isnan(f)) return 0x7e00;
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const float a = std::fabs(f);
  if (a >= 65520.f) return sign | 0x7c00;
  if (a == 0) return sign;
  int e = std::max(std::ilogb(a), -14);
  const float m = std::nearbyint(std::ldexp(a, 10 - e));
  return sign | uint16_t(int((e + 14) * 1024) + int(m));
}
double load(const Operand& o, int64_t i) {
  switch (o.dtype) {
    case DType::f32: return static_cast<float*>(o.data)[i];
    case DType::f64: return static_cast<double*>(o.data)[i];
    case DType::bf16: { uint32_t u = uint32_t(static_cast<uint16_t*>(o.data)[i]) << 16; float f; std::memcpy(&f, &u, 4); return f; }
    case DType::f16: return half_to_float(static_cast<uint16_t*>(o.data)[i]);
    case DType::boolean: return static_cast<uint8_t*>(o.data)[i];
    case DType::i32: return static_cast<int32_t*>(o.data)[i];
    case DType::i64: return double(static_cast<int64_t*>(o.data)[i]);
  }
  return 0;
}
void store(const Operand& o, int64_t i, double v) {
  switch (o.dtype) {
    case DType::f32: static_cast<float*>(o.data)[i] = float(v); break;
    case DType::f64: static_cast<double*>(o.data)[i] = v; break;
    case DType::bf16: {
      float f = float(v); uint32_t u; std::memcpy(&u, &f, 4);
      static_cast<uint16_t*>(o.data)[i] = std::isnan(f) ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
      break; }
    case DType::f16: static_cast<uint16_t*>(o.data)[i] = float_to_half(float(v)); break;
    default: break;
  }
}
struct At {
  const Shape& s; int64_t rc[kMaxRowDims] = {}, ec[kMaxReduceDims] = {};
  void row(int64_t r) { for (int d = s.row_dims - 1; d >= 0; --d) { rc[d] = r % s.row_size[d]; r /= s.row_size[d]; } }
  void element(int64_t j) { for (int d = s.reduce_dims - 1; d >= 0; --d) { ec[d] = j % s.reduce_size[d]; j /= s.reduce_size[d]; } }
  int64_t dot(const int64_t* st) const { int64_t o = 0; for (int d = 0; d < s.row_dims; ++d) o += rc[d] * st[d]; return o; }
  int64_t r(const Operand& o) const { return dot(o.row_stride); }
  int64_t e(const Operand& o) const { int64_t i = r(o); for (int d = 0; d < s.reduce_dims; ++d) i += ec[d] * o.reduce_stride[d]; return i; }
};
template <typename P> int64_t valid_length(const P& p, const At& at) {
  int64_t len = p.shape.n;
  if (p.lengths) len = std::clamp<int64_t>(int64_t(load(p.lengths, at.r(p.lengths))), 0, len);
  if (p.causal) len = std::clamp<int64_t>(at.dot(p.query_stride) + p.causal_offset + 1, 0, len);
  return len;
}
}  // namespace

void plain_forward(const ForwardParams& p) {
  fastops::cpu::parallel_for(0, p.shape.rows, 1, [&](int64_t b, int64_t e) {
    std::vector<double> s(p.shape.n); std::vector<char> ok(p.shape.n);
    const double inf = std::numeric_limits<double>::infinity();
    for (int64_t r = b; r < e; ++r) {
      At at{p.shape}; at.row(r);
      const int64_t len = valid_length(p, at);
      const double scale = p.scale * (p.row_scale ? load(p.row_scale, at.r(p.row_scale)) : 1.0);
      double m = -inf, sum = 0;
      for (int64_t j = 0; j < p.shape.n; ++j) {
        at.element(j);
        ok[j] = j < len && (!p.mask || load(p.mask, at.e(p.mask)));
        s[j] = ok[j] ? load(p.x, at.e(p.x)) * scale + (p.bias ? load(p.bias, at.e(p.bias)) : 0) : -inf;
        if (!(s[j] <= m)) m = s[j];
        if (std::isnan(s[j])) { m = s[j]; }
      }
      const bool empty = m == -inf;
      for (int64_t j = 0; j < p.shape.n; ++j) sum += empty ? 0 : std::exp(s[j] - m);
      for (int64_t j = 0; j < p.shape.n; ++j) if (std::isnan(s[j])) sum = m = NAN;
      const double lse = empty ? -inf : m + std::log(sum);
      if (p.lse) store(p.lse, at.r(p.lse), lse);
      if (!p.out) continue;
      for (int64_t j = 0; j < p.shape.n; ++j) {
        at.element(j);
        double v = p.kind == Kind::softmax ? std::exp(s[j] - m) / sum : (s[j] - m) - std::log(sum);
        if (empty) v = !p.zero_masked_rows ? NAN : p.kind == Kind::softmax ? 0.0 : -inf;
        else if (!ok[j] && !std::isnan(sum)) v = p.kind == Kind::softmax ? 0.0 : -inf;
        store(p.out, at.e(p.out), v);
      }
    }
  });
}

void plain_backward(const BackwardParams& p) {
  fastops::cpu::parallel_for(0, p.shape.rows, 1, [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r) {
      At at{p.shape}; at.row(r);
      const int64_t len = valid_length(p, at);
      const double scale = p.scale * (p.row_scale ? load(p.row_scale, at.r(p.row_scale)) : 1.0);
      const double dlse = p.dlse ? load(p.dlse, at.r(p.dlse)) : 0;
      const double lse = p.lse ? load(p.lse, at.r(p.lse)) : 0;
      double sum = 0; bool masked = true;
      for (int64_t j = 0; j < p.shape.n && p.kind != Kind::logsumexp; ++j) {
        at.element(j);
        const double y = load(p.y, at.e(p.y));
        if (!(y == -INFINITY)) masked = false;
        if (j >= len || (p.mask && !load(p.mask, at.e(p.mask)))) continue;
        sum += p.kind == Kind::softmax ? y * load(p.dy, at.e(p.dy)) : load(p.dy, at.e(p.dy));
      }
      for (int64_t j = 0; j < p.shape.n; ++j) {
        at.element(j);
        double ds = 0;
        if (j < len && (!p.mask || load(p.mask, at.e(p.mask)))) {
          const double y = load(p.y, at.e(p.y));
          if (p.kind == Kind::softmax) ds = y * (load(p.dy, at.e(p.dy)) - sum + dlse);
          else if (p.kind == Kind::log_softmax) ds = masked && p.zero_masked_rows ? 0 : load(p.dy, at.e(p.dy)) - std::exp(y) * (sum - dlse);
          else ds = dlse * std::exp(y * scale + (p.bias ? load(p.bias, at.e(p.bias)) : 0) - lse);
        }
        store(p.dx, at.e(p.dx), ds * scale);
      }
    }
  });
}

}  // namespace fastops::softmax::cpu
