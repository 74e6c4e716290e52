// The memory a launch may touch, declared by whoever calls the launcher.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace simt {

enum class Access : uint8_t { read = 1, write = 2, read_write = 3 };

// `sizes` and `strides` (in elements, not negative) say which elements of the span
// [data, data + bytes) exist, so that gaps count as outside; empty sizes: the whole span.
struct Tensor {
  const char* name = "";
  const void* data = nullptr;
  size_t bytes = 0;
  size_t element_bytes = 1;
  Access access = Access::read;
  bool must_be_written = false;  // every element of it, see require_written
  std::vector<int64_t> sizes, strides;
};

// The tensors that launches within its lifetime may touch. What overlaps is joined: an output on
// top of its input is one tensor that may be read and written. Readable tensors are taken as
// initialised; one that is only written must be written before a kernel reads it back.
class Tensors {
 public:
  Tensors();
  ~Tensors();
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  void add(const Tensor& tensor);
  // A tensor of any strides; if it is only written, all of it must be. No memory or no element:
  // nothing.
  void add(const char* name, const void* data, size_t element_bytes, std::vector<int64_t> sizes,
           std::vector<int64_t> strides, Access access);
  // A contiguous one.
  void add(const char* name, const void* data, size_t element_bytes, std::vector<int64_t> sizes,
           Access access);
  // Scratch of a launcher. It holds nothing a kernel may rely on, so it starts as NaN.
  void* workspace(size_t bytes);
  // Throws if an element of a tensor that launches were to write has not been written.
  void require_written() const;

  // Runs a launcher on them.
  template <typename Params>
  void run(const Params& p, void (*launch)(const Params&, void* stream)) const {
    launch(p, nullptr);
    require_written();
  }

 private:
  std::vector<double> workspace_;
};

}  // namespace simt
