// The native tests' whole framework: a registry, a CHECK, and memory that notices wrong accesses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace fastops::test {

using TestFn = void (*)();

struct Registration {
  Registration(const char* name, TestFn fn);
};

#define FASTOPS_TEST(name)                                                     \
  static void name();                                                          \
  static const ::fastops::test::Registration registration_##name(#name, name); \
  static void name()

// Counts a failure of the running test and prints the first few.
bool report(bool ok, const char* file, int line, const char* text);

#define CHECK(condition) ::fastops::test::report(bool(condition), __FILE__, __LINE__, #condition)

// How many threads cpu::parallel_for uses (tests/native/parallel.cpp).
void set_num_threads(int threads);

// `bytes` of memory between two inaccessible pages, every byte preset to `fill`. The data ends
// exactly at the second page (`at_end`), or starts `offset` bytes after the first.
class GuardedBuffer {
 public:
  enum class Place : int8_t { at_start, at_end };

  GuardedBuffer() = default;
  GuardedBuffer(size_t bytes, uint8_t fill, Place place, size_t offset = 0);
  GuardedBuffer(GuardedBuffer&& other) noexcept;
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept;
  ~GuardedBuffer();

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // The accessible bytes around the data still hold the fill.
  bool margins_intact() const;

 private:
  uint8_t* mapping_ = nullptr;
  size_t mapped_ = 0;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  uint8_t fill_ = 0;
};

}  // namespace fastops::test
