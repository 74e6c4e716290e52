// The caches of this machine.
#pragma once

#include <cstdint>

namespace fastops::cpu {

// Bytes of the last-level cache, or a common size where the system does not tell.
int64_t last_level_cache();

}  // namespace fastops::cpu
