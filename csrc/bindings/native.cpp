// fastops._native: what is not a torch op. Build facts and the CPU's instruction sets.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "fastops build information and CPU instruction sets";
  m.def("cpu_isas", [] {
    py::list rows;
    for (int i = 0; i < fastops::cpu::kIsaCount; ++i) {
      const auto isa = static_cast<fastops::cpu::Isa>(i);
      rows.append(py::make_tuple(fastops::cpu::name(isa), fastops::cpu::built(isa),
                                 fastops::cpu::supported(isa)));
    }
    return rows;
  }, "(name, built, supported) of each instruction set, least first.");
  m.def("active_isa", [] { return fastops::cpu::name(fastops::cpu::active_isa()); });
}
