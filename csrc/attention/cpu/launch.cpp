// Picks the instruction set, once; packs what the kernels cannot read in place, a group of heads at
// a time, and runs them on it.
#include <cmath>
#include <limits>

#include "attention/cpu/kernels.h"
#include "attention/cpu/schedule.h"
#include "cpu/amx.h"
#include "cpu/call_scratch.h"
#include "cpu/isa.h"

namespace fastops::attention::cpu {
namespace {

constexpr int64_t kDenseQueries = 128;      // share the loads of keys where all are kept
constexpr int64_t kPackedBytes = 64 << 20;  // of operands packed at a time, or one kv head's

struct Kernels {
  Unit unit;
  Packing::Kernel pack;
  void (*forward)(const ForwardPlan&, const Worker&);
  void (*delta)(const BackwardParams&, int64_t, int64_t);
  void (*queries)(const BackwardPlan&, const Worker&);
  void (*keys)(const BackwardPlan&, const Worker&);
  void (*join)(const BackwardPlan&, int64_t, int64_t);
};

Kernels choose(DType dtype) {
#define FASTOPS_TABLE(isa)                                                           \
  Kernels {                                                                          \
    isa::kUnit, isa::pack, isa::forward, isa::backward_delta, isa::backward_queries, \
        isa::backward_keys, isa::join_query_parts                                    \
  }
#ifdef FASTOPS_HAS_AMX
  if (dtype == DType::bf16 && fastops::cpu::amx_available()) return FASTOPS_TABLE(amx);
#endif
  (void)dtype;
  return FASTOPS_ACTIVE(FASTOPS_TABLE);
#undef FASTOPS_TABLE
}

// Tensors of the key and value heads, or of the query heads, as one group of them is packed.
class Operands {
 public:
  Operands(const Problem& p, Packing& packing) : p_(p), packing_(packing) {}

  // Sums the bytes of a kv head's part.
  int64_t bytes(bool of_keys, int64_t channels, bool over_rows) const {
    const int64_t rows = of_keys ? p_.seq_kv : p_.seq_q;
    return heads_each(of_keys) * packing_.head_bytes(packing_.form(p_.dtype, channels, over_rows),
                                                     rows, channels,
                                                     of_keys ? p_.mask.block_kv : p_.mask.block_q);
  }
  // Both forms of a tensor; one where they are the same.
  int64_t both_bytes(bool of_keys, int64_t channels) const {
    const int64_t once = bytes(of_keys, channels, true);
    return same_forms() ? once : once + bytes(of_keys, channels, false);
  }
  bool same_forms() const { return packing_.form(p_.dtype, 2, true) == Form::widened; }

  Factor add(const Heads& t, bool of_keys, int64_t channels, bool over_rows, int64_t begin,
             int64_t end, const uint8_t* listed, char*& to) {
    PackJob job;
    job.form = packing_.form(p_.dtype, channels, over_rows);
    job.dtype = p_.dtype;
    job.source = t;
    job.heads = of_keys ? p_.kv_heads : p_.heads;
    job.begin = begin * heads_each(of_keys);
    job.end = end * heads_each(of_keys);
    job.rows = of_keys ? p_.seq_kv : p_.seq_q;
    job.channels = channels;
    job.block = of_keys ? p_.mask.block_kv : p_.mask.block_q;
    job.listed = of_keys ? listed : nullptr;
    return packing_.add(job, to);
  }

 private:
  int64_t heads_each(bool of_keys) const { return of_keys ? 1 : p_.heads / p_.kv_heads; }

  const Problem& p_;
  Packing& packing_;
};

// body(begin, end, scratch) for groups of kv heads whose packed operands fit together.
template <typename Body>
void for_groups(const Problem& p, int64_t head_bytes, const Body& body) {
  const int64_t heads = p.batch * p.kv_heads;
  int64_t together = head_bytes ? kPackedBytes / head_bytes : heads;
  together = together < 1 ? 1 : together;
  for (int64_t begin = 0; begin < heads; begin += together) {
    const int64_t end = std::min(begin + together, heads);
    body(begin, end,
         static_cast<char*>(fastops::cpu::call_scratch(size_t((end - begin) * head_bytes))));
  }
}

double flops(const Problem& p, const TaskQueue& queue, int64_t channels) {
  return 2.0 * double(queue.blocks()) * double(p.mask.block_q * p.mask.block_kv) * double(channels);
}

// -sum over rows of exp(sink - lse) * delta, in order.
void grad_sinks(const BackwardParams& p) {
  fastops::cpu::parallel_for(0, p.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < p.batch; ++b)
        for (int64_t q = 0; q < p.seq_q; ++q) {
          const int64_t row = (b * p.heads + h) * p.seq_q + q;
          if (p.lse[row] == -std::numeric_limits<float>::infinity()) continue;
          sum -= double(std::exp(p.sinks[h] - p.lse[row])) * double(p.delta[row]);
        }
      p.grad_sinks[h] = float(sum);
    }
  });
}

// Whether rows of keys, where they work out dS anyway, add up the gradients of queries too: 5
// products instead of 7. For that each thread needs a copy of these of its own; matrix registers,
// which cannot add to memory, would spend on it what the products cost.
QueryParts plan_parts(const BackwardParams& p, Unit unit) {
  constexpr int64_t kTasks = 64, kKeysEach = 512;  // enough for many threads; a copy's worth
  QueryParts parts;
  parts.channels = (p.head_dim + 31) / 32 * 32;
  const int64_t bytes = p.heads / p.kv_heads * p.seq_q * parts.channels * int64_t(sizeof(float));
  const int64_t rows = p.mask.by_key.rows, heads = p.batch * p.kv_heads;
  if (!p.grad_q.data || rows == 0 || bytes == 0 || bytes > kPackedBytes ||
      (unit == Unit::matrix && p.dtype == DType::bf16))
    return {nullptr, 0, 0, 1, 0};
  const int64_t most = std::max<int64_t>(
      1, std::min({(kTasks + heads - 1) / heads, kPackedBytes / bytes, p.seq_kv / kKeysEach}));
  parts.rows_each = (rows + most - 1) / most;
  parts.count = (rows + parts.rows_each - 1) / parts.rows_each;
  return parts;
}

}  // namespace

bool next_task(const Worker& worker, Task& task) { return worker.queue.next(worker.index, task); }
bool upcoming_task(const Worker& worker, Task& task) {
  return worker.queue.upcoming(worker.index, task);
}

void forward(const ForwardParams& params) {
  ForwardParams p = params;
  if (!p.mask.by_query.offsets) {  // everything is kept: blocks are ours to choose
    p.mask.block_q = kDenseQueries;
    p.mask.by_query.rows = (p.seq_q + kDenseQueries - 1) / kDenseQueries;
  }
  const Kernels k = choose(p.dtype);
  const int64_t group = p.heads / p.kv_heads;
  Packing sizes(k.unit);
  const Operands measured(p, sizes);
  const int64_t head_bytes =
      measured.bytes(true, p.head_dim, false) + measured.bytes(true, p.value_dim, true);
  for_groups(p, head_bytes, [&](int64_t begin, int64_t end, char* to) {
    Packing packing(k.unit);
    Operands operands(p, packing);
    std::vector<uint8_t> listed;
    if (head_bytes) listed = listed_blocks(p, begin, end);
    const uint8_t* flags = listed.empty() ? nullptr : listed.data();
    const ForwardPlan plan{p, operands.add(p.k, true, p.head_dim, false, begin, end, flags, to),
                           operands.add(p.v, true, p.value_dim, true, begin, end, flags, to)};
    packing.pack(k.pack);
    TaskQueue queue(p.mask.by_query, p.mask.num_patterns, begin * group, end * group, p.heads, 1);
    run_tasks(k.forward, plan, queue, flops(p, queue, p.head_dim + p.value_dim));
  });
}

void backward(const BackwardParams& p) {
  const Kernels k = choose(p.dtype);
  const int64_t group = p.heads / p.kv_heads, rows = p.batch * p.heads * p.seq_q;
  fastops::cpu::parallel_for(0, rows, 256, [&](int64_t b, int64_t e) { k.delta(p, b, e); });
  if (p.grad_sinks) grad_sinks(p);
  const QueryParts parts = plan_parts(p, k.unit);
  const bool queries = p.grad_q.data && parts.count == 0;  // by themselves
  const bool keys = parts.count > 0 || p.grad_k.data || p.grad_v.data || p.grad_key_bias;
  if (!queries && !keys) return;
  const int64_t d = p.head_dim, dv = p.value_dim;
  const int64_t part_bytes =
      parts.count * group * p.seq_q * parts.channels * int64_t(sizeof(float));

  Packing sizes(k.unit);
  const Operands measured(p, sizes);
  int64_t key_bytes = part_bytes ? measured.bytes(true, d, true) : 0;  // of k and v
  if (queries) key_bytes += measured.both_bytes(true, d) + measured.bytes(true, dv, false);
  int64_t head_bytes = part_bytes + key_bytes;
  if (keys) head_bytes += measured.both_bytes(false, d) + measured.both_bytes(false, dv);
  for_groups(p, head_bytes, [&](int64_t begin, int64_t end, char* to) {
    Packing packing(k.unit);
    Operands operands(p, packing);
    std::vector<uint8_t> listed;
    if (key_bytes) listed = listed_blocks(p, begin, end);
    const uint8_t* flags = listed.empty() ? nullptr : listed.data();
    const auto add = [&](const Heads& t, bool of_keys, int64_t channels, bool over_rows) {
      return operands.add(t, of_keys, channels, over_rows, begin, end, flags, to);
    };
    BackwardPlan plan{p, {}, {}, {}, {}, {}, {}, {}, parts};
    if (part_bytes) {
      plan.parts.first_head = begin * group;
      plan.parts.data = reinterpret_cast<float*>(to);
      to += (end - begin) * part_bytes;
      plan.k_sums = add(p.k, true, d, true);
    }
    if (queries) {
      plan.k = add(p.k, true, d, false);
      plan.v = add(p.v, true, dv, false);
      plan.k_sums = operands.same_forms() ? plan.k : add(p.k, true, d, true);
    }
    if (keys) {
      plan.q = add(p.q, false, d, false);
      plan.grad_out = add(p.grad_out, false, dv, false);
      plan.q_sums = operands.same_forms() ? plan.q : add(p.q, false, d, true);
      plan.grad_out_sums = operands.same_forms() ? plan.grad_out : add(p.grad_out, false, dv, true);
    }
    packing.pack(k.pack);
    if (queries) {
      TaskQueue queue(p.mask.by_query, p.mask.num_patterns, begin * group, end * group, p.heads, 1);
      run_tasks(k.queries, plan, queue, flops(p, queue, 2 * d + dv));
    }
    if (keys) {
      TaskQueue queue(p.mask.by_key, p.mask.num_patterns, begin, end, p.kv_heads, group,
                      parts.rows_each);
      run_tasks(k.keys, plan, queue, flops(p, queue, 2 * (d + dv) + (part_bytes ? d : 0)));
    }
    if (part_bytes)
      fastops::cpu::parallel_for(0, (end - begin) * group * p.seq_q, 256,
                                 [&](int64_t b, int64_t e) { k.join(plan, b, e); });
  });
}

}  // namespace fastops::attention::cpu
