// fastops._native.simt_call: emulated CUDA kernels on NumPy arrays. Only in builds with
// FASTOPS_SIMT.
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bindings/native_modules.h"

namespace py = pybind11;

namespace fastops::binding {
namespace {

// csrc/simt/entry.cpp
struct simt_array {
  const char* name;
  void* data;
  int element_bytes, writable, dims;
  const int64_t *sizes, *strides;
};
using Call = const char* (*)(const char*, const simt_array*, int, const char* const*, const double*,
                             int);

void simt_call(const std::string& library, const std::string& entry, const py::dict& inputs,
               const py::dict& outputs, const py::kwargs& numbers) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw py::value_error(dlerror());
  const auto call = reinterpret_cast<Call>(dlsym(handle, "simt_call"));
  if (!call) throw py::value_error(library + " has no simt_call");

  std::vector<simt_array> arrays;
  std::vector<std::string> names;
  std::vector<std::vector<int64_t>> extents;
  names.reserve(inputs.size() + outputs.size() + numbers.size());
  extents.reserve(2 * (inputs.size() + outputs.size()));
  const auto add = [&](const py::dict& group, bool writable) {
    for (const auto& [key, value] : group) {
      const auto array = py::cast<py::array>(value);
      if (writable && !array.writeable())
        throw py::value_error("fastops._native.simt_call: an output is read-only");
      names.push_back(py::cast<std::string>(key));
      auto& sizes = extents.emplace_back(array.shape(), array.shape() + array.ndim());
      auto& strides = extents.emplace_back();
      for (py::ssize_t d = 0; d < array.ndim(); ++d) {
        if (array.strides(d) < 0 || array.strides(d) % array.itemsize() != 0)
          throw py::value_error("fastops._native.simt_call: strides must be whole elements, >= 0");
        strides.push_back(array.strides(d) / array.itemsize());
      }
      arrays.push_back({names.back().c_str(), const_cast<void*>(array.data()),
                        static_cast<int>(array.itemsize()), writable,
                        static_cast<int>(array.ndim()), sizes.data(), strides.data()});
    }
  };
  add(inputs, false);
  add(outputs, true);
  std::vector<const char*> number_names;
  std::vector<double> values;
  for (const auto& [key, value] : numbers) {
    names.push_back(py::cast<std::string>(key));
    number_names.push_back(names.back().c_str());
    values.push_back(py::cast<double>(value));
  }
  const std::string report =
      call(entry.c_str(), arrays.data(), static_cast<int>(arrays.size()), number_names.data(),
           values.data(), static_cast<int>(values.size()));
  if (!report.empty()) throw std::runtime_error(report);
}

}  // namespace

void add_simt(py::module_& m) {
  m.def("simt_call", &simt_call, py::arg("library"), py::arg("entry"), py::arg("inputs"),
        py::arg("outputs"),
        "Runs an entry (csrc/simt/entry.h) of an emulated library on NumPy arrays by name, numbers "
        "as\n"
        "keyword arguments. RuntimeError: the report of the checks.");
}

}  // namespace fastops::binding
