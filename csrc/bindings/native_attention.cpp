// fastops._native.attention_cuda_plan: the CUDA heuristics as a function of plain numbers.
#include <pybind11/pybind11.h>

#include <string>

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

// `part`: "forward", or of the backward "by query" or "by key".
py::dict attention_cuda_plan(const std::string& part, int64_t block_q, int64_t block_kv,
                             int64_t seq_q, int64_t seq_kv, int64_t head_dim, int64_t value_dim,
                             int64_t group, bool dense, bool shared_lists, bool floats,
                             bool aligned, bool hopper) {
  const bool by_key = part == "by key", forward = part == "forward";
  if (!by_key && !forward && part != "by query")
    throw py::value_error("attention_cuda_plan: no part \"" + part + "\"");
  attention::Problem p;
  p.dtype = floats ? DType::f32 : DType::bf16;
  p.heads = group;
  p.kv_heads = 1;
  p.seq_q = seq_q;
  p.seq_kv = seq_kv;
  p.mask.block_q = block_q;
  p.mask.block_kv = block_kv;
  const int64_t listed = 0;
  for (attention::BlockLists* lists : {&p.mask.by_query, &p.mask.by_key}) {
    lists->heads = shared_lists ? 1 : group;
    lists->offsets = dense ? nullptr : &listed;
  }
  const int channels = padded_channels(head_dim, value_dim);
  const HopperCut cut = forward ? plan_hopper_forward(p) : plan_hopper_backward(p, by_key);
  py::dict result;
  const Kernel kernel = forward ? plan_forward_kernel(p.dtype, aligned, hopper, cut)
                                : plan_backward_kernel(p.dtype, aligned, channels, hopper, cut);
  result["kernel"] = name(kernel);
  result["consumers"] = cut.consumers;
  result["rows"] = cut.rows;
  result["pack"] = cut.pack;
  if (forward) {
    const int filled = hopper_channels(head_dim, value_dim);
    result["channels"] = filled;
    result["columns"] = hopper_columns(filled, cut.consumers);
    result["blocks"] = hopper_blocks(filled, cut.consumers);
  }
  return result;
}

py::dict attention_cuda_order(bool by_key, int64_t batch, int64_t heads, int64_t kv_heads,
                              int64_t mask_batch, int64_t mask_heads, int64_t seq_q, int64_t seq_kv,
                              int64_t block_q, int64_t block_kv, int64_t head_dim, bool dense,
                              int64_t tile_rows, int64_t pack, int64_t wave, int64_t l2_bytes,
                              int columns) {
  attention::Problem p;
  p.dtype = DType::bf16;
  p.batch = batch;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.seq_q = seq_q;
  p.seq_kv = seq_kv;
  p.head_dim = p.value_dim = head_dim;
  p.mask.block_q = block_q;
  p.mask.block_kv = block_kv;
  attention::BlockLists& lists = by_key ? p.mask.by_key : p.mask.by_query;
  const int64_t listed = 0, length = by_key ? seq_kv : seq_q, block = by_key ? block_kv : block_q;
  lists.batch = mask_batch;
  lists.heads = mask_heads;
  lists.rows = (length + block - 1) / block;
  lists.offsets = dense ? nullptr : &listed;
  RowOrder order = plan_order(p, by_key, tile_rows, pack, wave, l2_bytes);
  HopperCut cut;
  cut.block_listed = int(block_kv);
  RowSplits splits;
  if (columns > 0) splits = plan_splits(p, cut, columns, wave, order);
  py::dict result;
  result["sorted"] = order.sorted;
  result["rows"] = order.rows;
  result["parts"] = order.parts;
  result["heads"] = order.heads;
  result["samples_inner"] = order.samples_inner;
  result["lists"] = order.lists;
  result["members"] = order.members;
  result["section"] = py::make_tuple(order.section_lists, order.section_heads);
  result["repeats"] = order.repeats;
  result["tiles"] = order.tiles;
  result["slots"] = splits.slots;
  result["sections"] = splits.sections;
  return result;
}

}  // namespace

void add_attention_plans(py::module_& m) {
  m.def(
      "attention_cuda_order", &attention_cuda_order, py::kw_only(), py::arg("by_key") = false,
      py::arg("batch") = 1, py::arg("heads") = 8, py::arg("kv_heads") = 8,
      py::arg("mask_batch") = 1, py::arg("mask_heads") = 1, py::arg("seq_q") = 8192,
      py::arg("seq_kv") = 8192, py::arg("block_q") = 128, py::arg("block_kv") = 128,
      py::arg("head_dim") = 128, py::arg("dense") = false, py::arg("tile_rows") = 128,
      py::arg("pack") = 1, py::arg("wave") = 132, py::arg("l2_bytes") = 50 << 20,
      py::arg("columns") = 0,
      "How the thread blocks of a part of an attention problem in bf16 are numbered: whether rows "
      "are sorted, and in which sections (lists, heads of each). columns: of a tile, where rows "
      "may "
      "be split.");
  m.def(
      "attention_cuda_plan", &attention_cuda_plan, py::kw_only(), py::arg("part") = "forward",
      py::arg("block_q") = 128, py::arg("block_kv") = 128, py::arg("seq_q") = 4096,
      py::arg("seq_kv") = 4096, py::arg("head_dim") = 128, py::arg("value_dim") = 128,
      py::arg("group") = 1, py::arg("dense") = false, py::arg("shared_lists") = true,
      py::arg("floats") = false, py::arg("aligned") = true, py::arg("hopper") = true,
      "The kernel of a part of an attention problem (`group` query heads a kv head), and its cut.");
}

}  // namespace fastops::binding
