#include "cpu/fresh_memory.h"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace fastops::cpu {

void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto at = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (at + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (at + uintptr_t(bytes)) / kHugePage * kHugePage;
  // Advice: where the system does not take it, pages stay small.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastops::cpu
