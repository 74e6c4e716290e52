// Merge and unmerge on a CPU.
//
// Merge walks the output rows in the order in which their first tokens lie in memory, so that the
// input is read once, mostly forwards, and each output row is written once. A row of one token, by
// far the most, is a copy; the others are reduced in registers, members in ascending order.
#include "merge/cpu/kernels.h"
#include "merge/cpu/rows.h"

namespace fastops::merge::cpu::FASTOPS_ISA {
namespace {

// One tensor's rows of one sample.
template <typename T, typename V>
class RowMerger {
  using S = typename V::Scalar;

 public:
  RowMerger(const MergeParams& p, int tensor, int64_t sample, const Reads& reads, bool stream,
            void* scratch)
      : p_(p),
        x_(p.x[tensor]),
        y_(p.y[tensor]),
        sample_(sample),
        reads_(reads),
        ahead_(rows_ahead<T>(x_.channels)),
        stream_(stream && streamable<T>(p.y[tensor])),
        mean_(static_cast<S*>(scratch)) {}

  // `read`: how many tokens of the task were read before.
  void row(int64_t middle, int64_t o, const Members& members, double total, int64_t read) const {
    T* out = row_at<T>(y_, sample_, middle, o);
    const int64_t channels = x_.channels;
    if (members.count == 0) return zero_row(out, channels);
    if (members.count == 1)
      return copy_row(token(middle, members.at[0]), x_.stride[3], out, channels, stream_,
                      soon(middle, read));
    switch (p_.mode) {
      case Mode::max: return max_row(middle, members, out);
      case Mode::mlerp: return mlerp_row(middle, members, S(total), out, read);
      case Mode::sum: return sum_row(middle, members, nullptr, S(1), out, stream_, read);
      case Mode::mean: return sum_row(middle, members, p_.size, S(total), out, stream_, read);
    }
  }

 private:
  const T* token(int64_t middle, int64_t i) const {
    return row_at<const T>(x_, sample_, middle, i);
  }
  S weight(int64_t i) const {
    return scalar_at<S>(p_.size, p_.size_dtype, sample_ * p_.plan.num_tokens + i);
  }

  // The token that is read some rows after the one of `read`, to be asked for now. Past the end
  // of the task that is a guess: the next stack or sample from its first token on.
  const T* soon(int64_t middle, int64_t read) const {
    const int64_t at = read + ahead_, past = at - reads_.count;
    if (past < 0) return token(middle, reads_.at[at]);
    if (past < reads_.count && middle + 1 < x_.middle) return token(middle + 1, reads_.at[past]);
    if (past < p_.plan.num_tokens && sample_ + 1 < p_.plan.batch)
      return row_at<const T>(x_, sample_ + 1, 0, past);
    return token(middle, 0);
  }

  // out = sum of (weighted) rows / total. A true division: of ones it makes ones.
  template <typename U>
  void sum_row(int64_t middle, const Members& members, const void* weights, S total, U* out,
               bool stream, int64_t read) const {
    const int64_t channels = x_.channels, step = x_.stride[3];
    constexpr int kUnroll = 4;
    const V divisor(total != 0 ? total : S(1));  // sizes of 0 only: their sum is 0 already
    for (int64_t c = 0; c < channels; c += kUnroll * V::size) {
      V sum[kUnroll];
      for (V& s : sum) s = V(S(0));
      for (int64_t m = 0; m < members.count; ++m) {
        const T* from = token(middle, members.at[m]) + c * step;
        const T* later = soon(middle, read + m) + c;
        const V w(weights ? weight(members.at[m]) : S(1));
        for (int u = 0; u < kUnroll; ++u) {
          const int lanes = int(at_most(channels - c - u * V::size, V::size));
          if (lanes <= 0) break;
          prefetch(later + u * V::size);
          const V v = load_lanes<V>(from + u * V::size * step, step, lanes);
          sum[u] = weights ? fma(w, v, sum[u]) : sum[u] + v;
        }
      }
      for (int u = 0; u < kUnroll; ++u) {
        const int lanes = int(at_most(channels - c - u * V::size, V::size));
        if (lanes <= 0) break;
        if (total != S(1)) sum[u] = sum[u] / divisor;
        store_lanes(out + c + u * V::size, sum[u], lanes, stream);
      }
    }
  }

  void max_row(int64_t middle, const Members& members, T* out) const {
    const int64_t channels = x_.channels, step = x_.stride[3];
    for (int64_t c = 0; c < channels; c += V::size) {
      const int lanes = int(at_most(channels - c, V::size));
      V most(-S(__builtin_inff()));
      for (int64_t m = 0; m < members.count; ++m) {
        const V v = load_lanes<V>(token(middle, members.at[m]) + c * step, step, lanes);
        most = select(is_nan(v), v, max(v, most));
      }
      store_lanes(out + c, most, lanes, stream_);
    }
  }

  S norm(const T* from) const {
    const int64_t channels = x_.channels, step = x_.stride[3];
    V squares(S(0));
    for (int64_t c = 0; c < channels; c += V::size) {
      const V v = load_lanes<V>(from + c * step, step, int(at_most(channels - c, V::size)));
      squares = fma(v, v, squares);
    }
    return root(hsum(squares));
  }

  void mlerp_row(int64_t middle, const Members& members, S total, T* out, int64_t read) const {
    const int64_t channels = x_.channels;
    sum_row(middle, members, p_.size, total, mean_, false, read);
    S longest = 0, squares = 0;
    for (int64_t m = 0; m < members.count; ++m) {
      const S length = norm(token(middle, members.at[m]));
      longest = length > longest || length != length ? length : longest;
    }
    V lanes_squares(S(0));
    for (int64_t c = 0; c < channels; c += V::size) {
      const V v = V::load(mean_ + c, int(at_most(channels - c, V::size)));
      lanes_squares = fma(v, v, lanes_squares);
    }
    squares = hsum(lanes_squares);
    const V scale(squares > 0 || squares != squares ? longest / root(squares) : S(0));
    for (int64_t c = 0; c < channels; c += V::size) {
      const int lanes = int(at_most(channels - c, V::size));
      store_lanes(out + c, V::load(mean_ + c, lanes) * scale, lanes, stream_);
    }
  }

  const MergeParams& p_;
  const Rows &x_, &y_;
  int64_t sample_;
  const Reads& reads_;
  int64_t ahead_;
  bool stream_;
  S* mean_;
};

double total_size(const MergeParams& p, int64_t sample, const Members& members) {
  if (!p.size) return double(members.count);
  const int64_t base = sample * p.plan.num_tokens;
  if (p.size_dtype == DType::f64) {
    double sum = 0;
    for (int64_t m = 0; m < members.count; ++m)
      sum += static_cast<const double*>(p.size)[base + members.at[m]];
    return sum;
  }
  float sum = 0;
  for (int64_t m = 0; m < members.count; ++m)
    sum += static_cast<const float*>(p.size)[base + members.at[m]];
  return sum;
}

int64_t most_channels(const Rows* rows, int tensors) {
  int64_t most = 0;
  for (int t = 0; t < tensors; ++t) most = at_least(most, rows[t].channels);
  return most;
}

}  // namespace

void merge(const MergeParams& p) {
  const PlanView& plan = p.plan;
  int64_t bytes = 0;
  for (int t = 0; t < p.tensors; ++t)
    bytes += sample_bytes(p.x[t], plan.num_tokens) + sample_bytes(p.y[t], plan.num_out);
  const bool stream = use_streaming(bytes * plan.batch, p.fresh);
  const Tasks tasks(plan.batch, plan.num_out, at_least(bytes, plan.num_tokens * 16));
  const int64_t row_bytes = (most_channels(p.x, p.tensors) * 8 + 63) / 64 * 64;
  tasks.run([&](int64_t sample, int64_t piece) {
    char* scratch = static_cast<char*>(
        thread_scratch(size_t(row_bytes + 5 * plan.num_out + 8 * plan.num_tokens)));
    auto* order = reinterpret_cast<int32_t*>(scratch + row_bytes);
    int32_t *filtered = order + plan.num_out, *read_order = filtered + plan.num_tokens;
    walk_order(plan, sample, order, reinterpret_cast<uint8_t*>(read_order + plan.num_tokens));
    Reads reads{read_order, 0};
    const int64_t begin = plan.num_out * piece / tasks.pieces;
    const int64_t end = plan.num_out * (piece + 1) / tasks.pieces;
    for (int64_t at = begin; at < end; ++at) {
      const Members members(plan, sample, order[at], filtered);
      for (int64_t m = 0; m < members.count && reads.count < plan.num_tokens; ++m)
        read_order[reads.count++] = members.at[m];
      const double total = total_size(p, sample, members);
      const int64_t o = sample * plan.num_out + order[at];
      set_scalar(p.merged, p.size_dtype, o, total);
      const double log_total = total == 1                   ? 0
                               : p.size_dtype == DType::f64 ? __builtin_log(total)
                                                            : __builtin_logf(float(total));
      set_scalar(p.log_merged, p.size_dtype, o, log_total);
    }
    for (int t = 0; t < p.tensors; ++t)
      with_type(p.x[t].dtype, [&](auto element, auto vector) {
        const RowMerger<decltype(element), decltype(vector)> merger(p, t, sample, reads, stream,
                                                                    scratch);
        for (int64_t middle = 0; middle < p.x[t].middle; ++middle)
          for (int64_t at = begin, read = 0; at < end; ++at) {
            const Members members(plan, sample, order[at], filtered);
            merger.row(middle, order[at], members,
                       members.count > 1 ? total_size(p, sample, members) : 1, read);
            read += members.count;
          }
      });
  });
}

namespace {

template <typename T, typename V>
void unmerge_tokens(const UnmergeParams& p, int64_t sample, int64_t begin, int64_t end,
                    bool stream) {
  const int32_t* map = p.plan.map + sample * p.plan.num_tokens;
  const int64_t channels = p.out.channels, step = p.y.stride[3], other = p.residual.stride[3];
  const int64_t ahead = rows_ahead<T>(channels);
  stream = stream && streamable<T>(p.out);
  const auto in_range = [&](int64_t row) { return row >= 0 && row < p.plan.num_out; };
  for (int64_t middle = 0; middle < p.out.middle; ++middle)
    for (int64_t i = begin; i < end; ++i) {
      const bool mapped = in_range(map[i]);
      T* out = row_at<T>(p.out, sample, middle, i);
      const T* from = mapped ? row_at<const T>(p.y, sample, middle, map[i]) : nullptr;
      if (!p.residual.data) {
        if (!mapped) {
          zero_row(out, channels);
          continue;
        }
        const int32_t next = map[at_most(i + ahead, p.plan.num_tokens - 1)];
        const T* soon = in_range(next) ? row_at<const T>(p.y, sample, middle, next) : from;
        copy_row(from, step, out, channels, stream, soon);
        continue;
      }
      const T* residual = row_at<const T>(p.residual, sample, middle, i);
      if (!mapped) {
        copy_row(residual, other, out, channels, stream, residual);
        continue;
      }
      for (int64_t c = 0; c < channels; c += V::size) {
        const int lanes = int(at_most(channels - c, V::size));
        const V sum = load_lanes<V>(from + c * step, step, lanes) +
                      load_lanes<V>(residual + c * other, other, lanes);
        store_lanes(out + c, sum, lanes, stream);
      }
    }
}

}  // namespace

void unmerge(const UnmergeParams& p) {
  const int64_t bytes = sample_bytes(p.out, p.plan.num_tokens);
  const bool stream = use_streaming(2 * bytes * p.plan.batch, p.fresh);
  const Tasks tasks(p.plan.batch, p.plan.num_tokens, at_least(bytes, 1));
  tasks.run([&](int64_t sample, int64_t piece) {
    const int64_t begin = p.plan.num_tokens * piece / tasks.pieces;
    const int64_t end = p.plan.num_tokens * (piece + 1) / tasks.pieces;
    with_type(p.out.dtype, [&](auto element, auto vector) {
      unmerge_tokens<decltype(element), decltype(vector)>(p, sample, begin, end, stream);
    });
  });
}

}  // namespace fastops::merge::cpu::FASTOPS_ISA
