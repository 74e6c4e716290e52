// The CUDA launchers of the family on the host, for tests (csrc/simt): the launchers of nm.h, with
// every operand declared to the checks.
#pragma once

#include "nm/nm.h"

namespace fastops::nm::emulated {

Kind choose_kind(const Weight& weight, DType dtype, int64_t rows, bool transposed);
void select(const SelectParams& p);
void compress(const CompressParams& p);
void decompress(const DecompressParams& p);
void check(const CheckParams& p);
PackSizes pack_sizes(PackParams& p);
void pack(const PackParams& p);
void gather(const GatherParams& p);
void matmul(const MatmulParams& p);
void weight_grad(const WeightGradParams& p);

}  // namespace fastops::nm::emulated
