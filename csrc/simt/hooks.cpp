// The sanitizers' callbacks. Kernel files are compiled with -fsanitize=thread,bounds,shift and
// linked without the sanitizers' libraries: every load and store of a kernel arrives here.
#include <cstddef>
#include <cstdint>

#include "simt/machine.h"
#include "simt/memory.h"

namespace simt {

Thread* self = nullptr;

namespace {

inline __attribute__((always_inline)) void touch(const void* p, size_t bytes, bool aligned,
                                                 Touch kind, const void* caller) {
  if (self) memory().access(p, bytes, aligned, kind, caller);
}

}  // namespace
}  // namespace simt

#define SIMT_HOOK extern "C" __attribute__((visibility("hidden"))) void
#define SIMT_ACCESS(name, bytes, aligned, kind)                                     \
  SIMT_HOOK name(void* p);                                                          \
  SIMT_HOOK name(void* p) {                                                         \
    simt::touch(p, bytes, aligned, simt::Touch::kind, __builtin_return_address(0)); \
  }
#define SIMT_ACCESSES(bytes)                                    \
  SIMT_ACCESS(__tsan_read##bytes, bytes, true, read)            \
  SIMT_ACCESS(__tsan_write##bytes, bytes, true, write)          \
  SIMT_ACCESS(__tsan_volatile_read##bytes, bytes, true, read)   \
  SIMT_ACCESS(__tsan_volatile_write##bytes, bytes, true, write) \
  SIMT_ACCESS(__tsan_unaligned_read##bytes, bytes, false, read) \
  SIMT_ACCESS(__tsan_unaligned_write##bytes, bytes, false, write)
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)

#define SIMT_RANGE(name, kind)                                                    \
  SIMT_HOOK name(void* p, size_t bytes);                                          \
  SIMT_HOOK name(void* p, size_t bytes) {                                         \
    simt::touch(p, bytes, false, simt::Touch::kind, __builtin_return_address(0)); \
  }
SIMT_RANGE(__tsan_read_range, read)
SIMT_RANGE(__tsan_write_range, write)

SIMT_HOOK __tsan_init();
SIMT_HOOK __tsan_init() {}

// ---- -fsanitize=bounds,shift: an index outside a local or shared array ------------------------

namespace {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

void report(const SourceLocation& where, const char* what) {
  if (!simt::self) return;
  simt::machine().fail(simt::Check::index_bounds, std::string(what) + "\n    at " + where.file +
                                                      ":" + std::to_string(where.line));
}

}  // namespace

SIMT_HOOK __ubsan_handle_out_of_bounds(const SourceLocation* where, uintptr_t);
SIMT_HOOK __ubsan_handle_out_of_bounds(const SourceLocation* where, uintptr_t index) {
  report(*where, ("uses index " + std::to_string(int64_t(index)) +
                  " of an array that has no such "
                  "element")
                     .c_str());
}
SIMT_HOOK __ubsan_handle_shift_out_of_bounds(const SourceLocation* where, uintptr_t, uintptr_t);
SIMT_HOOK __ubsan_handle_shift_out_of_bounds(const SourceLocation* where, uintptr_t, uintptr_t) {
  report(*where, "shifts by more bits than the value has");
}
