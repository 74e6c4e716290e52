// The two parts of the backward pass are one computation with the sides changed. By rows of queries
// (kByKey false), with K and V listed:
//   s = q k, dp = dO v, p = exp(s - lse), ds = p (dp - delta);   dq = scale * ds k
// By rows of keys, with the queries of each head of the group listed in turn:
//   s = k q, dp = v dO, ...;                       dk = scale * ds q, dv = p dO, dbias = rowsum(ds)
#pragma once

#include "attention/cuda/blocks.cuh"

namespace fastops::attention::cuda {

// What a kernel of either part is about, in terms of rows and what is listed.
template <typename T, bool kByKey>
struct Side {
  const T *row_a, *row_b;  // q and dO, or k and v: of this head
  int64_t row_stride_a, row_stride_b;
  int rows;
  int b, h;  // h: of queries, or of keys

  __device__ __forceinline__ Side(const BackwardParams& p, unsigned sample, unsigned head)
      : b(int(sample)), h(int(head)) {
    const Heads &a = kByKey ? p.k : p.q, &other = kByKey ? p.v : p.grad_out;
    row_a = head_of<const T>(a, b, h);
    row_b = head_of<const T>(other, b, h);
    row_stride_a = a.stride[2];
    row_stride_b = other.stride[2];
    rows = int(kByKey ? p.seq_kv : p.seq_q);
  }
};

template <typename T, bool kByKey>
struct Listed {
  const T *a, *b;  // k and v, or q and dO
  int64_t stride_a, stride_b, length;
  int q_head;
  int64_t first_query;  // of this head, in lse and delta
  const float* bias;

  // Member `i` of the group of heads that share keys.
  __device__ __forceinline__ Listed(const BackwardParams& p, const Side<T, kByKey>& side, int i) {
    const int group = int(unsigned(p.heads) / unsigned(p.kv_heads));
    q_head = kByKey ? side.h * group + i : side.h;
    const Heads &x = kByKey ? p.q : p.k, &y = kByKey ? p.grad_out : p.v;
    const int h = kByKey ? q_head : side.h / group;
    a = head_of<const T>(x, side.b, h);
    b = head_of<const T>(y, side.b, h);
    stride_a = x.stride[2];
    stride_b = y.stride[2];
    length = kByKey ? p.seq_q : p.seq_kv;
    first_query = (side.b * p.heads + q_head) * p.seq_q;
    bias = p.key_bias;
    if (bias) bias += side.b * p.key_bias_stride[0] + q_head * p.key_bias_stride[1];
  }
};

// exp(s - lse), or 0 for a row of queries that keeps nothing.
__device__ __forceinline__ float probability(float s, float lse) {
  return lse == -INFINITY ? 0.f : expf(s - lse);
}

}  // namespace fastops::attention::cuda
