#include "simt/entry.h"

#include <cstring>
#include <map>
#include <stdexcept>

#include "simt/tensors.h"

namespace simt {
namespace {

std::map<std::string, void (*)(const Call&)>& entries() {
  static std::map<std::string, void (*)(const Call&)> all;
  return all;
}

}  // namespace

const Array& Call::array(const std::string& name) const {
  for (const Array& array : arrays)
    if (array.name == name) return array;
  throw std::runtime_error("simt: this entry needs an array named " + name);
}

double Call::number(const std::string& name, double absent) const {
  for (const auto& [key, value] : numbers)
    if (key == name) return value;
  return absent;
}

Entry::Entry(const char* name, void (*run)(const Call&)) { entries()[name] = run; }

void call(const std::string& name, const Call& call) {
  const auto entry = entries().find(name);
  if (entry == entries().end()) {
    std::string known;
    for (const auto& [other, run] : entries()) known += " " + other;
    throw std::runtime_error("simt: no entry named " + name + "; there are:" + known);
  }
  Tensors tensors;
  for (const Array& array : call.arrays) {
    int64_t last = 0;
    for (size_t d = 0; d < array.sizes.size(); ++d) last += (array.sizes[d] - 1) * array.strides[d];
    tensors.add({array.name.c_str(), array.data, size_t(last + 1) * size_t(array.element_bytes),
                 size_t(array.element_bytes), array.writable ? Access::write : Access::read,
                 array.writable, array.sizes, array.strides});
  }
  entry->second(call);
  tensors.require_written();
}

}  // namespace simt

// ---- For fastops._native, which loads this library at run time --------------------------------

struct simt_array {
  const char* name;
  void* data;
  int element_bytes, writable, dims;
  const int64_t *sizes, *strides;  // in elements
};

// The report, or "" where there is none.
extern "C" __attribute__((visibility("default"))) const char* simt_call(
    const char* name, const simt_array* arrays, int array_count, const char* const* number_names,
    const double* numbers, int number_count) {
  static std::string report;
  simt::Call call;
  for (int i = 0; i < array_count; ++i) {
    const simt_array& a = arrays[i];
    call.arrays.push_back({a.name,
                           a.data,
                           a.element_bytes,
                           a.writable != 0,
                           {a.sizes, a.sizes + a.dims},
                           {a.strides, a.strides + a.dims}});
  }
  for (int i = 0; i < number_count; ++i) call.numbers.emplace_back(number_names[i], numbers[i]);
  report.clear();
  try {
    simt::call(name, call);
  } catch (const std::exception& error) {
    report = error.what();
  }
  return report.c_str();
}
