// Which instruction set the CPU kernels use: chosen once, from cpuid, or forced with
// FASTOPS_CPU_ISA=avx512|avx2|portable.
#pragma once

#include <cstdint>

namespace fastops::cpu {

enum class Isa : int8_t { portable, avx2, avx512 };
inline constexpr int kIsaCount = 3;

const char* name(Isa isa);
bool built(Isa isa);      // compiled into this library
bool supported(Isa isa);  // this machine can run it
// The best that is built and supported, or the forced one. Throws std::runtime_error when the
// forced one is unknown, not built or not supported.
Isa active_isa();
// Whether the cores are AMD's: which of two kernels is faster may differ between cores that run
// both.
bool is_amd();

}  // namespace fastops::cpu

// TABLE(isa) for the active instruction set, TABLE being a macro over the namespace of a build of
// the kernels.
#ifdef FASTOPS_HAS_AVX512
#define FASTOPS_ISA_AVX512(TABLE) \
  case ::fastops::cpu::Isa::avx512: return TABLE(avx512);
#else
#define FASTOPS_ISA_AVX512(TABLE)
#endif
#ifdef FASTOPS_HAS_AVX2
#define FASTOPS_ISA_AVX2(TABLE) \
  case ::fastops::cpu::Isa::avx2: return TABLE(avx2);
#else
#define FASTOPS_ISA_AVX2(TABLE)
#endif
#define FASTOPS_ACTIVE(TABLE)               \
  [] {                                      \
    switch (::fastops::cpu::active_isa()) { \
      FASTOPS_ISA_AVX512(TABLE)             \
      FASTOPS_ISA_AVX2(TABLE)               \
      default: return TABLE(portable);      \
    }                                       \
  }()
