// The gradients on a CPU, from P = exp(scores - lse) and dS = P * (dP - delta), both computed
// again with keys in the lanes for dk and dv. dq is added up there, too, in a few copies (plan.h),
// or by itself, with queries in the lanes. No two threads add to the same row, and every sum has a
// fixed order.
#include "attention/cpu/backward_tile.h"
#include "attention/cpu/kernels.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

// dq of rows of queries.
template <typename F, int R>
class Queries : Tile<F, R> {
  using Base = Tile<F, R>;
  using Base::W, Base::plan_, Base::p_, Base::first_, Base::second_, Base::p_rows_, Base::ds_rows_,
      Base::ds_pairs_, Base::head_sums_, Base::batch_;

 public:
  explicit Queries(const BackwardPlan& plan) : Base(plan) {}

  void run(Task task) {
    batch_ = task.head / p_.heads;
    head_ = task.head % p_.heads;
    const int64_t kv_head = head_ / (p_.heads / p_.kv_heads);
    k_ = plan_.k.of(batch_, kv_head);
    v_ = plan_.v.of(batch_, kv_head);
    k_sums_ = plan_.k_sums.of(batch_, kv_head);
    const ListRow list = list_row(p_.mask.by_query, p_.mask.num_patterns, batch_, head_, task.row);
    const int64_t begin = task.row * p_.mask.block_q,
                  end = at_most(begin + p_.mask.block_q, p_.seq_q);
    for (int64_t q = begin; q < end; q += W) tile(list, q, q - begin, at_most(end - q, W));
  }

 private:
  void tile(const ListRow& list, int64_t query, int64_t in_block, int64_t count) {
    into_lanes<F, R>(this->at(p_.q, head_, query), this->bytes(p_.q), count, p_.dtype, p_.head_dim,
                     first_);
    into_lanes<F, R>(this->at(p_.grad_out, head_, query), this->bytes(p_.grad_out), count, p_.dtype,
                     p_.value_dim, second_);
    const int64_t row = (batch_ * p_.heads + head_) * p_.seq_q + query;
    for (int r = 0; r < R; ++r) {
      const int lanes = int(clamp(count - r * L, 0, L));
      lse_[r] = or_empty(VecF32::load(p_.lse + row + r * L, lanes));
      delta_[r] = VecF32::load(p_.delta + row + r * L, lanes);
    }
    clear(head_sums_, p_.head_dim * W);
    Chunks<F, kChunk> chunks(list, p_.mask, p_.seq_kv, p_.mask.block_kv);
    while (chunks.next()) {
      for (int64_t i = 0; i < chunks.count; ++i) derive(chunks.segments[i], in_block, count);
      const float* ds = F::paired ? ds_pairs_ : ds_rows_;
      sums<F, R>(k_sums_, plan_.k_sums.step, chunks.segments, chunks.count, ds, p_.head_dim,
                 [&](int64_t n, const VecF32(&sum)[R]) { add<R>(head_sums_ + n * W, sum); });
    }
    VecF32 scale[R];
    for (int r = 0; r < R; ++r) scale[r] = VecF32(p_.scale);
    from_lanes<R>(head_sums_, p_.head_dim, scale, row_at(p_.grad_q, p_.dtype, batch_, head_, query),
                  this->bytes(p_.grad_q), count, p_.dtype);
  }

  // dS of a segment.
  void derive(const Segment& s, int64_t in_block, int64_t count) {
    float *p = p_rows_ + s.at * W, *ds = ds_rows_ + s.at * W;
    dots<F, R>(k_ + s.first * plan_.k.step, plan_.k.step, s.count, first_, F::depth(p_.head_dim), p,
               AsIs());
    alignas(64) float bias[kChunk];
    load_bias(p_, batch_, head_, s.first, s.count, 1.f, bias);
    const auto shift = [&](int64_t n, int r) { return VecF32(bias[n]) - lse_[r]; };
    if (s.bits) {
      uint32_t lanes[kChunk];
      lane_masks(s, p_.mask.block_kv, in_block, count, lanes);
      this->weights(p, s.count, nullptr, shift, [&](int64_t n) { return lanes[n]; });
    } else {
      this->weights(p, s.count, nullptr, shift);
    }
    dots<F, R>(v_ + s.first * plan_.v.step, plan_.v.step, s.count, second_, F::depth(p_.value_dim),
               ds, AsIs());
    this->derivatives(
        p, ds, s.count, ds_pairs_ + s.at / 2 * W, nullptr,
        [&](int64_t, int r) { return delta_[r]; }, [](int64_t, int, VecF32) {});
  }

  VecF32 lse_[R], delta_[R];
  int64_t head_ = 0;
  const char *k_ = nullptr, *v_ = nullptr, *k_sums_ = nullptr;
};

// dk, dv and the gradient of the bias of rows of keys.
template <typename F, int R>
class Keys : Tile<F, R> {
  using Base = Tile<F, R>;
  using Base::W, Base::plan_, Base::p_, Base::first_, Base::second_, Base::p_rows_, Base::ds_rows_,
      Base::p_pairs_, Base::ds_pairs_, Base::head_sums_, Base::value_sums_, Base::queries_,
      Base::batch_;

 public:
  explicit Keys(const BackwardPlan& plan) : Base(plan) {}

  void run(Task task) {
    batch_ = task.head / p_.kv_heads;
    const int64_t kv_head = task.head % p_.kv_heads, block = p_.mask.block_kv;
    const QueryParts& parts = plan_.parts;
    part_ = task.row / parts.rows_each;
    const int64_t group = p_.heads / p_.kv_heads, first = task.head * group;
    if (parts.data)
      for (int64_t head = first; head < first + group; ++head)
        clear(parts.of(head, part_, p_.seq_q), p_.seq_q * parts.channels);
    const int64_t rows = at_most(task.row + parts.rows_each, p_.mask.by_key.rows);
    for (int64_t row = task.row; row < rows; ++row) {
      const int64_t begin = row * block, end = at_most(begin + block, p_.seq_kv);
      for (int64_t key = begin; key < end; key += W)
        tile(kv_head, row, key, key - begin, at_most(end - key, W));
    }
  }

 private:
  void tile(int64_t kv_head, int64_t list, int64_t key, int64_t in_block, int64_t count) {
    into_lanes<F, R>(this->at(p_.k, kv_head, key), this->bytes(p_.k), count, p_.dtype, p_.head_dim,
                     first_);
    into_lanes<F, R>(this->at(p_.v, kv_head, key), this->bytes(p_.v), count, p_.dtype, p_.value_dim,
                     second_);
    if constexpr (!F::stored)
      if (plan_.parts.data)
        queries_.set_keys(plan_.k_sums.of(batch_, kv_head) + key / F::unit(0) * plan_.k_sums.step,
                          plan_.k_sums.step, count, p_.head_dim);
    clear(head_sums_, p_.head_dim * W);
    clear(value_sums_, p_.value_dim * W);
    const int64_t group = p_.heads / p_.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      of_head(head, list, key, in_block, count);
    VecF32 scale[R], one[R];
    for (int r = 0; r < R; ++r) {
      scale[r] = VecF32(p_.scale);
      one[r] = VecF32(1.f);
    }
    if (p_.grad_k.data)
      from_lanes<R>(head_sums_, p_.head_dim, scale,
                    row_at(p_.grad_k, p_.dtype, batch_, kv_head, key), this->bytes(p_.grad_k),
                    count, p_.dtype);
    if (p_.grad_v.data)
      from_lanes<R>(value_sums_, p_.value_dim, one,
                    row_at(p_.grad_v, p_.dtype, batch_, kv_head, key), this->bytes(p_.grad_v),
                    count, p_.dtype);
  }

  void of_head(int64_t head, int64_t list_index, int64_t key, int64_t in_block, int64_t count) {
    const ListRow list = list_row(p_.mask.by_key, p_.mask.num_patterns, batch_, head, list_index);
    alignas(64) float bias[W];
    load_bias(p_, batch_, head, key, count, 1.f, bias);
    for (int r = 0; r < R; ++r) {
      bias_[r] = VecF32::load(bias + r * L, int(clamp(count - r * L, 0, L)));
      bias_sum_[r] = VecF32(0.f);
    }
    q_ = plan_.q.of(batch_, head);
    grad_out_ = plan_.grad_out.of(batch_, head);
    const int64_t rows = (batch_ * p_.heads + head) * p_.seq_q;
    Chunks<F, kChunk> chunks(list, p_.mask, p_.seq_q, p_.mask.block_q);
    while (chunks.next()) {
      for (int64_t i = 0; i < chunks.count; ++i)
        derive(chunks.segments[i], rows + chunks.segments[i].first, in_block);
      const float* p = F::paired ? p_pairs_ : p_rows_;
      const float* ds = F::paired ? ds_pairs_ : ds_rows_;
      if (p_.grad_v.data)
        sums<F, R>(plan_.grad_out_sums.of(batch_, head), plan_.grad_out_sums.step, chunks.segments,
                   chunks.count, p, p_.value_dim,
                   [&](int64_t n, const VecF32(&sum)[R]) { add<R>(value_sums_ + n * W, sum); });
      if (p_.grad_k.data)
        sums<F, R>(plan_.q_sums.of(batch_, head), plan_.q_sums.step, chunks.segments, chunks.count,
                   ds, p_.head_dim,
                   [&](int64_t n, const VecF32(&sum)[R]) { add<R>(head_sums_ + n * W, sum); });
      if constexpr (!F::stored) {
        if (!plan_.parts.data) continue;
        float* const to = plan_.parts.of(batch_ * p_.heads + head, part_, p_.seq_q);
        for (int64_t i = 0; i < chunks.count; ++i) {
          const Segment& s = chunks.segments[i];
          queries_.add(ds_rows_, s.at, s.count, to + s.first * plan_.parts.channels,
                       plan_.parts.channels);
        }
      }
    }
    if (p_.grad_key_bias) {
      float* to = p_.grad_key_bias + (batch_ * p_.heads + head) * p_.seq_kv + key;
      for (int r = 0; r < R && r * L < count; ++r)
        bias_sum_[r].store(to + r * L, int(at_most(count - r * L, L)));
    }
  }

  // P and dS of a segment of queries; `row` counts queries through batch and heads.
  void derive(const Segment& s, int64_t row, int64_t in_block) {
    float *p = p_rows_ + s.at * W, *ds = ds_rows_ + s.at * W;
    alignas(64) float lse[kChunk];
    for (int64_t n = 0; n < s.count; n += L) {
      const int lanes = int(at_most(s.count - n, L));
      or_empty(VecF32::load(p_.lse + row + n, lanes)).store(lse + n);
    }
    dots<F, R>(q_ + s.first * plan_.q.step, plan_.q.step, s.count, first_, F::depth(p_.head_dim), p,
               AsIs());
    float* pairs = p_pairs_ + s.at / 2 * W;
    const auto shift = [&](int64_t n, int r) { return bias_[r] - VecF32(lse[n]); };
    if (s.bits) {
      this->weights(p, s.count, pairs, shift, [&](int64_t n) {
        return row_bits(s.bits, (s.in_block + n) * p_.mask.block_kv + in_block,
                        at_most(p_.mask.block_kv, W));
      });
    } else {
      this->weights(p, s.count, pairs, shift);
    }
    dots<F, R>(grad_out_ + s.first * plan_.grad_out.step, plan_.grad_out.step, s.count, second_,
               F::depth(p_.value_dim), ds, AsIs());
    this->derivatives(
        p, ds, s.count, ds_pairs_ + s.at / 2 * W, p_.grad_key_bias ? bias_sum_ : nullptr,
        [&](int64_t n, int) { return VecF32(p_.delta[row + n]); },
        [&](int64_t n, int r, VecF32 row_ds) {
          if (F::paired && !F::stored && plan_.parts.data) queries_.set_pairs(s.at + n, r, row_ds);
        });
  }

  VecF32 bias_[R], bias_sum_[R];
  int64_t part_ = 0;
  const char *q_ = nullptr, *grad_out_ = nullptr;
};

template <template <typename, int> class Part, typename F>
void run_form(const BackwardPlan& plan, const Worker& worker, int64_t in_lanes) {
#ifdef __AMX_BF16__
  const MatrixRegisters registers;
#endif
  const FlushDenormals flushed;
  const auto drain = [&](auto part) {
    for (Task task; next_task(worker, task);) part.run(task);
  };
  if constexpr (L == 16)
    if (in_lanes <= L) return drain(Part<F, 1>(plan));
  drain(Part<F, 2>(plan));
}

template <template <typename, int> class Part>
void run(const BackwardPlan& plan, const Worker& worker, int64_t in_lanes) {
#ifdef __AMX_BF16__
  run_form<Part, Matrix>(plan, worker, in_lanes);
#else
#ifdef FASTOPS_AVX512
  if (plan.p.dtype == DType::bf16) return run_form<Part, Pairs>(plan, worker, in_lanes);
#endif
  run_form<Part, Singles>(plan, worker, in_lanes);
#endif
}

}  // namespace

void backward_queries(const BackwardPlan& plan, const Worker& worker) {
  run<Queries>(plan, worker, at_most(plan.p.mask.block_q, plan.p.seq_q));
}

void backward_keys(const BackwardPlan& plan, const Worker& worker) {
  run<Keys>(plan, worker, at_most(plan.p.mask.block_kv, plan.p.seq_kv));
}

void join_query_parts(const BackwardPlan& plan, int64_t begin, int64_t end) {
  const BackwardParams& p = plan.p;
  const QueryParts& parts = plan.parts;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i % p.seq_q, head = parts.first_head + i / p.seq_q;
    char* const to = row_at(p.grad_q, p.dtype, head / p.heads, head % p.heads, row);
    const float* const from = parts.of(head, 0, p.seq_q) + row * parts.channels;
    for (int64_t c = 0; c < p.head_dim; c += L) {
      VecF32 sum = VecF32::load(from + c);
      for (int64_t part = 1; part < parts.count; ++part)
        sum = sum + VecF32::load(from + part * p.seq_q * parts.channels + c);
      const int lanes = int(at_most(p.head_dim - c, L));
      const auto store = [&](auto* at) { (sum * VecF32(p.scale)).store(at + c, lanes); };
      if (p.dtype == DType::f16) store(reinterpret_cast<f16*>(to));
      else if (p.dtype == DType::bf16) store(reinterpret_cast<bf16*>(to));
      else store(reinterpret_cast<float*>(to));
    }
  }
}

void backward_delta(const BackwardParams& p, int64_t begin, int64_t end) {
  alignas(64) float out[kMostChannels], grad[kMostChannels];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i % p.seq_q, head = i / p.seq_q % p.heads, b = i / p.seq_q / p.heads;
    widen_row(row_at(p.out, p.dtype, b, head, row), p.dtype, p.value_dim, out);
    widen_row(row_at(p.grad_out, p.dtype, b, head, row), p.dtype, p.value_dim, grad);
    VecF32 sum(0.f);
    for (int64_t c = 0; c < p.value_dim; c += L) {
      const int lanes = int(at_most(p.value_dim - c, L));
      sum = fma(VecF32::load(out + c, lanes), VecF32::load(grad + c, lanes), sum);
    }
    p.delta[i] = hsum(sum) - (p.grad_lse ? p.grad_lse[i] : 0.f);
  }
}

}  // namespace fastops::attention::cpu::FASTOPS_ISA
