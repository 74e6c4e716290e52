// Launchers that tests call by name on NumPy arrays: fastops._native.simt_call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

struct Array {
  std::string name;
  void* data;
  int element_bytes;
  bool writable;  // a kernel may write it; what was in it counts as not initialised
  std::vector<int64_t> sizes, strides;  // in elements
};

struct Call {
  std::vector<Array> arrays;
  std::vector<std::pair<std::string, double>> numbers;

  const Array& array(const std::string& name) const;  // throws if there is none
  double number(const std::string& name, double absent) const;
};

// Registers `run` for as long as it lives: a namespace-scope constant beside the kernels.
struct Entry {
  Entry(const char* name, void (*run)(const Call&));
};

// Runs an entry with its arrays declared to the checks; every element of a writable one must be
// written.
void call(const std::string& name, const Call& call);

}  // namespace simt
