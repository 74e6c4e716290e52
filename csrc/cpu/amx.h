// Whether the matrix extensions (AMX) may be used.
#pragma once

namespace fastops::cpu {

// Built, on this CPU, granted by the operating system, and not refused by FASTOPS_CPU_AMX=0.
bool amx_available();

}  // namespace fastops::cpu
