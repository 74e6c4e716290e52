// Vectors against scalars: conversions of every half value, exp over its whole range, partial
// loads and stores, masks, reductions, and the documented treatment of NaN.
#include "toolbox.h"

#include "cpu/exp_score.h"
#include "cpu/simd.h"
#include "harness.h"
#include "reference.h"

namespace fastops::test::FASTOPS_ISA {
namespace {

using namespace fastops::cpu;

const double kInf = __builtin_inf();

bool same(double a, double b) { return a == b || (__builtin_isnan(a) && __builtin_isnan(b)); }

template <typename T>
double reference(T h) {
  if constexpr (sizeof(T) != 2) return h;
  else if constexpr (__is_same(T, f16)) return half_to_float(h.bits);
  else return bfloat_to_float(h.bits);
}

// Every bit pattern widens exactly, and rounds back to itself.
template <typename V, typename T>
void halves_round_trip() {
  for (uint32_t first = 0; first < 65536; first += V::size) {
    T in[V::size], out[V::size];
    typename V::Scalar wide[V::size];
    for (int i = 0; i < V::size; ++i) in[i] = T{uint16_t(first + uint32_t(i))};
    V::load(in).store(wide);
    V::load(in).store(out);
    for (int i = 0; i < V::size; ++i) {
      const double want = reference(in[i]);
      // The AVX-512 bf16 instruction flushes denormal results (documented in simd.h).
      const bool denormal = __is_same(T, bf16) && __builtin_fabs(want) < 0x1p-126;
      CHECK(same(double(wide[i]), want));
      CHECK(same(reference(out[i]), want) || (denormal && reference(out[i]) == 0));
      CHECK(same(double(to_float(in[i])), want));
    }
  }
}

// A walk through the floats: rounding to nearest even, vector and scalar.
template <typename T>
void floats_round() {
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4093 * VecF32::size) {
    float in[VecF32::size];
    T out[VecF32::size];
    for (int i = 0; i < VecF32::size; ++i)
      in[i] = bits_to_float(uint32_t(bits + 4093 * uint64_t(i)));
    VecF32::load(in).store(out);
    for (int i = 0; i < VecF32::size; ++i) {
      uint16_t want;
      T scalar;
      if constexpr (__is_same(T, f16)) {
        want = float_to_half(in[i]);
        scalar = to_f16(in[i]);
      } else {
        want = float_to_bfloat(in[i]);
        scalar = to_bf16(in[i]);
      }
      const double value = reference(T{want});
      const bool flushed = __is_same(T, bf16) && __builtin_fabs(in[i]) < 0x1p-126;
      CHECK(same(reference(out[i]), value) || (flushed && reference(out[i]) == 0));
      CHECK(same(reference(scalar), value));
    }
  }
}

// The largest relative error of f over [from, to], where `exact` is a normal number of V's type.
template <typename V, typename F, typename G>
double largest_error(double from, double to, int steps, const F& f, const G& exact) {
  double worst = 0;
  for (int k = 0; k < steps; k += V::size) {
    typename V::Scalar x[V::size], y[V::size];
    for (int i = 0; i < V::size; ++i)
      x[i] = typename V::Scalar(from + (to - from) * (k + i) / steps);
    f(V::load(x)).store(y);
    for (int i = 0; i < V::size; ++i) {
      const double want = exact(double(x[i]));
      const double error = __builtin_fabs(double(y[i]) - want) / want;
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

void exponentials() {
  const auto exp_f32 = [](VecF32 x) { return exp(x); };
  const auto exp2_f32 = [](VecF32 x) { return exp2(x); };
  const auto exp_f64 = [](VecF64 x) { return exp(x); };
  const auto e = [](double x) { return __builtin_exp(x); };
  const auto two = [](double x) { return __builtin_exp2(x); };
  // Inside the ends: scale2 keeps powers to normal numbers.
  CHECK(largest_error<VecF32>(-87, 88, 1 << 18, exp_f32, e) < 2.4e-7);
  CHECK(largest_error<VecF32>(-1, 0, 1 << 16, exp_f32, e) < 2.4e-7);
  CHECK(largest_error<VecF32>(-125.9, 127.4, 1 << 18, exp2_f32, two) < 2.4e-7);
  CHECK(largest_error<VecF64>(-708, 709, 1 << 17, exp_f64, e) < 4.5e-16);
  CHECK(largest_error<VecF64>(-1, 0, 1 << 16, exp_f64, e) < 4.5e-16);

  const double below[] = {-90, -104, -200, -1e6, -1e30, -kInf};
  for (double x : below) {
    // Denormal results may be flushed, and are never larger than they should be.
    CHECK(hmax(exp(VecF32(float(x)))) >= 0 && hmax(exp(VecF32(float(x)))) <= 1.5e-38f);
    CHECK(hmax(exp2(VecF32(float(x)))) >= 0);
    CHECK(hmax(exp(VecF64(8.5 * x))) >= 0 && hmax(exp(VecF64(8.5 * x))) <= 2.3e-308);
  }
  CHECK(hmax(exp(VecF32(float(-kInf)))) == 0 && hmax(exp2(VecF32(float(-kInf)))) == 0);
  CHECK(hmax(exp(VecF64(-kInf))) == 0);
  CHECK(hsum(exp(VecF32(0.f))) == VecF32::size && hsum(exp(VecF64(0.0))) == VecF64::size);
  CHECK(any(is_nan(exp(VecF32(__builtin_nanf(""))))) &&
        any(is_nan(exp(VecF64(__builtin_nan(""))))));
  CHECK(hmax(exp(VecF32(200.f))) == float(kInf) && hmax(exp(VecF64(1000.0))) == kInf);
}

// Before the maximum is known: exact up to the base, which is one for all.
void exponentials_of_scores() {
  const auto score = [](VecF32 x) { return exp_score(x); };
  const auto term = [](VecF32 x) { return exp_term(x); };
  const double base = VecF32::exact_fma ? double(kLog2eF) : kLog2e;
  const auto exact = [base](double x) { return __builtin_exp2(x * base); };
  CHECK(largest_error<VecF32>(-86, 87, 1 << 18, score, exact) < 2.4e-7);
  CHECK(largest_error<VecF32>(-86, 87, 1 << 18, term, exact) < 2.4e-7);
  CHECK(largest_error<VecF32>(-1, 0, 1 << 16, term, exact) < 2.4e-7);
  CHECK(hsum(exp_score(VecF32(0.f))) == VecF32::size &&
        hsum(exp_term(VecF32(0.f))) == VecF32::size);
  for (double x : {-87.0, -200.0, -1e6, -1e30, -kInf}) {
    CHECK(hmax(exp_score(VecF32(float(x)))) >= 0 && hmax(exp_score(VecF32(float(x)))) <= 2e-38f);
    CHECK(hmax(exp_term(VecF32(float(x)))) >= 0 && hmax(exp_term(VecF32(float(x)))) <= 0x1p-124f);
  }
  for (double x : {__builtin_nan(""), kInf}) {
    CHECK(!any(exp_score(VecF32(float(x))) < VecF32(float(kInf))));
    CHECK(!any(exp_term(VecF32(float(x))) < VecF32(float(kInf))));
  }
}

// Partial loads give zeros beyond n, partial stores leave the rest alone, neither touches memory
// beyond (the guard page follows at once).
template <typename V, typename T>
void partial() {
  for (int n = 0; n <= V::size; ++n) {
    const uint8_t fill = sizeof(T) > sizeof(typename V::Scalar) ? 0 : 0x40;  // an exact value
    const GuardedBuffer in(size_t(n) * sizeof(T), fill, GuardedBuffer::Place::at_end);
    const GuardedBuffer out(size_t(n) * sizeof(T), 0xff, GuardedBuffer::Place::at_end);
    const GuardedBuffer mask(size_t(n), 1, GuardedBuffer::Place::at_end);
    const V v = V::load(reinterpret_cast<const T*>(in.data()), n);
    v.store(reinterpret_cast<T*>(out.data()), n);
    typename V::Scalar lane[V::size];
    v.store(lane);
    for (int i = n; i < V::size; ++i) CHECK(lane[i] == 0);
    bool equal = true;
    for (size_t i = 0; i < size_t(n) * sizeof(T); ++i) equal &= in.data()[i] == out.data()[i];
    CHECK(equal && out.margins_intact());
    const V one(typename V::Scalar(1)), zero(typename V::Scalar(0));
    CHECK(hsum(select(V::load_mask(mask.data(), n), one, zero)) == n);
    CHECK(hsum(select(V::first(n), one, zero)) == n);
  }
}

template <typename V>
void arithmetic() {
  using S = typename V::Scalar;
  const S nan = S(__builtin_nan("")), inf = S(kInf);
  S up[V::size], sum = 0, most = -2;
  for (int i = 0; i < V::size; ++i) {
    up[i] = S(i * i % 7) - 2;
    sum += up[i];
    if (up[i] > most) most = up[i];
  }
  const V v = V::load(up);
  CHECK(hsum(v) == sum && hmax(v) == most);
  CHECK(hmax(max(V(nan), V(S(3)))) == 3 && hmax(min(V(nan), V(S(3)))) == 3);
  CHECK(any(is_nan(max(V(S(3)), V(nan)))) && any(is_nan(min(V(S(3)), V(nan)))));
  CHECK(hmax(fma(V(S(2)), V(S(3)), V(S(4)))) == 10 && hmax(fnma(V(S(2)), V(S(3)), V(S(4)))) == -2);
  CHECK(hmax(round(V(S(2.5)))) == 2 && hmax(round(V(S(-3.5)))) == -4);
  CHECK(hmax(round(V(S(1e30)))) == S(1e30) && hmax(round(V(-inf))) == -inf);
  CHECK(hmax(scale2(V(S(3)), V(S(-4)))) == S(0.1875) &&
        hmax(scale2(V(S(1)), V(S(100)))) == S(0x1p100));
  CHECK(any(V(S(1)) < V(S(2))) && !any(V(S(2)) < V(S(2))) && any(V(inf) == V(inf)));
  CHECK(!any(both(V::first(1), V(S(1)) < V(S(0)))) && !any(V(nan) == V(nan)));
  alignas(64) S streamed[V::size];
  v.stream(streamed);
  store_fence();
  for (int i = 0; i < V::size; ++i) CHECK(streamed[i] == up[i]);
}

void transpositions() {
  VecF32 rows[VecF32::size];
  float got[VecF32::size];
  for (int r = 0; r < VecF32::size; ++r) {
    float row[VecF32::size];
    for (int i = 0; i < VecF32::size; ++i) row[i] = float(r * 100 + (i * 5 + r) % VecF32::size);
    rows[r] = VecF32::load(row);
  }
  transpose_reduce(rows, [](VecF32 a, VecF32 b) { return a + b; }).store(got);
  for (int r = 0; r < VecF32::size; ++r) CHECK(got[r] == hsum(rows[r]));
  transpose_reduce(rows, [](VecF32 a, VecF32 b) { return max(a, b); }).store(got);
  for (int r = 0; r < VecF32::size; ++r) CHECK(got[r] == hmax(rows[r]));
}

template <typename V>
void vector() {
  halves_round_trip<V, f16>();
  halves_round_trip<V, bf16>();
  partial<V, float>();
  partial<V, double>();
  partial<V, f16>();
  partial<V, bf16>();
  arithmetic<V>();
}

}  // namespace

void toolbox() {
  vector<VecF32>();
  vector<VecF64>();
  floats_round<f16>();
  floats_round<bf16>();
  exponentials();
  exponentials_of_scores();
  transpositions();
}

}  // namespace fastops::test::FASTOPS_ISA
