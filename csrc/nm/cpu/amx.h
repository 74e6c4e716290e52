// The kernel that uses the matrix extensions (AMX).
#pragma once

#include "nm/nm.h"

namespace fastops::nm::cpu::amx {

void matmul(const MatmulParams& p);

}  // namespace fastops::nm::cpu::amx
