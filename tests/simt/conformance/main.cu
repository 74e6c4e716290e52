// The probes on a GPU: one line each, "name: word word ...", in hexadecimal, and on standard error
// which of them contradict the manual. tests/simt/record.py keeps the lines.
#include <cstdio>
#include <exception>

#include "conformance/probe.h"

int main() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::fprintf(stderr, "conformance: no CUDA device\n");
    return 2;
  }
  std::printf("device: %s\n", device.name);
  const int sm = device.major * 10 + device.minor;
  int wrong = 0, run = 0;
  for (const auto& probe : conformance::all_probes()) {
    if (probe.sm > sm || (probe.sm >= 90 && device.major != 9)) continue;
    ++run;
    try {
      const auto words = probe.run();
      std::printf("%s:", probe.name.c_str());
      for (uint32_t word : words) std::printf(" %08x", word);
      std::printf("\n");
      if (words == probe.manual()) continue;
      std::fprintf(stderr, "conformance: %s differs from the manual\n", probe.name.c_str());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "conformance: %s: %s\n", probe.name.c_str(), error.what());
    }
    ++wrong;
  }
  std::fprintf(stderr, "conformance: %d probes, %d as the manual says\n", run, run - wrong);
  return wrong ? 1 : 0;
}
