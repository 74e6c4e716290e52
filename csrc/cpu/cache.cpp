#include "cpu/cache.h"

#include <unistd.h>

#include <cstdio>

namespace fastops::cpu {
namespace {

// As Linux knows it: bytes of the first CPU's last cache, 0 where it does not say. sysconf asks the
// CPU alone, which in a virtual machine may tell of all the host's caches together.
int64_t linux_last_level_cache() {
  int64_t bytes = 0;
  for (int index = 0;; ++index) {
    char path[64];
    std::snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    std::FILE* file = std::fopen(path, "r");
    if (!file) return bytes;
    long long size = 0;
    char unit = 0;
    if (std::fscanf(file, "%lld%c", &size, &unit) >= 1)
      bytes = size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
    std::fclose(file);
  }
}

}  // namespace

int64_t last_level_cache() {
  static const int64_t bytes = [] {
    if (const int64_t found = linux_last_level_cache(); found > 0) return found;
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (const long found = sysconf(_SC_LEVEL3_CACHE_SIZE); found > 0) return int64_t(found);
#endif
    return int64_t{32} << 20;
  }();
  return bytes;
}

}  // namespace fastops::cpu
