// Memory like thread_scratch's and apart from it: what a call prepares on the thread it is made on,
// for all the threads that work on it.
#pragma once

#include <cstddef>

namespace fastops::cpu {

void* call_scratch(size_t bytes);

}  // namespace fastops::cpu
