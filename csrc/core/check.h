// Errors of the binding layer. The public Python functions check first and raise TypeError or
// ValueError; these checks are what keeps a direct torch.ops.fastops.* call memory-safe.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastops {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  throw std::runtime_error(text.str());
}

}  // namespace fastops

// STD_TORCH_CHECK would put a function name and a source line before the text a user reads.
#define FASTOPS_CHECK(condition, ...) \
  do {                                \
    if (!(condition)) [[unlikely]]    \
      ::fastops::fail(__VA_ARGS__);   \
  } while (0)
