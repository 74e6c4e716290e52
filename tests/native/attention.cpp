// Block-sparse attention in guarded memory: values against plain double loops, and lists that hold
// anything.
#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "harness.h"
#include "reference.h"

namespace fastops::test {
namespace {

constexpr uint8_t kPoison = 0xff;  // NaN in every dtype
constexpr double kInfinity = HUGE_VAL;

struct Size {
  int64_t batch, heads, kv_heads, seq_q, seq_kv, head_dim, value_dim, block_q, block_kv;
};

// [batch, heads, rows, channels] with `gap` elements between rows, ending at a guard page or
// starting behind one.
class Array {
 public:
  Array(DType dtype, int64_t batch, int64_t heads, int64_t rows, int64_t channels, int64_t gap)
      : rows_(batch * heads * rows), channels_(channels), step_(channels + gap) {
    using Place = GuardedBuffer::Place;
    buffer_ = GuardedBuffer(size_t((rows_ - 1) * step_ + channels) * size_of(dtype), kPoison,
                            gap ? Place::at_start : Place::at_end, size_t(gap) * size_of(dtype));
    operand_.data = buffer_.data();
    operand_.dtype = dtype;
    heads_ = {buffer_.data(), {heads * rows * step_, rows * step_, step_}};
  }

  const attention::Heads& heads() const { return heads_; }
  float* floats() const { return reinterpret_cast<float*>(buffer_.data()); }

  void fill(std::mt19937& rng) {
    std::normal_distribution<double> normal;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < channels_; ++c) store(operand_, r * step_ + c, normal(rng));
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < channels_; ++c) all.push_back(load(operand_, r * step_ + c));
    return all;
  }
  // What lies around the rows is as it was.
  bool untouched() const {
    bool intact = buffer_.margins_intact();
    const size_t size = size_of(operand_.dtype);
    for (int64_t r = 0; r + 1 < rows_; ++r)
      for (size_t i = size_t(r * step_ + channels_) * size; i < size_t((r + 1) * step_) * size; ++i)
        intact &= buffer_.data()[i] == kPoison;
    return intact;
  }

 private:
  int64_t rows_, channels_, step_;
  GuardedBuffer buffer_;
  softmax::Operand operand_;
  attention::Heads heads_;
};

// A mask for each head: which blocks are kept, and which elements of those that are kept in part.
class Mask {
 public:
  Mask(const Size& s, std::mt19937& rng)
      : s_(s),
        rows_((s.seq_q + s.block_q - 1) / s.block_q),
        columns_((s.seq_kv + s.block_kv - 1) / s.block_kv),
        words_(s.block_q * s.block_kv / 32) {
    bits_.resize(size_t(kPatterns * words_));
    for (uint32_t& word : bits_) word = uint32_t(rng());
    kinds_.resize(size_t(s.heads * rows_ * columns_));
    for (int& kind : kinds_) kind = int(rng() % (kPatterns + 4)) - 2 - int(rng() % 2);
    by_query_ =
        lists([&](int64_t h, int64_t i, int64_t j) { return kind(h, i, j); }, rows_, columns_);
    by_key_ =
        lists([&](int64_t h, int64_t j, int64_t i) { return kind(h, i, j); }, columns_, rows_);
  }

  bool keeps(int64_t head, int64_t query, int64_t key) const {
    const int k = kind(head, query / s_.block_q, key / s_.block_kv);
    if (k < 0) return false;
    if (k >= kPatterns) return true;
    const int64_t bit = query % s_.block_q * s_.block_kv + key % s_.block_kv;
    return bits_[size_t(k * words_ + bit / 32)] >> (bit % 32) & 1;
  }

  attention::BlockMask params() const {
    attention::BlockMask m;
    m.block_q = s_.block_q;
    m.block_kv = s_.block_kv;
    m.by_query = by_query_.params(s_.heads, rows_, columns_);
    m.by_key = by_key_.params(s_.heads, columns_, rows_);
    m.bits = bits_.data();
    m.num_patterns = kPatterns;
    return m;
  }

  // Overwrites some of the numbers of every list.
  void spoil(std::mt19937& rng) {
    const int64_t wild[] = {-(int64_t{1} << 40), -1, 0, 1, 3, 1000, int64_t{1} << 40};
    for (Lists* l : {&by_query_, &by_key_}) {
      for (auto* numbers : {&l->offsets, &l->partial_offsets})
        for (int64_t& n : *numbers)
          if (rng() % 3 == 0) n = wild[rng() % 7];
      for (auto* numbers : {&l->indices, &l->patterns})
        for (int32_t& n : *numbers)
          if (rng() % 3 == 0) n = int32_t(wild[rng() % 7] % 100000);
    }
  }

 private:
  static constexpr int kPatterns = 3;

  struct Lists {
    std::vector<int64_t> offsets{0}, partial_offsets{0};
    std::vector<int32_t> indices, patterns;

    attention::BlockLists params(int64_t heads, int64_t rows, int64_t columns) const {
      return {1,
              heads,
              rows,
              columns,
              offsets.data(),
              indices.data(),
              partial_offsets.data(),
              patterns.data(),
              int64_t(indices.size()),
              int64_t(patterns.size())};
    }
  };

  // Below 0: left out; below kPatterns: that pattern; above: whole.
  int kind(int64_t h, int64_t i, int64_t j) const {
    return kinds_[size_t((h * rows_ + i) * columns_ + j)];
  }

  template <typename Kind>
  Lists lists(const Kind& kind_of, int64_t rows, int64_t columns) const {
    Lists l;
    for (int64_t h = 0; h < s_.heads; ++h)
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j)
          if (const int k = kind_of(h, i, j); k >= 0 && k < kPatterns) {
            l.indices.push_back(int32_t(j));
            l.patterns.push_back(k);
          }
        for (int64_t j = 0; j < columns; ++j)
          if (kind_of(h, i, j) >= kPatterns) l.indices.push_back(int32_t(j));
        l.offsets.push_back(int64_t(l.indices.size()));
        l.partial_offsets.push_back(int64_t(l.patterns.size()));
      }
    return l;
  }

  const Size s_;
  int64_t rows_, columns_, words_;
  std::vector<uint32_t> bits_;
  std::vector<int> kinds_;
  Lists by_query_, by_key_;
};

// A call, forward and backward.
class Call {
 public:
  Call(const Size& s, DType dtype, int64_t gap, uint32_t seed)
      : s_(s),
        rng_(seed),
        mask(s, rng_),
        q(dtype, s.batch, s.heads, s.seq_q, s.head_dim, gap),
        k(dtype, s.batch, s.kv_heads, s.seq_kv, s.head_dim, gap),
        v(dtype, s.batch, s.kv_heads, s.seq_kv, s.value_dim, gap),
        out(dtype, s.batch, s.heads, s.seq_q, s.value_dim, gap),
        grad_out(dtype, s.batch, s.heads, s.seq_q, s.value_dim, gap),
        grad_q(dtype, s.batch, s.heads, s.seq_q, s.head_dim, gap),
        grad_k(dtype, s.batch, s.kv_heads, s.seq_kv, s.head_dim, gap),
        grad_v(dtype, s.batch, s.kv_heads, s.seq_kv, s.value_dim, gap),
        sinks(DType::f32, 1, 1, 1, s.heads, 0),
        bias(DType::f32, s.batch, s.heads, 1, s.seq_kv, 0),
        lse(DType::f32, s.batch, s.heads, 1, s.seq_q, 0),
        delta(DType::f32, s.batch, s.heads, 1, s.seq_q, 0),
        grad_sinks(DType::f32, 1, 1, 1, s.heads, 0),
        grad_bias(DType::f32, s.batch, s.heads, 1, s.seq_kv, 0) {
    for (Array* a : {&q, &k, &v, &grad_out, &sinks, &bias}) a->fill(rng_);
    p_.dtype = dtype;
    p_.batch = s.batch;
    p_.heads = s.heads;
    p_.kv_heads = s.kv_heads;
    p_.seq_q = s.seq_q;
    p_.seq_kv = s.seq_kv;
    p_.head_dim = s.head_dim;
    p_.value_dim = s.value_dim;
    p_.scale = float(scale());
    p_.q = q.heads();
    p_.k = k.heads();
    p_.v = v.heads();
    p_.sinks = sinks.floats();
    p_.key_bias = bias.floats();
    p_.key_bias_stride[0] = s.heads * s.seq_kv;
    p_.key_bias_stride[1] = s.seq_kv;
    p_.key_bias_stride[2] = 1;
  }

  void run() {
    p_.mask = mask.params();
    attention::ForwardParams f;
    static_cast<attention::Problem&>(f) = p_;
    f.out = out.heads();
    f.lse = lse.floats();
    attention::cpu::forward(f);
    attention::BackwardParams b;
    static_cast<attention::Problem&>(b) = p_;
    b.out = out.heads();
    b.grad_out = grad_out.heads();
    b.lse = lse.floats();
    b.grad_q = grad_q.heads();
    b.grad_k = grad_k.heads();
    b.grad_v = grad_v.heads();
    b.grad_sinks = grad_sinks.floats();
    b.grad_key_bias = grad_bias.floats();
    b.delta = delta.floats();
    attention::cpu::backward(b);
    for (const Array* a : {&q, &k, &v, &out, &grad_out, &grad_q, &grad_k, &grad_v, &sinks, &bias,
                           &lse, &delta, &grad_sinks, &grad_bias})
      CHECK(a->untouched());
  }

  void check() const;

 private:
  double scale() const { return 1 / std::sqrt(double(s_.head_dim)); }

  const Size s_;
  std::mt19937 rng_;
  attention::Problem p_;

 public:
  Mask mask;
  Array q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  Array sinks, bias, lse, delta, grad_sinks, grad_bias;
};

double dot(const std::vector<double>& a, int64_t at_a, const std::vector<double>& b, int64_t at_b,
           int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += a[size_t(at_a + c)] * b[size_t(at_b + c)];
  return sum;
}

void add(std::vector<double>& to, int64_t at, double factor, const std::vector<double>& from,
         int64_t from_at, int64_t n) {
  for (int64_t c = 0; c < n; ++c) to[size_t(at + c)] += factor * from[size_t(from_at + c)];
}

// Within `tolerance` of the largest element.
void check_close(const Array& got, const std::vector<double>& wanted, double tolerance) {
  const std::vector<double> values = got.values();
  double most = 1, worst = 0;
  for (double w : wanted)
    if (std::isfinite(w)) most = std::max(most, std::fabs(w));
  bool same = true;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!std::isfinite(wanted[i])) same &= values[i] == wanted[i];
    else
      worst =
          std::isfinite(values[i]) ? std::max(worst, std::fabs(values[i] - wanted[i])) : kInfinity;
    if (worst == kInfinity) break;
  }
  CHECK(same);
  CHECK(worst <= tolerance * most);
}

void Call::check() const {
  const int64_t d = s_.head_dim, dv = s_.value_dim, group = s_.heads / s_.kv_heads;
  const auto qs = q.values(), ks = k.values(), vs = v.values(), gs = grad_out.values();
  const auto sink = sinks.values(), biases = bias.values();
  std::vector<double> outs(gs.size()), lses, dq(qs.size()), dk(ks.size()), dvs(vs.size());
  std::vector<double> dsinks(sink.size()), dbias(biases.size());
  for (int64_t b = 0; b < s_.batch; ++b)
    for (int64_t h = 0; h < s_.heads; ++h)
      for (int64_t i = 0; i < s_.seq_q; ++i) {
        const int64_t head = b * s_.heads + h, row = head * s_.seq_q + i;
        const int64_t keys = (b * s_.kv_heads + h / group) * s_.seq_kv;
        std::vector<double> p(size_t(s_.seq_kv), -kInfinity);
        double most = sink[size_t(h)], total = 0;
        for (int64_t j = 0; j < s_.seq_kv; ++j) {
          if (!mask.keeps(h, i, j)) continue;
          p[size_t(j)] = scale() * dot(qs, row * d, ks, (keys + j) * d, d) +
                         biases[size_t(head * s_.seq_kv + j)];
          most = std::max(most, p[size_t(j)]);
        }
        for (double score : p) total += std::exp(score - most);
        const double known = most + std::log(total + std::exp(sink[size_t(h)] - most));
        lses.push_back(known);
        for (int64_t j = 0; j < s_.seq_kv; ++j) {
          p[size_t(j)] = std::exp(p[size_t(j)] - known);
          add(outs, row * dv, p[size_t(j)], vs, (keys + j) * dv, dv);
        }
        const double rest = dot(gs, row * dv, outs, row * dv, dv);
        dsinks[size_t(h)] -= std::exp(sink[size_t(h)] - known) * rest;
        for (int64_t j = 0; j < s_.seq_kv; ++j) {
          const double ds = p[size_t(j)] * (dot(gs, row * dv, vs, (keys + j) * dv, dv) - rest);
          add(dq, row * d, scale() * ds, ks, (keys + j) * d, d);
          add(dk, (keys + j) * d, scale() * ds, qs, row * d, d);
          add(dvs, (keys + j) * dv, p[size_t(j)], gs, row * dv, dv);
          dbias[size_t(head * s_.seq_kv + j)] += ds;
        }
      }
  const double tolerance = p_.dtype == DType::f32 ? 2e-5 : p_.dtype == DType::f16 ? 4e-3 : 3e-2;
  check_close(out, outs, tolerance);
  check_close(lse, lses, p_.dtype == DType::bf16 ? 1e-2 : 2e-5);
  check_close(grad_q, dq, tolerance);
  check_close(grad_k, dk, tolerance);
  check_close(grad_v, dvs, tolerance);
  check_close(grad_sinks, dsinks, tolerance);
  check_close(grad_bias, dbias, tolerance);
}

constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr int64_t kChannels[][2] = {{1, 7}, {33, 20}, {64, 64}, {130, 256}};
constexpr int64_t kLengths[][2] = {{1, 17}, {37, 50}, {70, 33}};
constexpr int64_t kBlocks[][2] = {{16, 16}, {32, 64}, {128, 16}, {64, 32}};

// Every dtype, some sizes and blocks each; odd gaps leave rows off every alignment.
template <typename Each>
void for_calls(const Each& each) {
  uint32_t seed = 1;
  for (DType dtype : kTypes)
    for (const auto& channels : kChannels)
      for (const auto& lengths : kLengths) {
        const auto& blocks = kBlocks[seed % 4];
        const Size size = {1 + seed % 2, 4,           seed % 3 ? 2 : 1, lengths[0], lengths[1],
                           channels[0],  channels[1], blocks[0],        blocks[1]};
        set_num_threads(1 + int(seed % 3));
        Call call(size, dtype, seed % 5, seed);
        each(call, seed);
        ++seed;
      }
}

void values() {
  for_calls([](Call& call, uint32_t) {
    call.run();
    call.check();
  });
}

void edited_lists() {
  for_calls([](Call& call, uint32_t seed) {
    std::mt19937 rng(seed);
    call.mask.spoil(rng);
    call.run();
  });
}

FASTOPS_TEST(attention_values) { values(); }
FASTOPS_TEST(attention_edited_lists) { edited_lists(); }

// Where a CPU has matrix registers, what it does without them.
FASTOPS_TEST(attention_values_without_amx) {
  setenv("FASTOPS_CPU_AMX", "0", 1);
  values();
}
FASTOPS_TEST(attention_edited_lists_without_amx) {
  setenv("FASTOPS_CPU_AMX", "0", 1);
  edited_lists();
}

}  // namespace
}  // namespace fastops::test
