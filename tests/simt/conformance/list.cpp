// All probes, and the C functions through which Python runs them on the host.
#include <exception>

#include "conformance/probe.h"

namespace conformance {

std::vector<Probe> all_probes() {
  std::vector<Probe> probes = thread_probes();
  for (auto more : {warp_probes(), hopper_probes(), tma_probes(), wgmma_probes()})
    probes.insert(probes.end(), more.begin(), more.end());
  return probes;
}

}  // namespace conformance

#ifdef SIMT_HOST

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const std::vector<conformance::Probe>& probes() {
  static const auto instance = conformance::all_probes();
  return instance;
}

conformance::Words result;
std::string error;

}  // namespace

EXPORT int conformance_count() { return int(probes().size()); }
EXPORT const char* conformance_name(int i) { return probes()[size_t(i)].name.c_str(); }

// Runs probe i; how many words it left, or -1 and conformance_error().
EXPORT int conformance_run(int i) {
  simt::Tensors tensors;
  conformance::declared() = &tensors;
  try {
    result = probes()[size_t(i)].run();
    return int(result.size());
  } catch (const std::exception& e) {
    error = e.what();
    return -1;
  }
}
EXPORT int conformance_manual(int i) {
  result = probes()[size_t(i)].manual();
  return int(result.size());
}
EXPORT const uint32_t* conformance_words() { return result.data(); }
EXPORT const char* conformance_error() { return error.c_str(); }

#endif
