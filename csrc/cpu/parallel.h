// Threads for the CPU kernels. The op library runs on torch's own pool (torch.set_num_threads is
// honoured); the torch-free native tests link a std::thread version of the same two functions.
#pragma once

#include <cstdint>

namespace fastops::cpu {

using RangeFn = void (*)(int64_t begin, int64_t end, void* context);

// Calls fn on disjoint ranges that cover [begin, end), each at least `grain` long except the last.
void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context);
int num_threads();

// `body(begin, end)` over [begin, end) in parallel.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  parallel_for(
      begin, end, grain,
      [](int64_t b, int64_t e, void* context) { (*static_cast<const Body*>(context))(b, e); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastops::cpu
