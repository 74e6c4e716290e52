// Launching a kernel on the host, and what tests set beforehand.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

namespace simt {

struct Device {
  int sm_count = 4;
  int major = 9;
  int minor = 0;
  int shared_per_block_optin = 232448;

  int l2_bytes() const { return sm_count * 384 * 1024; }  // as of an A100 or H200 for each
};
int shared_optin(int major);  // bytes of shared memory a block of that architecture may have
// Read once from FASTOPS_SIMT_DEVICE="sms,major,minor"; heuristics see it as the GPU.
Device& device();

// The order in which runnable threads run. Results and reports must not depend on it.
enum class Order : int { ascending, descending, random };
// When an asynchronous copy moves its bytes: as late as it may, or at once.
enum class Async : int { late, early };

struct Config {
  Order order = Order::ascending;
  Async async = Async::late;
  uint64_t seed = 1;
};
// Read once from FASTOPS_SIMT_ORDER, FASTOPS_SIMT_ASYNC, FASTOPS_SIMT_SEED.
Config& config();

struct Grid {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  unsigned cluster;  // blocks per cluster along x
};

// Runs `entry(context)` as every thread of the grid. [args, args + args_bytes) holds the kernel's
// parameters, which every thread may read. Throws std::runtime_error with the reports, if any.
void run_grid(const Grid& grid, void (*entry)(const void*), const void* context, const void* args,
              size_t args_bytes);

template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            unsigned cluster, const Args&... args) {
  using Tuple = std::tuple<std::remove_cv_t<Params>...>;
  struct Call {
    void (*kernel)(Params...);
    Tuple args;
  };
  const Call call{kernel, Tuple(args...)};
  run_grid(
      Grid{name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, cluster},
      [](const void* context) {
        const auto& c = *static_cast<const Call*>(context);
        std::apply(c.kernel, c.args);
      },
      &call, &call, sizeof(call));
}

}  // namespace simt
