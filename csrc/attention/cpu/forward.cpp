// out and lse on a CPU: queries in the lanes, scores and output transposed. Nothing is reduced
// across lanes, and K and V are broadcast from where they lie.
//
// Per W = R * L queries, and per chunk of listed keys: scores [key][W] with their maximum
// in the epilogue, exponentials in place, output[channel][W] = alpha * output + the chunk's sum.
// All of it but K and V stays in L1 (head_dim 64: 8 KB each of queries, scores and output). What
// comes from further away is fetched ahead, during the products: for each task its output and the
// next one's queries, for each chunk the next one's keys and values.
#include "attention/cpu/chunks.h"
#include "attention/cpu/kernels.h"
#include "cpu/pow.h"
#include "cpu/scratch.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

template <typename F, int R>
class Forward {
  static constexpr int W = R * L;
  static constexpr int64_t kChunk = F::chunk;
  static constexpr int kTogether = F::paired ? 2 : 1;  // rows of weights
  // Weights are rounded to bf16 before they are multiplied: 8.6e-5 is enough there.
  static constexpr int kDegree = F::paired ? 3 : 6;

 public:
  explicit Forward(const ForwardPlan& plan)
      : plan_(plan),
        p_(plan.p),
        biased_(p_.key_bias || !(p_.scale > 0)),
        unit_(biased_ ? 1.f : p_.scale * kLog2eF) {
    const int64_t depth = F::depth(p_.head_dim);
    const int64_t each = depth + p_.value_dim;
    float* at = static_cast<float*>(
        thread_scratch(size_t(kTiles * each + kChunk + kChunk / 2) * W * sizeof(float)));
    scores_ = at;
    pairs_ = scores_ + kChunk * W;
    for (int t = 0; t < kTiles; ++t) {
      tiles_[t].queries = pairs_ + (kChunk / 2 + t * each) * W;
      tiles_[t].out = tiles_[t].queries + depth * W;
    }
  }

  void run(Task task, const Task* following) {
    batch_ = task.head / p_.heads;
    head_ = task.head % p_.heads;
    const int64_t kv_head = head_ / (p_.heads / p_.kv_heads);
    k_ = plan_.k.of(batch_, kv_head);
    v_ = plan_.v.of(batch_, kv_head);
    const ListRow list = list_row(p_.mask.by_query, p_.mask.num_patterns, batch_, head_, task.row);
    const int64_t begin = task.row * p_.mask.block_q;
    const int64_t end = at_most(begin + p_.mask.block_q, p_.seq_q);
    for (int64_t q = begin; q < end; q += kTiles * W) {
      int tiles = 0;
      for (; tiles < kTiles && q + tiles * W < end; ++tiles)
        start(tiles_[tiles], q + tiles * W, q + tiles * W - begin, end);
      ahead_.forget();
      fetch_rows(p_.out, p_.value_dim, batch_, head_, q, at_most(q + kTiles * W, end));
      // Every tile works on a chunk while it is in cache.
      Chunks<F, kChunk> upcoming(list, p_.mask, p_.seq_kv, p_.mask.block_kv);
      for (bool more = upcoming.next(); more;) {
        const Chunks<F, kChunk> chunks = upcoming;
        more = upcoming.next();
        if (more) fetch_chunk(upcoming, k_, v_);
        else if (following) fetch_task(*following);
        for (int t = 0; t < tiles; ++t) add(tiles_[t], chunks);
        ahead_.forget();
      }
      for (int t = 0; t < tiles; ++t) finish(tiles_[t]);
    }
  }

 private:
  static constexpr int kTiles = 4;  // that share the loads of keys and values

  struct Tile {
    float *queries, *out;
    int64_t query, in_block, count;
    VecF32 most[R], total[R];
    VecF32 base[R];  // most in log 2, as rounded where it was subtracted
  };

  void fetch_rows(const Heads& t, int64_t channels, int64_t batch, int64_t head, int64_t begin,
                  int64_t end) {
    const int64_t bytes = int64_t(size_of(p_.dtype));
    ahead_.add(row_at(t, p_.dtype, batch, head, begin), end - begin, t.stride[2] * bytes,
               channels * bytes);
  }

  void fetch_chunk(const Chunks<F, kChunk>& chunk, const char* k, const char* v) {
    const int64_t k_step = plan_.k.step, v_step = plan_.v.step;
    for (int64_t i = 0; i < chunk.count; ++i) {
      const Segment& s = chunk.segments[i];
      ahead_.add(k + s.first * k_step, s.count, k_step, F::depth(p_.head_dim) * 4);
      ahead_.add(v + s.unit * v_step, ceil_div(s.count, F::unit(p_.mask.block_kv)), v_step,
                 F::stored ? v_step : p_.value_dim * 4);
    }
  }

  // What a task starts with.
  void fetch_task(Task task) {
    const int64_t batch = task.head / p_.heads, head = task.head % p_.heads;
    const int64_t kv_head = head / (p_.heads / p_.kv_heads), begin = task.row * p_.mask.block_q;
    fetch_rows(p_.q, p_.head_dim, batch, head, begin, at_most(begin + p_.mask.block_q, p_.seq_q));
    const ListRow list = list_row(p_.mask.by_query, p_.mask.num_patterns, batch, head, task.row);
    Chunks<F, kChunk> chunks(list, p_.mask, p_.seq_kv, p_.mask.block_kv);
    if (chunks.next()) fetch_chunk(chunks, plan_.k.of(batch, kv_head), plan_.v.of(batch, kv_head));
  }

  void start(Tile& t, int64_t query, int64_t in_block, int64_t end) {
    t.query = query;
    t.in_block = in_block;
    t.count = at_most(end - query, W);
    const int64_t row_bytes = p_.q.stride[2] * int64_t(size_of(p_.dtype));
    into_lanes<F, R>(row_at(p_.q, p_.dtype, batch_, head_, query), row_bytes, t.count, p_.dtype,
                     p_.head_dim, t.queries);
    for (int64_t i = 0; i < p_.value_dim * W; i += L) VecF32(0.f).store(t.out + i);
    for (int r = 0; r < R; ++r) {
      t.most[r] = t.base[r] = VecF32(-kInf);
      t.total[r] = VecF32(0.f);
    }
  }

  void add(Tile& t, const Chunks<F, kChunk>& chunks) {
    VecF32 most[R], alpha[R];
    for (int r = 0; r < R; ++r) most[r] = t.most[r];
    for (int64_t i = 0; i < chunks.count; ++i) score(t, chunks.segments[i], most);
    exponentials(t, chunks, most, alpha);
    const float* weights = F::paired ? pairs_ : scores_;
    const auto done = [&](int64_t n, const VecF32(&sum)[R]) {
      float* o = t.out + n * W;
      for (int r = 0; r < R; ++r) fma(VecF32::load(o + r * L), alpha[r], sum[r]).store(o + r * L);
    };
    sums<F, R>(v_, plan_.v.step, chunks.segments, chunks.count, weights, p_.value_dim, done,
               ahead_);
  }

  // The scores of a segment, in units of 1 / unit_, and their maximum.
  void score(const Tile& t, const Segment& s, VecF32 (&most)[R]) {
    float* to = scores_ + s.at * W;
    VecF32 high[R];
    for (int r = 0; r < R; ++r) high[r] = most[r];
    const auto product = [&](const auto& done) {
      dots<F, R>(k_ + s.first * plan_.k.step, plan_.k.step, s.count, t.queries,
                 F::depth(p_.head_dim), to, done, W, ahead_);
    };
    const bool masked = s.bits != nullptr;
    if (biased_) {
      alignas(64) float bias[128];
      load_bias(p_, batch_, head_, s.first, s.count, kLog2eF, bias);
      const VecF32 scale(p_.scale * kLog2eF);
      product([&](int64_t n, int r, VecF32 sum) {
        const VecF32 score = fma(sum, scale, VecF32(bias[n]));
        high[r] = max(score, high[r]);
        return score;
      });
    } else if (F::stored) {
      product(AsIs());
      if (!masked) highest(to, s.count, high);
    } else {
      product([&](int64_t, int r, VecF32 sum) {
        high[r] = max(sum, high[r]);
        return sum;
      });
    }
    if (masked) {
      uint32_t lanes[128];
      lane_masks(s, p_.mask.block_kv, t.in_block, t.count, lanes);
      for (int64_t n = 0; n < s.count; ++n)
        for (int r = 0; r < R; ++r) {
          float* at = to + n * W + r * L;
          select(mask_of_bits(lanes[n] >> (r * L)), VecF32::load(at), VecF32(-kInf)).store(at);
        }
      for (int r = 0; r < R; ++r) high[r] = most[r];
      highest(to, s.count, high);
    }
    for (int r = 0; r < R; ++r) most[r] = high[r];
    for (int64_t i = s.count * W; i < round_up(s.count, kTogether) * W; i += L)
      VecF32(-kInf).store(to + i);
  }

  // Two rows at a time: a maximum waits for the one before.
  static void highest(const float* rows, int64_t count, VecF32 (&most)[R]) {
    VecF32 other[R];
    for (int r = 0; r < R; ++r) other[r] = VecF32(-kInf);
    int64_t n = 0;
    for (; n + 2 <= count; n += 2)
      for (int r = 0; r < R; ++r) {
        most[r] = max(VecF32::load(rows + n * W + r * L), most[r]);
        other[r] = max(VecF32::load(rows + (n + 1) * W + r * L), other[r]);
      }
    for (int r = 0; r < R; ++r) {
      if (n < count) most[r] = max(VecF32::load(rows + n * W + r * L), most[r]);
      most[r] = max(other[r], most[r]);
    }
  }

  // Scores become their exponentials, relative to the new maximum.
  void exponentials(Tile& t, const Chunks<F, kChunk>& chunks, const VecF32 (&most)[R],
                    VecF32 (&alpha)[R]) {
    const VecF32 unit(unit_);
    VecF32 shift[R], sum[R];
    for (int r = 0; r < R; ++r) {
      // Nothing kept so far: any finite shift gives zeros.
      const VecF32 base = most[r] * unit;
      shift[r] = VecF32(0.f) - select(base == VecF32(-kInf), VecF32(0.f), base);
      alpha[r] = exp2(t.base[r] + shift[r]);
      t.most[r] = most[r];
      t.base[r] = base;
      sum[r] = VecF32(0.f);
    }
    for (int64_t i = 0; i < chunks.count; ++i) {
      const Segment& s = chunks.segments[i];
      float *rows = scores_ + s.at * W, *pairs = pairs_ + s.at / 2 * W;
      int64_t n = 0;
      for (; n < s.count; n += kTogether) {
        VecF32 p[2][R];
        for (int k = 0; k < kTogether; ++k)
          for (int r = 0; r < R; ++r) {
            float* at = rows + (n + k) * W + r * L;
            p[k][r] = exp2_weight<kDegree>(fma(VecF32::load(at), unit, shift[r]));
            sum[r] = sum[r] + p[k][r];
            if (!F::paired) p[k][r].store(at);
          }
        if (F::paired) pair_rows<R>(p[0], p[1], pairs + n / 2 * W);
      }
      // What a small block is filled up with, zeros, needs no exponentials.
      for (; n < round_up(s.count, F::pad); n += 2)
        for (int r = 0; r < R; ++r) VecF32(0.f).store(pairs + n / 2 * W + r * L);
    }
    for (int r = 0; r < R; ++r) t.total[r] = fma(t.total[r], alpha[r], sum[r]);
  }

  void finish(const Tile& t) {
    VecF32 factor[R];
    float* lse = p_.lse + (batch_ * p_.heads + head_) * p_.seq_q + t.query;
    for (int r = 0; r < R; ++r) {
      const VecF32 sink(p_.sinks ? p_.sinks[head_] * kLog2eF : -kInf);
      const VecF32 kept = t.base[r], most = max(kept, sink);
      const VecF32 shift = select(most == VecF32(-kInf), VecF32(0.f), most);
      const VecF32 before = exp2(kept - shift);
      const VecF32 total = fma(t.total[r], before, exp2(sink - shift));
      const auto empty = total == VecF32(0.f);
      factor[r] = select(empty, VecF32(0.f), before / total);
      const int lanes = int(at_most(t.count - r * L, L));
      VecF32 value = fma(shift, VecF32(float(1 / kLog2e)), log(total));
      value = select(empty, VecF32(-kInf), select(is_nan(total), total, value));
      if (lanes > 0) value.store(lse + r * L, lanes);
    }
    from_lanes<R>(t.out, p_.value_dim, factor, row_at(p_.out, p_.dtype, batch_, head_, t.query),
                  p_.out.stride[2] * int64_t(size_of(p_.dtype)), t.count, p_.dtype);
  }

  const ForwardPlan& plan_;
  const ForwardParams& p_;
  bool biased_;  // scores are scaled where they are made; else where their exponentials are
  float unit_;   // of scores, in log 2
  float *scores_, *pairs_;
  Tile tiles_[kTiles];
  Ahead ahead_;
  int64_t batch_ = 0, head_ = 0;
  const char *k_ = nullptr, *v_ = nullptr;
};

template <typename F, int R>
void run(const ForwardPlan& plan, const Worker& worker) {
#ifdef __AMX_BF16__
  const MatrixRegisters registers;
#endif
  const FlushDenormals flushed;
  Forward<F, R> forward(plan);
  for (Task task, following; next_task(worker, task);)
    forward.run(task, upcoming_task(worker, following) ? &following : nullptr);
}

template <typename F>
void run(const ForwardPlan& plan, const Worker& worker) {
  if constexpr (L == 16)
    if (plan.p.mask.block_q <= L || plan.p.seq_q <= L) return run<F, 1>(plan, worker);
  run<F, 2>(plan, worker);
}

}  // namespace

void forward(const ForwardPlan& plan, const Worker& worker) {
#ifdef __AMX_BF16__
  run<Matrix>(plan, worker);
#else
#ifdef FASTOPS_AVX512
  if (plan.p.dtype == DType::bf16) return run<Pairs>(plan, worker);
#endif
  run<Singles>(plan, worker);
#endif
}

}  // namespace fastops::attention::cpu::FASTOPS_ISA
