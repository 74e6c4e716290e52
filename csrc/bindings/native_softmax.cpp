// fastops._native.softmax_cuda_plan: the CUDA heuristics as a function of plain numbers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "bindings/native_modules.h"
#include "softmax/cuda/heuristics.h"

namespace py = pybind11;

namespace fastops::binding {
namespace {

using namespace softmax::cuda;

const char* name(Kernel kernel) {
  switch (kernel) {
    case Kernel::rows: return "rows";
    case Kernel::ring: return "ring";
    case Kernel::block_row: return "block_row";
    case Kernel::stream: return "stream";
    case Kernel::cluster: return "cluster";
    case Kernel::split: return "split";
    case Kernel::column: return "column";
    case Kernel::strided: return "strided";
  }
  return "";
}

DType dtype_of(const std::string& text) {
  if (text == "float32") return DType::f32;
  if (text == "float64") return DType::f64;
  if (text == "float16") return DType::f16;
  if (text == "bfloat16") return DType::bf16;
  throw py::value_error("fastops._native.softmax_cuda_plan: unknown dtype " + text);
}

py::dict softmax_cuda_plan(int64_t rows, int64_t n, const std::string& dtype, bool backward,
                           bool full, bool aligned, bool contiguous, int64_t columns, bool dense,
                           bool log, int sm_count, int major, int shared_optin, bool hopper,
                           std::array<int, 5> clusters) {
  Problem q;
  q.rows = rows;
  q.n = n;
  q.in = dtype_of(dtype);
  q.tuned = true;
  q.contiguous = contiguous;
  q.columns = columns > 0;
  q.rows_fast = columns > 0;
  q.last_row_dim = columns > 0 ? columns : rows;
  q.aligned = aligned;
  q.dense = dense;
  q.log = log;
  q.full = full;
  q.backward = backward;
  q.inputs = backward ? 2 : 1;
  const Plan p = plan(q, Device{sm_count, major, 0, shared_optin, hopper, clusters});
  py::dict result;
  result["kernel"] = name(p.kernel);
  result["vecs"] = p.vecs;
  result["lanes"] = p.lanes;
  result["parts"] = p.parts;
  result["threads"] = p.threads;
  result["slots"] = p.slots;
  result["beyond"] = p.beyond;
  result["group"] = p.group;
  result["loop"] = p.loop;
  result["blocks_per_row"] = p.blocks_per_row;
  result["chunk"] = p.chunk;
  result["blocks"] = p.blocks;
  result["shared_bytes"] = p.shared_bytes;
  result["workspace_bytes"] = p.workspace_bytes;
  result["rows_in_flight"] = p.kernel == Kernel::rows ? rows_in_flight(q, p.vecs) : 1;
  return result;
}

}  // namespace

void add_softmax_plans(py::module_& m) {
  m.def("softmax_cuda_plan", &softmax_cuda_plan, py::kw_only(), py::arg("rows"), py::arg("n"),
        py::arg("dtype"), py::arg("backward") = false, py::arg("full") = false,
        py::arg("aligned") = true, py::arg("contiguous") = true, py::arg("columns") = 0,
        py::arg("dense") = false, py::arg("log") = false, py::arg("sm_count") = 132,
        py::arg("major") = 9, py::arg("shared_optin") = 232448, py::arg("hopper") = false,
        py::arg("clusters") = std::array<int, 5>{132, 66, 33, 16, 8},
        "The kernel and its cut for a softmax problem on a device (default: an H200).");
}

}  // namespace fastops::binding
