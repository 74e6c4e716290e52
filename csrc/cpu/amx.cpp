#include "cpu/amx.h"

#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"

#ifdef FASTOPS_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastops::cpu {

bool amx_available() {
#if defined(FASTOPS_HAS_AMX) && defined(__linux__)
  static const bool granted = [] {
    const char* wish = std::getenv("FASTOPS_CPU_AMX");
    if (wish && std::strcmp(wish, "0") == 0) return false;
    if (active_isa() != Isa::avx512) return false;
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kVbmi2 = 1u << 6, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(c & kVbmi2) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
    // Tile registers are saved only for processes that ask (arch_prctl ARCH_REQ_XCOMP_PERM).
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

}  // namespace fastops::cpu
