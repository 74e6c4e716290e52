// fastops._native: what is not a torch op. Build facts, the CPU's instruction sets, and the copy
// the benchmarks take as their roof.
#include <pybind11/pybind11.h>

#include "bindings/native_modules.h"
#include "cpu/isa.h"
#include "cpu/stream_copy.h"

namespace py = pybind11;

namespace {

// Any two contiguous buffers of one size; the GIL is released while the bytes move.
void stream_copy(const py::buffer& dst, const py::buffer& src, int threads) {
  const py::buffer_info to = dst.request(/*writable=*/true), from = src.request();
  const auto bytes = [](const py::buffer_info& b) { return b.size * b.itemsize; };
  if (!PyBuffer_IsContiguous(to.view(), 'A') || !PyBuffer_IsContiguous(from.view(), 'A') ||
      bytes(to) != bytes(from)) {
    throw py::value_error("fastops._native.stream_copy: expected contiguous buffers of one size");
  }
  py::gil_scoped_release release;
  fastops::cpu::stream_copy(to.ptr, from.ptr, static_cast<size_t>(bytes(to)), threads);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "fastops build information and CPU instruction sets";
  m.def(
      "cpu_isas",
      [] {
        py::list rows;
        for (int i = 0; i < fastops::cpu::kIsaCount; ++i) {
          const auto isa = static_cast<fastops::cpu::Isa>(i);
          rows.append(py::make_tuple(fastops::cpu::name(isa), fastops::cpu::built(isa),
                                     fastops::cpu::supported(isa)));
        }
        return rows;
      },
      "(name, built, supported) of each instruction set, least first.");
  m.def("active_isa", [] { return fastops::cpu::name(fastops::cpu::active_isa()); });
  m.def("stream_copy", &stream_copy, py::arg("dst"), py::arg("src"), py::arg("threads"),
        "Copies src to dst (buffers of one size) with non-temporal stores, past the cache.");
  fastops::binding::add_attention_plans(m);
  fastops::binding::add_softmax_plans(m);
  fastops::binding::add_nm_plans(m);
#ifdef FASTOPS_SIMT
  fastops::binding::add_simt(m);
#endif
}
