// What the planted kernels' files share: buffers, launching, and cases.
#pragma once

#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/simt.h"
#include "simt/tensors.h"

namespace planted {

inline constexpr int kThreads = 64;

// Tensors in one buffer with room around them, so that a stray access does not crash.
struct Buffers {
  static constexpr int kRoom = 4096;
  std::vector<float> storage = std::vector<float>(3 * kRoom);
  simt::Tensors tensors;

  float* x = storage.data() + kRoom / 2 / 4 * 4;
  float* out = x + kRoom;

  Buffers(int x_size, int out_size, simt::Access out_access = simt::Access::write) {
    x = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(x) + 15) / 16 * 16);
    for (int i = 0; i < x_size; ++i) x[i] = float(i);
    add("x", x, x_size, simt::Access::read);
    add("out", out, out_size, out_access);
  }

  void add(const char* name, const float* data, int size, simt::Access access) {
    tensors.add(
        {name, data, size_t(size) * 4, 4, access, access == simt::Access::write, {size}, {1}});
  }
  int* x_ints() {
    auto* ints = reinterpret_cast<int*>(x);
    for (int i = 0; i < kThreads * 4; ++i) ints[i] = i;
    return ints;
  }
  int* out_ints() { return reinterpret_cast<int*>(out); }
};

template <typename... Params, typename... Args>
void run(void (*kernel)(Params...), int blocks, int threads, size_t shared, unsigned cluster,
         const Args&... args) {
  simt::launch("planted", kernel, dim3(blocks), dim3(threads), shared, cluster, args...);
}

inline void require(bool right) {
  if (!right) throw std::runtime_error("wrong result");
}

struct Case {
  const char* name;
  const char* expected;  // the check that must speak, whatever the order; empty: none may
  std::function<void()> body;
};

std::vector<Case> thread_cases();
std::vector<Case> matrix_cases();
std::vector<Case> async_cases();
std::vector<Case> wgmma_cases();

// A kernel of 1024 inputs and as many outputs, of which it writes some.
struct Shape {
  int threads = kThreads, blocks = 1;
  unsigned cluster = 1;
  size_t shared = 0;
};
inline Case plain(const char* name, const char* expected, void (*kernel)(const float*, float*),
                  Shape shape = {}) {
  return {name, expected, [=] {
            Buffers b(1024, 1024, simt::Access::read_write);
            run(kernel, shape.blocks, shape.threads, shape.shared, shape.cluster, b.x, b.out);
          }};
}

// The same, and every output is as `right` says.
inline Case exact(const char* name, void (*kernel)(const float*, float*), Shape shape, int outputs,
                  float (*right)(int), const char* expected = "") {
  return {name, expected, [=] {
            Buffers b(1024, outputs);
            run(kernel, shape.blocks, shape.threads, shape.shared, shape.cluster, b.x, b.out);
            for (int i = 0; i < outputs; ++i) require(b.out[i] == right(i));
          }};
}

}  // namespace planted
