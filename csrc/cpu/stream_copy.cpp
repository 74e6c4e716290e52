#include "cpu/stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastops::cpu {
namespace {

constexpr size_t kLine = 64;
// Far enough to hide DRAM latency, and across the page boundary at which hardware prefetchers stop.
constexpr size_t kPrefetchBytes = 8192;

// Every ISA level has 16-byte non-temporal stores, and four of them fill a write-combining buffer
// as one 64-byte store does, so the roof needs no variant per ISA.
void copy_part(char* dst, const char* src, size_t bytes) {
#if defined(__SSE2__)
  const size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(dst) % kLine);
  std::memcpy(dst, src, head);
  const size_t lines = (bytes - head) / kLine;
  char* d = dst + head;
  const char* s = src + head;
  for (size_t i = 0; i < lines; ++i, d += kLine, s += kLine) {
    _mm_prefetch(s + kPrefetchBytes, _MM_HINT_T1);
    __m128i v[4];
    for (int k = 0; k < 4; ++k) v[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s) + k);
    for (int k = 0; k < 4; ++k) _mm_stream_si128(reinterpret_cast<__m128i*>(d) + k, v[k]);
  }
  _mm_sfence();
  std::memcpy(d, s, bytes - head - lines * kLine);
#else
  std::memcpy(dst, src, bytes);
#endif
}

}  // namespace

void stream_copy(void* dst, const void* src, size_t bytes, int threads) {
  const size_t parts = static_cast<size_t>(std::max(threads, 1));
  // Parts end on page boundaries, so that no two threads write one page.
  const size_t part = (bytes / parts + 4095) / 4096 * 4096;
  const auto copy = [=](size_t i) {
    const size_t begin = std::min(bytes, i * part), end = std::min(bytes, begin + part);
    copy_part(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin, end - begin);
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < parts; ++i) others.emplace_back(copy, i);
  copy(0);
  for (auto& thread : others) thread.join();
}

}  // namespace fastops::cpu
