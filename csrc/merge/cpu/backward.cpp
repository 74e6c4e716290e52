// The backward pass of merge on a CPU, in closed form. With o the row of token i, s its size and S
// that of the row:
//
//   sum    dx_i = dy_o
//   mean   dx_i = s_i / S_o dy_o              ds_i = <dy_o, x_i - y_o> / S_o + dS_o
//   max    dx_i = dy_o / ties where x_i is y_o
//   mlerp  y = a m / |m|, a = max |x_i|:      dm = a / |m| (dy - u <u, dy>) with u = m / |m|,
//          da = <u, dy>, shared by the ties   dx_i = s_i / S_o dm + da x_i / a
//
// Tokens of no row have zero gradients. Rows of one token pass theirs on.
#include "merge/cpu/kernels.h"
#include "merge/cpu/rows.h"

namespace fastops::merge::cpu::FASTOPS_ISA {
namespace {

// The row of token i, or -1.
int64_t row_of(const PlanView& plan, int64_t sample, int64_t i) {
  const int64_t o = plan.map[sample * plan.num_tokens + i];
  return o >= 0 && o < plan.num_out ? o : -1;
}

// sum and mean: token by token, in memory order.
template <typename T, typename V>
class TokenGradient {
  using S = typename V::Scalar;

 public:
  TokenGradient(const MergeBackwardParams& p, int tensor, int64_t sample, bool stream)
      : p_(p),
        tensor_(tensor),
        sample_(sample),
        ahead_(rows_ahead<T>(p.dx[tensor].channels)),
        stream_(stream && streamable<T>(p.dx[tensor])) {}

  // Gives <dy_o, x_i - y_o> where a gradient of sizes is wanted.
  double token(int64_t middle, int64_t i, int64_t o, double weight) const {
    const Rows &grad = p_.dy[tensor_], &result = p_.dx[tensor_];
    const int64_t channels = result.channels, step = grad.stride[3];
    T* dx = row_at<T>(result, sample_, middle, i);
    if (o < 0) {
      zero_row(dx, channels);
      return 0;
    }
    const T* dy = row_at<const T>(grad, sample_, middle, o);
    if (weight == 1) {
      const int64_t next = row_of(p_.plan, sample_, at_most(i + ahead_, p_.plan.num_tokens - 1));
      copy_row(dy, step, dx, channels, stream_,
               next < 0 ? dy : row_at<const T>(grad, sample_, middle, next));
    } else {
      const V w{S(weight)};
      for (int64_t c = 0; c < channels; c += V::size) {
        const int lanes = int(at_most(channels - c, V::size));
        store_lanes(dx + c, load_lanes<V>(dy + c * step, step, lanes) * w, lanes, stream_);
      }
    }
    return p_.dsize && p_.mode == Mode::mean && weight != 1 ? dot(middle, i, o, dy, step) : 0;
  }

 private:
  double dot(int64_t middle, int64_t i, int64_t o, const T* dy, int64_t step) const {
    const Rows &xs = p_.x[tensor_], &ys = p_.y[tensor_];
    const T* x = row_at<const T>(xs, sample_, middle, i);
    const T* y = row_at<const T>(ys, sample_, middle, o);
    V sum(S(0));
    for (int64_t c = 0; c < xs.channels; c += V::size) {
      const int lanes = int(at_most(xs.channels - c, V::size));
      const V apart = load_lanes<V>(x + c * xs.stride[3], xs.stride[3], lanes) -
                      load_lanes<V>(y + c * ys.stride[3], ys.stride[3], lanes);
      sum = fma(load_lanes<V>(dy + c * step, step, lanes), apart, sum);
    }
    return double(hsum(sum));
  }

  const MergeBackwardParams& p_;
  int tensor_;
  int64_t sample_, ahead_;
  bool stream_;
};

// max and mlerp: row by row, because a token's gradient needs the others of its row.
template <typename T, typename V>
class RowGradient {
  using S = typename V::Scalar;

 public:
  // `scratch` has room for two rows of S.
  RowGradient(const MergeBackwardParams& p, int tensor, int64_t sample, void* scratch)
      : p_(p),
        x_(p.x[tensor]),
        y_(p.y[tensor]),
        dy_(p.dy[tensor]),
        dx_(p.dx[tensor]),
        sample_(sample),
        mean_(static_cast<S*>(scratch)),
        dmean_(mean_ + x_.channels) {}

  void row(int64_t middle, int64_t o, const Members& members, double* dsize) const {
    const T* dy = row_at<const T>(dy_, sample_, middle, o);
    if (members.count == 1 && owns(members.at[0], o)) {
      T* dx = row_at<T>(dx_, sample_, middle, members.at[0]);
      copy_row(dy, dy_.stride[3], dx, x_.channels, false, dy);
    } else if (members.count > 1) {
      if (p_.mode == Mode::max) max_row(middle, o, members, dy);
      else mlerp_row(middle, o, members, dy, dsize);
    }
  }

 private:
  V load(const Rows& rows, const T* from, int64_t c, int lanes) const {
    return load_lanes<V>(from + c * rows.stride[3], rows.stride[3], lanes);
  }
  const T* token(int64_t middle, int64_t i) const {
    return row_at<const T>(x_, sample_, middle, i);
  }
  // A wrong plan may name a token in several rows: its gradient is that of the row in the map.
  bool owns(int64_t i, int64_t o) const {
    return p_.plan.map[sample_ * p_.plan.num_tokens + i] == o;
  }
  // body(c, lanes) over the channels.
  template <typename Body>
  void each(const Body& body) const {
    for (int64_t c = 0; c < x_.channels; c += V::size)
      body(c, int(at_most(x_.channels - c, V::size)));
  }

  void max_row(int64_t middle, int64_t o, const Members& members, const T* dy) const {
    const T* most = row_at<const T>(y_, sample_, middle, o);
    each([&](int64_t c, int lanes) {
      const V y = load(y_, most, c, lanes);
      V ties(S(0));
      for (int64_t m = 0; m < members.count; ++m) {
        const V x = load(x_, token(middle, members.at[m]), c, lanes);
        ties = ties + select(x == y, V(S(1)), V(S(0)));
      }
      const V share = load(dy_, dy, c, lanes) / max(ties, V(S(1)));
      for (int64_t m = 0; m < members.count; ++m) {
        if (!owns(members.at[m], o)) continue;
        const V x = load(x_, token(middle, members.at[m]), c, lanes);
        T* dx = row_at<T>(dx_, sample_, middle, members.at[m]);
        store_lanes(dx + c, select(x == y, share, V(S(0))), lanes, false);
      }
    });
  }

  S weight(int64_t i) const {
    if (!p_.size) return S(1);
    return scalar_at<S>(p_.size, p_.size_dtype, sample_ * p_.plan.num_tokens + i);
  }

  S norm(const T* from) const {
    V squares(S(0));
    each([&](int64_t c, int lanes) {
      const V v = load(x_, from, c, lanes);
      squares = fma(v, v, squares);
    });
    return root(hsum(squares));
  }

  void mlerp_row(int64_t middle, int64_t o, const Members& members, const T* dy,
                 double* dsize) const {
    S total = 0, longest = 0;
    for (int64_t m = 0; m < members.count; ++m) {
      total += weight(members.at[m]);
      longest = at_least_of(norm(token(middle, members.at[m])), longest);
    }
    V squares(S(0)), along(S(0));
    each([&](int64_t c, int lanes) {
      V sum(S(0));
      for (int64_t m = 0; m < members.count; ++m)
        sum = fma(V(weight(members.at[m])), load(x_, token(middle, members.at[m]), c, lanes), sum);
      sum = sum / V(total != 0 ? total : S(1));
      sum.store(mean_ + c, lanes);
      squares = fma(sum, sum, squares);
      along = fma(sum, load(dy_, dy, c, lanes), along);
    });
    const S length = root(hsum(squares));
    if (length == 0) {  // y is 0 whatever the tokens do
      for (int64_t m = 0; m < members.count; ++m)
        if (owns(members.at[m], o))
          zero_row(row_at<T>(dx_, sample_, middle, members.at[m]), x_.channels);
      return;
    }
    const S dlongest = hsum(along) / length, scale = longest / length;
    each([&](int64_t c, int lanes) {
      const V m = V::load(mean_ + c, lanes);
      ((load(dy_, dy, c, lanes) - m * V(dlongest / length)) * V(scale)).store(dmean_ + c, lanes);
    });
    int64_t ties = 0;
    for (int64_t m = 0; m < members.count; ++m)
      ties += norm(token(middle, members.at[m])) == longest;
    for (int64_t m = 0; m < members.count; ++m) {
      const int64_t i = members.at[m];
      if (!owns(i, o)) continue;
      const T* x = token(middle, i);
      T* dx = row_at<T>(dx_, sample_, middle, i);
      const V share(total != 0 ? weight(i) / total : S(0));
      const V own(norm(x) == longest ? dlongest / S(ties) / longest : S(0));
      V dot(S(0));
      each([&](int64_t c, int lanes) {
        const V v = load(x_, x, c, lanes), dm = V::load(dmean_ + c, lanes);
        store_lanes(dx + c, fma(share, dm, own * v), lanes, false);
        dot = fma(dm, v - V::load(mean_ + c, lanes), dot);
      });
      if (dsize && total != 0) dsize[i] += double(hsum(dot)) / double(total);
    }
  }

  static S at_least_of(S length, S longest) {
    return length > longest || length != length ? length : longest;
  }

  const MergeBackwardParams& p_;
  const Rows &x_, &y_, &dy_, &dx_;
  int64_t sample_;
  S *mean_, *dmean_;
};

// s_i / S_o, or one over the number of tokens in the row; exactly 1 for a row of one token.
double weight_of(const MergeBackwardParams& p, int64_t sample, int64_t i, int64_t o) {
  if (p.mode != Mode::mean || o < 0) return 1;
  const int32_t* offsets = p.plan.offsets + sample * (p.plan.num_out + 1) + o;
  const int64_t count = int64_t(offsets[1]) - offsets[0];
  if (count <= 1) return 1;
  if (!p.size) return 1.0 / double(count);
  const double total = scalar_at<double>(p.merged, p.size_dtype, sample * p.plan.num_out + o);
  if (total == 0) return 0;
  return scalar_at<double>(p.size, p.size_dtype, sample * p.plan.num_tokens + i) / total;
}

void by_token(const MergeBackwardParams& p, const Tasks& tasks, bool stream) {
  const PlanView& plan = p.plan;
  tasks.run([&](int64_t sample, int64_t piece) {
    const int64_t begin = plan.num_tokens * piece / tasks.pieces;
    const int64_t end = plan.num_tokens * (piece + 1) / tasks.pieces;
    double* dots = static_cast<double*>(thread_scratch(size_t(end - begin) * sizeof(double)));
    for (int64_t i = 0; i < end - begin; ++i) dots[i] = 0;
    for (int t = 0; t < p.tensors; ++t)
      with_type(p.dx[t].dtype, [&](auto element, auto vector) {
        const TokenGradient<decltype(element), decltype(vector)> gradient(p, t, sample, stream);
        for (int64_t middle = 0; middle < p.dx[t].middle; ++middle)
          for (int64_t i = begin; i < end; ++i) {
            const int64_t o = row_of(plan, sample, i);
            dots[i - begin] += gradient.token(middle, i, o, weight_of(p, sample, i, o));
          }
      });
    if (!p.dsize) return;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t o = row_of(plan, sample, i);
      double value = 0;
      if (o >= 0) {
        const int64_t row = sample * plan.num_out + o;
        const double total = scalar_at<double>(p.merged, p.size_dtype, row);
        if (total != 0) value = dots[i - begin] / total;
        if (p.dmerged) value += scalar_at<double>(p.dmerged, p.size_dtype, row);
      }
      set_scalar(p.dsize, p.size_dtype, sample * plan.num_tokens + i, value);
    }
  });
}

// One task per sample: a token may be named by any row.
void by_row(const MergeBackwardParams& p, int64_t bytes) {
  const PlanView& plan = p.plan;
  int64_t channels = 0;
  for (int t = 0; t < p.tensors; ++t) channels = at_least(channels, p.x[t].channels);
  const int64_t grain = at_least(kBytesPerTask / bytes, 1);
  parallel_for(0, plan.batch, grain, [&](int64_t first, int64_t last) {
    const int64_t row_bytes = channels * 16;
    char* scratch =
        static_cast<char*>(thread_scratch(size_t(row_bytes + plan.num_tokens * (8 + 4 + 1))));
    auto* dsize = reinterpret_cast<double*>(scratch + row_bytes);
    auto* filtered = reinterpret_cast<int32_t*>(dsize + plan.num_tokens);
    auto* named = reinterpret_cast<uint8_t*>(filtered + plan.num_tokens);
    for (int64_t sample = first; sample < last; ++sample) {
      for (int64_t i = 0; i < plan.num_tokens; ++i) dsize[i] = named[i] = 0;
      for (int64_t o = 0; o < plan.num_out; ++o) {
        const Members members(plan, sample, o, filtered);
        for (int64_t m = 0; m < members.count; ++m) {
          if (row_of(plan, sample, members.at[m]) != o) continue;
          named[members.at[m]] = 1;
          if (p.dmerged)
            dsize[members.at[m]] =
                scalar_at<double>(p.dmerged, p.size_dtype, sample * plan.num_out + o);
        }
      }
      for (int t = 0; t < p.tensors; ++t)
        with_type(p.dx[t].dtype, [&](auto element, auto vector) {
          using T = decltype(element);
          const RowGradient<T, decltype(vector)> gradient(p, t, sample, scratch);
          for (int64_t middle = 0; middle < p.dx[t].middle; ++middle) {
            for (int64_t o = 0; o < plan.num_out; ++o)
              gradient.row(middle, o, Members(plan, sample, o, filtered),
                           p.dsize ? dsize : nullptr);
            for (int64_t i = 0; i < plan.num_tokens; ++i)
              if (!named[i]) zero_row(row_at<T>(p.dx[t], sample, middle, i), p.dx[t].channels);
          }
        });
      for (int64_t i = 0; p.dsize && i < plan.num_tokens; ++i)
        set_scalar(p.dsize, p.size_dtype, sample * plan.num_tokens + i, dsize[i]);
    }
  });
}

}  // namespace

void merge_backward(const MergeBackwardParams& p) {
  int64_t bytes = 0;
  for (int t = 0; t < p.tensors; ++t) bytes += sample_bytes(p.dx[t], p.plan.num_tokens);
  bytes = at_least(bytes, p.plan.num_tokens * 16);
  if (p.mode == Mode::max || p.mode == Mode::mlerp) return by_row(p, bytes);
  by_token(p, Tasks(p.plan.batch, p.plan.num_tokens, bytes),
           use_streaming(2 * bytes * p.plan.batch, true));
}

}  // namespace fastops::merge::cpu::FASTOPS_ISA
