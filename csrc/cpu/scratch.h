// Per-thread working memory of the CPU kernels, kept between calls: a fresh allocation of a few
// megabytes would cost more in page faults than the kernel that uses it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastops::cpu {

// At least `bytes` of this thread's memory, aligned to a page; what was there is lost. Valid until
// the thread's next call. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

namespace {

// Cuts scratch into pieces of whole cache lines; without any, counts what they take.
class ScratchPieces {
 public:
  explicit ScratchPieces(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// lay(pieces) takes what it needs of this thread's scratch: once to measure it, once for good.
template <typename F>
inline void lay_thread_scratch(const F& lay) {
  ScratchPieces sizes;
  lay(sizes);
  ScratchPieces pieces(thread_scratch(size_t(sizes.bytes())));
  lay(pieces);
}

}  // namespace
}  // namespace fastops::cpu
