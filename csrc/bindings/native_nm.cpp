// fastops._native.nm_cuda_plan: the choice between the kernels of sparse tensor cores, as a
// function of plain numbers.
#include "bindings/native_modules.h"
#include "nm/cuda/heuristics.h"

namespace py = pybind11;

namespace fastops::binding {
namespace {

using namespace nm::cuda;

const char* name(SparseKernel kernel) {
  switch (kernel) {
    case SparseKernel::stream: return "stream";
    case SparseKernel::tiles: return "tiles";
    case SparseKernel::wgmma: return "wgmma";
  }
  return "";
}

py::dict nm_cuda_plan(int64_t rows, int64_t out, int64_t in, int sm_count, bool wgmma) {
  const SparsePlan p = plan_sparse(out, in, rows, sm_count, wgmma);
  py::dict result;
  result["kernel"] = name(p.kernel);
  result["outputs"] = p.outputs;
  result["rows"] = p.rows;
  result["cluster"] = p.cluster;
  result["splits"] = p.splits;
  return result;
}

}  // namespace

void add_nm_plans(py::module_& m) {
  m.def("nm_cuda_plan", &nm_cuda_plan, py::kw_only(), py::arg("rows"), py::arg("out"),
        py::arg("in_features"), py::arg("sm_count") = 132, py::arg("wgmma") = false,
        "The kernel and its cut for x of `rows` rows and a weight that satisfies 2:4, on a device "
        "(default: an H200); wgmma: its own tensor-core instructions may be used.");
}

}  // namespace fastops::binding
