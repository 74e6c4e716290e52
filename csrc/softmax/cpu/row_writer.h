// Writing a row's results while another row is read: where they come from, and how they leave in
// whole cache lines whatever the row's length and alignment.
#pragma once

#include "cpu/pairs.h"
#include "softmax/cpu/rows.h"

namespace fastops::softmax::cpu {
namespace {

using fastops::cpu::kPair;
using fastops::cpu::Natural;
using fastops::cpu::VecF32;

// Whether every row starts on a cache line.
inline bool line_aligned(const Operand& o, const Shape& shape) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(o.data);
  for (int d = 0; d < shape.row_dims; ++d) bits |= uintptr_t(o.row_stride[d]) * size_of(o.dtype);
  return bits % 64 == 0;
}

// Results of the row before, unit by unit: exponentials times a factor.
struct ScaledExps {
  const float* from;
  float factor;

  void get(int64_t j, VecF32& a, VecF32& b) const {
    Natural<float>::load(from + j, a, b);
    a = a * VecF32(factor);
    b = b * VecF32(factor);
  }
  VecF32 half(int64_t j) const { return VecF32::load(from + j) * VecF32(factor); }
  // The order within a unit is the loader's, so a part of one is not its first n floats. Scratch
  // goes on behind the row.
  void get(int64_t j, int, VecF32& a, VecF32& b) const { get(j, a, b); }
};

// (x * scale - shift) - log_sum, from x itself.
template <typename Load>
struct LogProbs {
  const typename Load::Value* from;
  float scale, shift, log_sum;

  void get(int64_t j, VecF32& a, VecF32& b) const {
    Load::load(from + j, a, b);
    finish(a, b);
  }
  void get(int64_t j, int n, VecF32& a, VecF32& b) const {
    Load::load(from + j, n, a, b);
    finish(a, b);
  }

 private:
  void finish(VecF32& a, VecF32& b) const {
    a = fma(a, VecF32(scale), VecF32(-shift)) - VecF32(log_sum);
    b = fma(b, VecF32(scale), VecF32(-shift)) - VecF32(log_sum);
  }
};

// Elements of the last line that a row filled only in part. The next row, where it lies right
// behind, completes the line, so that rows of odd length leave in whole lines too: a line stored
// half past the caches and half through them costs several times a whole one.
template <typename Out>
class LineCarry {
 public:
  static constexpr int kLine = (kPair * sizeof(Out) < 64 ? kPair * sizeof(Out) : 64) / sizeof(Out);

  static int offset(const Out* p) {
    return int(reinterpret_cast<uintptr_t>(p) / sizeof(Out) % kLine);
  }
  // Whether p continues what is held; if not, that is written out.
  bool continues(const Out* p) {
    if (count_ > 0 && p != end_) flush();
    return count_ > 0;
  }
  // Where the next elements of the line go, and that n of them are there now; `end` is the address
  // they belong to, one past the last.
  Out* next() { return line_ + count_; }
  void add(int n, Out* end) {
    count_ += n;
    end_ = end;
    if (count_ < kLine) return;
    constexpr int step = VecF32::size;
    for (int i = 0; i < int(kLine * sizeof(Out) / sizeof(float)); i += step)
      VecF32::load(reinterpret_cast<const float*>(line_) + i)
          .stream(reinterpret_cast<float*>(end - kLine) + i);
    count_ = 0;
  }
  void flush() {
    for (int i = 0; i < count_; ++i) end_[i - count_] = line_[i];
    count_ = 0;
  }

 private:
  alignas(64) Out line_[64 / sizeof(Out)];
  Out* end_ = nullptr;
  int count_ = 0;
};

// Writes n results of `source` unit by unit. step() writes one whole unit and says whether there
// was one. Streaming stores take whole aligned lines: what comes before and behind goes to `carry`.
// kWhole: n is a multiple of a unit, step() is called once for each, and lines are aligned.
template <typename Store, bool kStream, typename Source, bool kWhole = false>
class Writer {
 public:
  using Out = typename Store::Value;
  using Carry = LineCarry<Out>;
  static constexpr bool in_step = kWhole || !kStream;  // unit j is read in step j
  static constexpr bool kHalves =
      kStream && __is_same(Store, Natural<float>) && requires(Source s) { s.half(0); };

  Writer(const Source& source, Out* out, int64_t n, Carry& carry)
      : source_(source), out_(out), n_(n), carry_(carry) {
    if constexpr (kStream && Store::any_offset && !kWhole) {
      const int held = Carry::offset(out), missing = Carry::kLine - held;
      const int count = int(missing < n ? missing : n);
      const bool continues = carry.continues(out);
      if (held == 0) return;
      put(continues ? carry.next() : out, count);
      if (continues) carry.add(count, out + count);
    }
  }
  bool step() {
    if (ended()) return false;
    VecF32 a, b;
    source_.get(at_, a, b);
    if constexpr (kStream) Store::stream(out_ + at_, a, b);
    else Store::store(out_ + at_, a, b);
    at_ += kPair;
    return true;
  }
  // The same unit in two parts, where it has two lines (see Lookahead).
  void first_half() {
    if constexpr (kHalves)
      if (!ended()) source_.half(at_).stream(out_ + at_);
  }
  void second_half() {
    if constexpr (!kHalves) {
      step();
    } else if (!ended()) {
      source_.half(at_ + VecF32::size).stream(out_ + at_ + VecF32::size);
      at_ += kPair;
    }
  }
  void finish() {
    if (kWhole) return;
    while (step()) {
    }
    if constexpr (kStream && Store::any_offset) {
      while (at_ < n_) {
        const int count = int(n_ - at_ < Carry::kLine ? n_ - at_ : Carry::kLine);
        put(carry_.next(), count);
        carry_.add(count, out_ + at_);
      }
    } else if (at_ < n_) {
      put(out_ + at_, int(n_ - at_));
    }
  }

 private:
  bool ended() const { return !kWhole && at_ + kPair > n_; }

  void put(Out* to, int n) {
    VecF32 a, b;
    source_.get(at_, n, a, b);
    Store::store(to, n, a, b);
    at_ += n;
  }
  const Source source_;
  Out* const out_;
  const int64_t n_;
  Carry& carry_;
  int64_t at_ = 0;
};

struct NoWriter {
  static constexpr bool kHalves = true, in_step = true;
  void first_half() {}
  void second_half() {}
  void finish() {}
};

}  // namespace
}  // namespace fastops::softmax::cpu
