// The emulated kernels under AddressSanitizer: every good planted kernel and every probe must pass;
// named on the command line, a kernel with a bug that only AddressSanitizer can see must end the
// program.
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>

#include "conformance/probe.h"
#include "planted.h"

namespace {

// Past a local array, through a pointer: the checks of csrc/simt leave a thread's own stack alone.
__global__ void past_local_pointer(const int* index, float* out) {
  float values[4] = {};
  float* volatile p = values;
  p[index[0]] = 1.0f;
  out[threadIdx.x] = values[0];
}

__global__ void past_heap(const float* x, float* out, int n) { out[0] = x[n]; }

int overflow(const char* which) {
  if (std::strcmp(which, "local") == 0) {
    planted::Buffers b(64, 64);
    int* const index = b.x_ints();
    index[0] = 4;
    planted::run(past_local_pointer, 1, 32, 0, 1, index, b.out);
  } else {
    const auto x = std::make_unique<float[]>(8);
    planted::Buffers b(64, 64);
    planted::run(past_heap, 1, 1, 0, 1, x.get(), b.out, 8);
  }
  std::printf("simt_sanitize: the overflow of %s memory went unnoticed\n", which);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) return overflow(arguments[1]);
  int run = 0, failed = 0;
  const auto attempt = [&](const std::string& name, const auto& body) {
    ++run;
    try {
      if (body()) return;
      std::printf("simt_sanitize: %s: wrong result\n", name.c_str());
    } catch (const std::exception& error) {
      std::printf("simt_sanitize: %s: %s\n", name.c_str(), error.what());
    }
    ++failed;
  };
  for (int order = 0; order < 3; ++order) {
    simt::config() = {simt::Order(order), simt::Async(order % 2), 3};
    for (const auto& cases : {planted::thread_cases(), planted::matrix_cases(),
                              planted::async_cases(), planted::wgmma_cases()})
      for (const auto& c : cases)
        if (!*c.expected)
          attempt(c.name, [&] {
            c.body();
            return true;
          });
    for (const auto& probe : conformance::all_probes()) {
      simt::Tensors tensors;
      conformance::declared() = &tensors;
      attempt(probe.name, [&] { return probe.run() == probe.manual(); });
    }
  }
  std::printf("simt_sanitize: %d kernels, %d failed\n", run, failed);
  return failed != 0;
}
