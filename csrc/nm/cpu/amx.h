// Whether the matrix extensions (AMX) may be used, and the kernel that does.
#pragma once

#include "nm/nm.h"

namespace fastops::nm::cpu::amx {

// Built, on this CPU, granted by the operating system, and not refused by FASTOPS_CPU_AMX=0.
bool available();

void matmul(const MatmulParams& p);

}  // namespace fastops::nm::cpu::amx
