// Per-thread working memory of the CPU kernels, kept between calls: a fresh allocation of a few
// megabytes would cost more in page faults than the kernel that uses it.
#pragma once

#include <cstddef>

namespace fastops::cpu {

// At least `bytes` of this thread's memory, aligned to a page; what was there is lost. Valid until
// the thread's next call. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

}  // namespace fastops::cpu
