#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

#include "cpu/call_scratch.h"

namespace fastops::cpu {
namespace {

constexpr size_t kPage = 4096;

struct Buffer {
  void* data = nullptr;
  size_t size = 0;

  ~Buffer() { std::free(data); }
};

void* grow(Buffer& buffer, size_t bytes) {
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = 0;
    const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    buffer.data = std::aligned_alloc(kPage, rounded);
    if (!buffer.data) throw std::bad_alloc();
    buffer.size = rounded;
  }
  return buffer.data;
}

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Buffer buffer;
  return grow(buffer, bytes);
}

void* call_scratch(size_t bytes) {
  thread_local Buffer buffer;
  return grow(buffer, bytes);
}

}  // namespace fastops::cpu
