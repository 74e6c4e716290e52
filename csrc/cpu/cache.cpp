#include "cpu/cache.h"

#include <unistd.h>

namespace fastops::cpu {

int64_t last_level_cache() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (const long found = sysconf(_SC_LEVEL3_CACHE_SIZE); found > 0) return int64_t(found);
#endif
    return int64_t{32} << 20;
  }();
  return bytes;
}

}  // namespace fastops::cpu
