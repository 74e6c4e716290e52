// A probe runs one instruction on exact integers and returns the raw words it left; `manual`
// returns what the PTX manual says they are, stated independently of csrc/simt. The same probes run
// on a GPU (nvcc, main.cu) and on the host (g++, tests/simt/test_conformance.py).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"
#ifdef SIMT_HOST
#include "simt/tensors.h"
#endif

namespace conformance {

using Words = std::vector<uint32_t>;

struct Probe {
  std::string name;
  int sm;  // least compute capability, as 80 or 90
  Words (*run)();
  Words (*manual)();
};

std::vector<Probe> thread_probes();
std::vector<Probe> warp_probes();
std::vector<Probe> hopper_probes();
std::vector<Probe> tma_probes();
std::vector<Probe> wgmma_probes();
std::vector<Probe> all_probes();

// Small integers that look random, the same everywhere.
class Integers {
 public:
  explicit Integers(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  uint32_t below(uint32_t n) {
    state_ = state_ * 1664525u + 1013904223u;
    return (state_ >> 8) % n;
  }
  float small() { return float(below(17)) - 8.0f; }

 private:
  uint32_t state_;
};

inline Words counting(size_t count) {
  Words words(count);
  for (size_t i = 0; i < count; ++i) words[i] = uint32_t(i * 7 + 3);
  return words;
}

// Words that a kernel reads or writes: the GPU's memory, or on the host a declared tensor.
class Array {
 public:
  // Of elements of `bytes` bytes, for the checks of the host.
  static Array input(const Words& words, int bytes = 4) { return Array(words, true, bytes); }
  static Array output(size_t count, int bytes = 4) {
    return Array(Words(count, 0xdeadbeefu), false, bytes);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Words words() const;
  uint32_t* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  ~Array();

 private:
  Array(const Words& words, bool read_only, int element_bytes);
  size_t count_;
  uint32_t* data_;
};

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, unsigned cluster,
            const Args&... args) {
  fastops::cuda::launch(kernel, {"probe", grid, block, shared, cluster, nullptr}, args...);
}

#ifdef SIMT_HOST

// The arrays of one probe, for as long as it runs.
inline simt::Tensors*& declared() {
  static simt::Tensors* tensors = nullptr;
  return tensors;
}

inline Array::Array(const Words& words, bool read_only, int element_bytes) : count_(words.size()) {
  data_ = static_cast<uint32_t*>(aligned_alloc(1024, (count_ * 4 + 1023) / 1024 * 1024));
  for (size_t i = 0; i < count_; ++i) data_[i] = words[i];
  declared()->add({read_only ? "in" : "out",
                   data_,
                   count_ * 4,
                   size_t(element_bytes),
                   read_only ? simt::Access::read : simt::Access::read_write,
                   false,
                   {},
                   {}});
}
inline Array::~Array() { free(data_); }
inline Words Array::words() const { return Words(data_, data_ + count_); }

#else

inline Array::Array(const Words& words, bool, int) : count_(words.size()) {
  fastops::cuda::check(cudaMalloc(&data_, count_ * 4), "cudaMalloc");
  fastops::cuda::check(cudaMemcpy(data_, words.data(), count_ * 4, cudaMemcpyHostToDevice),
                       "cudaMemcpy");
}
inline Array::~Array() { cudaFree(data_); }
inline Words Array::words() const {
  Words words(count_);
  fastops::cuda::check(cudaDeviceSynchronize(), "probe");
  fastops::cuda::check(cudaMemcpy(words.data(), data_, count_ * 4, cudaMemcpyDeviceToHost),
                       "cudaMemcpy");
  return words;
}

#endif

}  // namespace conformance
