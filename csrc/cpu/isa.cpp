#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/check.h"

namespace fastops::cpu {

const char* name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "unknown";
}

bool built(Isa isa) {
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2:
#ifdef FASTOPS_HAS_AVX2
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#ifdef FASTOPS_HAS_AVX512
      return true;
#else
      return false;
#endif
  }
  return false;
}

bool supported(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  // These ask the operating system too: a CPU flag is no use where the wide registers are not
  // saved.
  __builtin_cpu_init();
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa active_isa() {
  static const Isa chosen = [] {
    if (const char* forced = std::getenv("FASTOPS_CPU_ISA"); forced && *forced) {
      for (int i = 0; i < kIsaCount; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (std::strcmp(forced, name(isa)) != 0) continue;
        FASTOPS_CHECK(built(isa), "FASTOPS_CPU_ISA=", forced, ": not compiled into this build");
        FASTOPS_CHECK(supported(isa), "FASTOPS_CPU_ISA=", forced,
                      ": this machine's CPU does not have it");
        return isa;
      }
      fail("FASTOPS_CPU_ISA=", forced, ": expected avx512, avx2 or portable");
    }
    for (Isa isa : {Isa::avx512, Isa::avx2})
      if (built(isa) && supported(isa)) return isa;
    return Isa::portable;
  }();
  return chosen;
}

bool is_amd() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace fastops::cpu
