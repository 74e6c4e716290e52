// csrc/cpu/parallel.h on torch's thread pool.
#include "cpu/parallel.h"

#include "bindings/torch_compat.h"

namespace fastops::cpu {

void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, fn, context));
}

int num_threads() {
  uint32_t threads = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

}  // namespace fastops::cpu
