// A softmax problem in guarded memory: logical dims and layouts in, Params out.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "harness.h"
#include "softmax/softmax.h"

namespace fastops::test {

// How a tensor of the problem's shape lies in memory.
enum class Layout : int8_t {
  contiguous,  // row-major
  reversed,    // column-major: the last dim has the largest stride
  stepped,     // row-major, every second element of a wider last dim
};

// Which dims a broadcast operand (mask, bias) really has.
enum class Span : int8_t { absent, full, row, reduced, reversed };

struct Case {
  softmax::Kind kind = softmax::Kind::softmax;
  std::vector<int64_t> size{1};
  std::vector<int> reduced{0};
  DType in = DType::f32;    // x, or y
  DType grad = DType::f32;  // backward only
  DType out = DType::f32;
  Layout in_layout = Layout::contiguous;
  Layout grad_layout = Layout::contiguous;
  Layout out_layout = Layout::contiguous;
  Span mask = Span::absent;
  Span bias = Span::absent;
  bool bias_f32 = false;  // else of x's dtype
  bool lengths = false;
  bool causal = false;
  bool row_scale = false;
  bool lse = false;  // forward: wanted; backward: has dlse
  bool zero_masked_rows = false;
  bool in_place = false;  // out (dx) is x (dy)
  bool extremes = false;  // infinities and NaN among the inputs
  double scale = 1.0;
  softmax::Algorithm algorithm = softmax::Algorithm::automatic;
  int placement = 0;  // 0: data end at a guard page; k > 0: data start k - 1 elements after one
  uint32_t seed = 1;

  std::string describe() const;
};

// Runs the forward (backward) launcher on the case and checks values, lse and guard bytes.
void check_forward(const Case& c);
void check_backward(const Case& c);

// The raw bytes of every output, for comparing runs.
std::vector<uint8_t> forward_bytes(const Case& c);
std::vector<uint8_t> backward_bytes(const Case& c);

}  // namespace fastops::test
