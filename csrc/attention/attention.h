// Block-sparse attention as its kernels see it: plain structs of raw pointers and int64 strides (in
// elements), and the launchers of each backend. No torch here; csrc/attention/torch.cpp fills these
// in.
//
//   s[i, j] = scale * q[i] . k[j] + key_bias[j]     for the (i, j) that the lists keep
//   lse[i]  = log(sum over j of exp(s[i, j]) + exp(sink))         natural logarithm
//   out[i]  = sum over j of exp(s[i, j] - lse[i]) * v[j]
//
// A row that keeps nothing (no key, or only -inf scores) and has no sink: out 0, lse -inf, gradient
// 0. With a sink: out 0, lse = sink.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastops::attention {

// Which blocks are kept, as rows of a compressed matrix. Row r = (b * heads + h) * rows + i lists
// the blocks of row i: first `partial` ones, ascending, of which only the elements named by a
// pattern of bits are kept, then whole ones, ascending. Blocks past the ends of q or k are cut off
// there, whole or partial.
//
// A list may come from the caller and hold anything: offsets are clamped to the arrays, a block
// that does not exist is skipped, and so is one whose pattern does not exist.
struct BlockLists {
  int64_t batch = 1, heads = 1;  // 1: the same for all of the problem's
  int64_t rows = 0, columns = 0;
  const int64_t* offsets = nullptr;          // [batch * heads * rows + 1] into indices
  const int32_t* indices = nullptr;          // [nnz]
  const int64_t* partial_offsets = nullptr;  // [batch * heads * rows + 1] into patterns
  const int32_t* patterns = nullptr;         // [num_partial]: which pattern, for each partial block
  int64_t nnz = 0, num_partial = 0;
};

// The lists by rows of queries and, for the backward, by rows of keys, and the bit patterns that
// both name: bit r * block_kv + c of a pattern (little endian in words of 32) keeps element (r, c)
// with r a query, in both. lists.offsets == nullptr: every block is kept whole.
struct BlockMask {
  int64_t block_q = 64, block_kv = 64;  // each of 16, 32, 64, 128
  BlockLists by_query, by_key;
  const uint32_t* bits = nullptr;  // [num_patterns, block_q * block_kv / 32]
  int64_t num_patterns = 0;
};

// [batch, heads, sequence, channels], channels with stride 1.
struct Heads {
  void* data = nullptr;
  int64_t stride[3] = {};  // batch, head, sequence
};

struct Problem {
  DType dtype = DType::f32;  // of q, k, v, out and their gradients
  int64_t batch = 0, heads = 0, kv_heads = 0, seq_q = 0, seq_kv = 0;
  int64_t head_dim = 0, value_dim = 0;  // of q and k, of v and out; 1 to 256
  float scale = 1;
  Heads q, k, v;
  BlockMask mask;
  const float* sinks = nullptr;     // optional [heads]
  const float* key_bias = nullptr;  // optional [batch, heads or 1, seq_kv]
  int64_t key_bias_stride[3] = {};  // batch, head (0: the same for all), key
  void* workspace = nullptr;        // device scratch of the launcher's size (CUDA)
};

struct ForwardParams : Problem {
  Heads out;
  float* lse = nullptr;  // [batch, heads, seq_q], contiguous
};

// Deterministic, in two parts: dk, dv over the lists by key (grouped heads summed in a fixed
// order), dq over the lists by query.
struct BackwardParams : Problem {
  Heads out, grad_out;
  const float* lse = nullptr;
  const float* grad_lse = nullptr;  // optional, as lse
  Heads grad_q, grad_k, grad_v;     // data == nullptr: not wanted
  float* grad_sinks = nullptr;      // optional [heads]
  float* grad_key_bias = nullptr;   // optional [batch, heads, seq_kv], contiguous: summed by torch
  float* delta = nullptr;  // workspace [batch, heads, seq_q]: rowsum(grad_out * out) - grad_lse
};

namespace cpu {
void forward(const ForwardParams& p);
void backward(const BackwardParams& p);
}  // namespace cpu

}  // namespace fastops::attention
