// Memory that an op's result is about to be written to for the first time.
#pragma once

#include <cstdint>

namespace fastops::cpu {

// Asks for huge pages under a tensor of at least so many bytes that was just allocated. Where its
// memory is new to the process, as that of 32 MB always is with glibc, a page fault for every 4 KB
// costs several times what the kernels here take: 32 MB are touched in 12 ms by those, in 2.3 ms by
// huge ones (Zen 4, in a virtual machine). Memory that has its pages stays as it is.
inline constexpr int64_t kHugePagesFrom = int64_t{4} << 20;  // one whole huge page at least
void ask_for_huge_pages(void* data, int64_t bytes);

}  // namespace fastops::cpu
