// Which kernels have run, and how: tests/simt/coverage.py holds it against those there are.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <tuple>

#include "simt/machine.h"

namespace simt {

// Adds a line `library address order async shared` (bytes of dynamic shared memory) to the file
// that FASTOPS_SIMT_COVERAGE names, once for each. Written at once: processes of pytest-xdist end
// without calling destructors.
void note_coverage(const void* kernel, size_t shared_bytes) {
  static const char* const path = std::getenv("FASTOPS_SIMT_COVERAGE");
  if (!path) return;
  static std::set<std::tuple<const void*, Order, Async, size_t>> noted;
  if (!noted.emplace(kernel, config().order, config().async, shared_bytes).second) return;
  Dl_info info{};
  if (!dladdr(kernel, &info)) return;
  const char* slash = std::strrchr(info.dli_fname, '/');
  static const char* const orders[] = {"ascending", "descending", "random"};
  std::FILE* file = std::fopen(path, "a");
  if (!file) return;
  std::fprintf(file, "%s %tx %s %s %zu\n", slash ? slash + 1 : info.dli_fname,
               static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase),
               orders[int(config().order)], config().async == Async::late ? "late" : "early",
               shared_bytes);
  std::fclose(file);
}

}  // namespace simt
