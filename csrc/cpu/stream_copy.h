// The roof the benchmarks measure against: a copy that does nothing but move bytes.
#pragma once

#include <cstddef>

namespace fastops::cpu {

// Copies `bytes` from src to dst on `threads` threads, in equal parts, with non-temporal stores
// where the machine has them: dst is not read into the cache first, as a plain store would.
void stream_copy(void* dst, const void* src, size_t bytes, int threads);

}  // namespace fastops::cpu
