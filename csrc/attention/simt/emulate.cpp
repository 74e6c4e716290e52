#include "attention/simt/emulate.h"

#include <vector>

#include "attention/cuda/launch.h"
#include "attention/cuda/order.h"
#include "simt/entry.h"
#include "simt/tensors.h"

namespace fastops::attention::emulated {
namespace {

using simt::Access;

class Operands : public simt::Tensors {
 public:
  using Tensors::add;

  void add(const char* name, const Heads& t, const Problem& p, int64_t heads, int64_t length,
           int64_t channels, Access access) {
    add(name, t.data, size_of(p.dtype), {p.batch, heads, length, channels},
        {t.stride[0], t.stride[1], t.stride[2], 1}, access);
  }
  void add(const BlockLists& lists) {
    const int64_t rows = lists.batch * lists.heads * lists.rows;
    add("offsets", lists.offsets, 8, {rows + 1}, Access::read);
    add("indices", lists.indices, 4, {lists.nnz}, Access::read);
    add("partial_offsets", lists.partial_offsets, 8, {rows + 1}, Access::read);
    add("patterns", lists.patterns, 4, {lists.num_partial}, Access::read);
  }
  void add(const Problem& p) {
    add("q", p.q, p, p.heads, p.seq_q, p.head_dim, Access::read);
    add("k", p.k, p, p.kv_heads, p.seq_kv, p.head_dim, Access::read);
    add("v", p.v, p, p.kv_heads, p.seq_kv, p.value_dim, Access::read);
    add(p.mask.by_query);
    add(p.mask.by_key);
    const int64_t words = p.mask.block_q * p.mask.block_kv / 32;
    add("bits", p.mask.bits, 4, {p.mask.num_patterns * words}, Access::read);
    add("sinks", p.sinks, 4, {p.heads}, Access::read);
    const int64_t each = p.key_bias_stride[1] ? p.heads : 1;
    add("key_bias", p.key_bias, 4, {p.batch, each, p.seq_kv},
        {p.key_bias_stride[0], p.key_bias_stride[1], p.key_bias_stride[2]}, Access::read);
  }
};

// The order alone, for tests: `offsets` of `rows` rows a list, into an array of `nnz`. A list is
// `members` lists of the mask, a section `section` lists. The first half of `workspace` is the
// order.
void order(const simt::Call& call) {
  const auto number = [&](const char* name) { return unsigned(call.number(name, 1)); };
  const simt::Array& offsets = call.array("offsets");
  cuda::RowOrder order;
  order.rows = number("rows");
  order.members = number("members");
  order.lists = unsigned(offsets.sizes[0] - 1) / order.rows / order.members;
  order.section_lists = number("section");
  BlockLists lists;
  lists.offsets = static_cast<const int64_t*>(offsets.data);
  lists.nnz = int64_t(call.number("nnz", 0));
  cuda::sort_rows(lists, order, call.array("workspace").data, nullptr);
}

// The same with rows split: into `slots` pieces of a section at most, of whole tiles of `columns`.
// `out` is the workspace, in the layout of split_rows.
void split(const simt::Call& call) {
  const auto number = [&](const char* name) { return unsigned(call.number(name, 1)); };
  const simt::Array& offsets = call.array("offsets");
  cuda::RowOrder order;
  order.rows = number("rows");
  order.lists = unsigned(offsets.sizes[0] - 1) / order.rows;
  order.section_lists = number("section");
  cuda::RowSplits splits;
  splits.slots = number("slots");
  splits.columns = number("columns");
  splits.block = number("block");
  splits.sections = (order.lists + order.section_lists - 1) / order.section_lists;
  BlockLists lists;
  lists.offsets = static_cast<const int64_t*>(offsets.data);
  lists.nnz = int64_t(call.number("nnz", 0));
  cuda::split_rows(lists, order, splits, 0, 0, call.array("workspace").data, nullptr);
}
const simt::Entry kSplit("attention split", split);
const simt::Entry kOrder("attention order", order);

}  // namespace

void forward(ForwardParams& p) {
  Operands o;
  o.add(p);
  o.add("out", p.out, p, p.heads, p.seq_q, p.value_dim, Access::write);
  o.add("lse", p.lse, 4, {p.batch * p.heads * p.seq_q}, Access::write);
  p.workspace = o.workspace(cuda::forward_workspace(p));
  o.run(p, cuda::forward);
}

void backward(BackwardParams& p) {
  const int64_t rows = p.batch * p.heads * p.seq_q;
  Operands o;
  o.add(p);
  o.add("out", p.out, p, p.heads, p.seq_q, p.value_dim, Access::read);
  o.add("grad_out", p.grad_out, p, p.heads, p.seq_q, p.value_dim, Access::read);
  o.add("lse", p.lse, 4, {rows}, Access::read);
  o.add("grad_lse", p.grad_lse, 4, {rows}, Access::read);
  o.add("delta", p.delta, 4, {rows}, Access::write);
  o.add("grad_q", p.grad_q, p, p.heads, p.seq_q, p.head_dim, Access::write);
  o.add("grad_k", p.grad_k, p, p.kv_heads, p.seq_kv, p.head_dim, Access::write);
  o.add("grad_v", p.grad_v, p, p.kv_heads, p.seq_kv, p.value_dim, Access::write);
  o.add("grad_sinks", p.grad_sinks, 4, {p.heads}, Access::write);
  o.add("grad_key_bias", p.grad_key_bias, 4, {p.batch * p.heads * p.seq_kv}, Access::write);
  p.workspace = o.workspace(cuda::backward_workspace(p));
  o.run(p, cuda::backward);
}

}  // namespace fastops::attention::emulated
