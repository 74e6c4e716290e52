// fastops._native.attention_cuda_plan: the CUDA heuristics as a function of plain numbers.
#include <pybind11/pybind11.h>

#include "attention/cuda/heuristics.h"
#include "bindings/native_modules.h"

namespace py = pybind11;

namespace fastops::binding {
namespace {

using namespace attention::cuda;

const char* name(Kernel kernel) {
  switch (kernel) {
    case Kernel::plain: return "plain";
    case Kernel::mma: return "mma";
    case Kernel::hopper: return "hopper";
  }
  return "";
}

py::dict attention_cuda_plan(int64_t block_q, int64_t block_kv, int64_t seq_q, int64_t head_dim,
                             int64_t value_dim, int64_t group, bool dense, bool shared_lists,
                             bool floats, bool aligned, bool hopper) {
  const HopperCut cut = plan_hopper(block_q, block_kv, dense, seq_q, group, shared_lists);
  const int channels = padded_channels(head_dim, value_dim);
  const DType dtype = floats ? DType::f32 : DType::bf16;
  py::dict result;
  result["kernel"] = name(plan_forward(dtype, aligned, channels, hopper, cut));
  result["consumers"] = cut.consumers;
  result["rows"] = cut.rows;
  result["pack"] = cut.pack;
  result["columns"] = hopper_columns(channels, cut.consumers);
  result["tiles"] = cut.tiles;
  return result;
}

}  // namespace

void add_attention_plans(py::module_& m) {
  m.def("attention_cuda_plan", &attention_cuda_plan, py::kw_only(), py::arg("block_q") = 128,
        py::arg("block_kv") = 128, py::arg("seq_q") = 4096, py::arg("head_dim") = 128,
        py::arg("value_dim") = 128, py::arg("group") = 1, py::arg("dense") = false,
        py::arg("shared_lists") = true, py::arg("floats") = false, py::arg("aligned") = true,
        py::arg("hopper") = true,
        "The kernel of a forward attention problem (`group` query heads a kv head), and its cut.");
}

}  // namespace fastops::binding
