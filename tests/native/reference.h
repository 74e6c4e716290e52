// What the kernels must compute, as plain double loops over the same Params.
#pragma once

#include <cstdint>
#include <vector>

#include "softmax/softmax.h"

namespace fastops::test {

double load(const softmax::Operand& operand, int64_t index);
void store(const softmax::Operand& operand, int64_t index, double value);  // rounds to nearest even

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat_to_float(uint16_t bits);
uint16_t float_to_bfloat(float value);

// One value per element (row-major over row dims, then reduced dims) or per row. `magnitude`
// bounds the terms a value was summed from; rounding errors are proportional to it.
struct Expected {
  std::vector<double> value, magnitude;    // of out or dx
  std::vector<double> lse, lse_magnitude;  // forward only
};

Expected forward_reference(const softmax::ForwardParams& p);
Expected backward_reference(const softmax::BackwardParams& p);

// Offsets of a row, and of an element within its row.
int64_t row_offset(const softmax::Shape& shape, const int64_t* stride, int64_t row);
int64_t element_offset(const softmax::Shape& shape, const int64_t* stride, int64_t element);

}  // namespace fastops::test
