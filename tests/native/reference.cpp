#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace fastops::test {
namespace {

using softmax::BackwardParams;
using softmax::ForwardParams;
using softmax::Kind;
using softmax::Operand;
using softmax::Shape;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

int64_t walk(int dims, const int64_t* size, const int64_t* stride, int64_t index) {
  int64_t offset = 0;
  for (int d = dims - 1; d >= 0; --d) {
    offset += index % size[d] * stride[d];
    index /= size[d];
  }
  return offset;
}

// Reads operands at one (row, element); absent ones give the neutral value.
struct Reader {
  const Shape& shape;
  int64_t row;

  double per_row(const Operand& o, double absent) const {
    return o ? load(o, row_offset(shape, o.row_stride, row)) : absent;
  }
  double at(const Operand& o, int64_t j, double absent) const {
    if (!o) return absent;
    return load(o,
                row_offset(shape, o.row_stride, row) + element_offset(shape, o.reduce_stride, j));
  }
};

template <typename Params>
std::vector<char> participants(const Params& p, const Reader& read) {
  int64_t length = p.shape.n;
  length = std::clamp<int64_t>(int64_t(read.per_row(p.lengths, double(length))), 0, length);
  if (p.causal) {
    const int64_t query = row_offset(p.shape, p.query_stride, read.row);
    length = std::clamp<int64_t>(query + p.causal_offset + 1, 0, length);
  }
  std::vector<char> valid(p.shape.n);
  for (int64_t j = 0; j < length; ++j) valid[j] = read.at(p.mask, j, 1) != 0;
  return valid;
}

}  // namespace

int64_t row_offset(const Shape& shape, const int64_t* stride, int64_t row) {
  return walk(shape.row_dims, shape.row_size, stride, row);
}
int64_t element_offset(const Shape& shape, const int64_t* stride, int64_t element) {
  return walk(shape.reduce_dims, shape.reduce_size, stride, element);
}

float half_to_float(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  float f = exponent == 0    ? std::ldexp(float(mantissa), -24)
            : exponent == 31 ? (mantissa ? std::numeric_limits<float>::quiet_NaN() : float(kInf))
                             : std::ldexp(float(1024 + mantissa), exponent - 25);
  return bits & 0x8000 ? -f : f;
}

uint16_t float_to_half(float value) {
  if (std::isnan(value)) return 0x7e00;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float a = std::fabs(value);
  if (a >= 65520.f) return sign | 0x7c00;
  if (a == 0) return sign;
  const int exponent = std::max(std::ilogb(a), -14);
  const float mantissa = std::nearbyint(std::ldexp(a, 10 - exponent));
  return uint16_t(sign | uint16_t((exponent + 14) * 1024 + int(mantissa)));
}

float bfloat_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

uint16_t float_to_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return std::isnan(value) ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

double load(const Operand& operand, int64_t index) {
  const void* data = operand.data;
  switch (operand.dtype) {
    case DType::f32: return static_cast<const float*>(data)[index];
    case DType::f64: return static_cast<const double*>(data)[index];
    case DType::f16: return half_to_float(static_cast<const uint16_t*>(data)[index]);
    case DType::bf16: return bfloat_to_float(static_cast<const uint16_t*>(data)[index]);
    case DType::u8:
    case DType::boolean: return static_cast<const uint8_t*>(data)[index] != 0;
    case DType::i32: return static_cast<const int32_t*>(data)[index];
    case DType::i64: return double(static_cast<const int64_t*>(data)[index]);
  }
  return kNan;
}

void store(const Operand& operand, int64_t index, double value) {
  void* data = operand.data;
  switch (operand.dtype) {
    case DType::f32: static_cast<float*>(data)[index] = float(value); break;
    case DType::f64: static_cast<double*>(data)[index] = value; break;
    case DType::f16: static_cast<uint16_t*>(data)[index] = float_to_half(float(value)); break;
    case DType::bf16: static_cast<uint16_t*>(data)[index] = float_to_bfloat(float(value)); break;
    case DType::u8:
    case DType::boolean: static_cast<uint8_t*>(data)[index] = value != 0; break;
    case DType::i32: static_cast<int32_t*>(data)[index] = int32_t(value); break;
    case DType::i64: static_cast<int64_t*>(data)[index] = int64_t(value); break;
  }
}

Expected forward_reference(const ForwardParams& p) {
  const int64_t n = p.shape.n;
  Expected e;
  std::vector<double> s(n);
  for (int64_t row = 0; row < p.shape.rows; ++row) {
    const Reader read{p.shape, row};
    const std::vector<char> valid = participants(p, read);
    const double scale = p.scale * read.per_row(p.row_scale, 1);
    double top = -kInf, sum = 0, largest = 0;
    bool nan = false;
    for (int64_t j = 0; j < n; ++j) {
      s[j] = valid[j] ? read.at(p.x, j, 0) * scale + read.at(p.bias, j, 0) : -kInf;
      nan |= std::isnan(s[j]);
      if (s[j] > top) top = s[j];
      if (std::isfinite(s[j])) largest = std::max(largest, std::fabs(s[j]));
    }
    const bool empty = top == -kInf && !nan;
    for (int64_t j = 0; j < n && !empty; ++j) sum += std::exp(s[j] - top);
    double lse = empty ? -kInf : nan ? kNan : top + std::log(sum);
    if (top == kInf && !nan) lse = kInf;
    e.lse.push_back(lse);
    e.lse_magnitude.push_back(1 + largest);
    if (!p.out) continue;
    for (int64_t j = 0; j < n; ++j) {
      const bool soft = p.kind == Kind::softmax;
      double v;
      if (empty) v = !p.zero_masked_rows ? kNan : soft ? 0.0 : -kInf;
      else if (std::isnan(lse) || lse == kInf) v = kNan;
      else if (!valid[j]) v = soft ? 0.0 : -kInf;
      else v = soft ? std::exp(s[j] - top) / sum : (s[j] - top) - std::log(sum);
      e.value.push_back(v);
      e.magnitude.push_back(soft ? std::fabs(v) * (4 + largest) : 4 + largest + std::fabs(v));
    }
  }
  return e;
}

Expected backward_reference(const BackwardParams& p) {
  const int64_t n = p.shape.n;
  Expected e;
  for (int64_t row = 0; row < p.shape.rows; ++row) {
    const Reader read{p.shape, row};
    const std::vector<char> valid = participants(p, read);
    const double scale = p.scale * read.per_row(p.row_scale, 1);
    const double dlse = read.per_row(p.dlse, 0), lse = read.per_row(p.lse, 0);
    double sum = 0, size = std::fabs(dlse);
    bool empty = true;
    for (int64_t j = 0; j < n && p.kind != Kind::logsumexp; ++j) {
      if (!valid[j]) continue;
      const double y = read.at(p.y, j, 0), dy = read.at(p.dy, j, 0);
      empty &= y == -kInf;
      const double term = p.kind == Kind::softmax ? y * dy : dy;
      sum += term;
      size += std::fabs(term);
    }
    for (int64_t j = 0; j < n; ++j) {
      double ds = 0, magnitude = 0;
      if (valid[j]) {
        const double y = read.at(p.y, j, 0), dy = read.at(p.dy, j, 0);
        if (p.kind == Kind::softmax) {
          ds = y * (dy - sum + dlse);
          magnitude = std::fabs(y) * (std::fabs(dy) + size);
        } else if (p.kind == Kind::log_softmax) {
          ds = dy - std::exp(y) * (sum - dlse);
          magnitude = std::fabs(dy) + std::exp(y) * size * 4;
          if (empty && p.zero_masked_rows) ds = 0;
        } else {
          const double bias = read.at(p.bias, j, 0);
          ds = dlse * std::exp(y * scale + bias - lse);
          magnitude = std::fabs(ds) * (4 + std::fabs(y * scale) + std::fabs(bias) + std::fabs(lse));
        }
      }
      e.value.push_back(ds * scale);
      if (!std::isfinite(magnitude)) magnitude = 0;  // an infinite score: 0 or NaN, exactly
      e.magnitude.push_back(magnitude * std::fabs(scale));
    }
  }
  return e;
}

}  // namespace fastops::test
