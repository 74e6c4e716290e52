// Who works on which rows, and which operands are brought into another form before.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "attention/cpu/lists.h"
#include "attention/cpu/plan.h"
#include "cpu/parallel.h"

namespace fastops::attention::cpu {

class TaskQueue {
 public:
  // The rows of `lists` of heads [begin, end), counted through the batch, `heads` a sample; each
  // stands for `group` heads of the mask. A task is `rows_each` rows.
  TaskQueue(const BlockLists& lists, int64_t num_patterns, int64_t begin, int64_t end,
            int64_t heads, int64_t group, int64_t rows_each = 1) {
    tasks_.reserve(size_t((end - begin) * lists.rows));
    std::vector<int64_t> blocks(static_cast<size_t>(lists.rows));
    for (int64_t head = begin; head < end; ++head) {
      const size_t from = tasks_.size();
      for (int64_t row = 0; row < lists.rows; ++row) {
        int64_t count = 0;
        for (int64_t g = 0; g < group; ++g)
          count += list_row(lists, num_patterns, head / heads, head % heads * group + g, row).count;
        blocks_ += count;
        const int64_t first = row / rows_each * rows_each;
        if (row == first) {
          tasks_.push_back({int32_t(head), int32_t(row)});
          blocks[size_t(row)] = 0;
        }
        blocks[size_t(first)] += count;
      }
      std::stable_sort(tasks_.begin() + int64_t(from), tasks_.end(),
                       [&](const Task& a, const Task& b) {
                         return blocks[size_t(a.row)] > blocks[size_t(b.row)];
                       });
      for (size_t i = from; i < tasks_.size(); ++i)
        weights_.push_back(blocks[size_t(tasks_[i].row)] + 1);
    }
  }

  int64_t blocks() const { return blocks_; }  // listed in all

  // Gives each worker a share, tasks that follow each other, all about as heavy: a core keeps its
  // own heads in cache and knows what comes next.
  void share(int64_t workers) {
    shares_ = std::vector<Share>(size_t(workers));
    int64_t total = 0, sum = 0;
    for (int64_t w : weights_) total += w;
    size_t at = 0;
    for (int64_t i = 0; i < workers; ++i) {
      shares_[size_t(i)].next.store(at, std::memory_order_relaxed);
      while (at < tasks_.size() && sum * workers < total * (i + 1)) sum += weights_[at++];
      shares_[size_t(i)].end = at;
    }
  }

  // Whose share is done helps the next ones.
  bool next(int64_t worker, Task& task) {
    for (size_t i = 0; i < shares_.size(); ++i) {
      Share& share = shares_[(size_t(worker) + i) % shares_.size()];
      const size_t at = share.next.fetch_add(1, std::memory_order_relaxed);
      if (at >= share.end) continue;
      task = tasks_[at];
      return true;
    }
    return false;
  }
  bool upcoming(int64_t worker, Task& task) const {
    const Share& own = shares_[size_t(worker)];
    const size_t at = own.next.load(std::memory_order_relaxed);
    if (at < own.end) task = tasks_[at];
    return at < own.end;
  }

 private:
  struct alignas(64) Share {
    std::atomic<size_t> next{0};
    size_t end = 0;
  };

  std::vector<Task> tasks_;
  std::vector<int64_t> weights_;  // of tasks: their blocks, and one for what each takes besides
  std::vector<Share> shares_;
  int64_t blocks_ = 0;
};

// kernel(plan, worker) on as many threads as the work is worth.
template <typename Plan>
void run_tasks(void (*kernel)(const Plan&, const Worker&), const Plan& plan, TaskQueue& queue,
               double flops) {
  constexpr double kFlopsPerThread = 1 << 20;
  const double useful = 1 + flops / kFlopsPerThread;
  const int64_t threads = fastops::cpu::num_threads();
  const int64_t used = useful < double(threads) ? int64_t(useful) : threads;
  queue.share(used);
  fastops::cpu::parallel_for(0, used, 1,
                             [&](int64_t index, int64_t) { kernel(plan, {queue, index}); });
}

// The operands of a group of heads, in one buffer: add() each, then pack().
class Packing {
 public:
  using Kernel = void (*)(const PackJob&, int64_t, int64_t);
  explicit Packing(Unit unit) : unit_(unit) {}

  // How a tensor is read: for sums over its rows, or over its channels.
  Form form(DType dtype, int64_t channels, bool over_rows) const {
    if (dtype == DType::f32) return Form::in_place;
    if (dtype == DType::f16 || unit_ == Unit::single) return Form::widened;
    if (over_rows) return unit_ == Unit::pair ? Form::paired : Form::turned;
    return channels % together() == 0 ? Form::in_place : Form::padded;
  }

  // Bytes from a row, or from some rows that go together, to the next.
  int64_t step(Form form, int64_t channels) const {
    switch (form) {
      case Form::in_place: return 0;
      case Form::padded: return (channels + together() - 1) / together() * together() * 2;
      case Form::turned: return (channels + 31) / 32 * 32 * 64;
      default: return channels * 4;
    }
  }
  // Bytes of a head in blocks of `block` rows; 0 in place.
  int64_t head_bytes(Form form, int64_t rows, int64_t channels, int64_t block) const {
    const int64_t rows_each = form == Form::paired   ? 2
                              : form == Form::turned ? std::min<int64_t>(block, 32)
                                                     : 1;
    return ((rows + rows_each - 1) / rows_each * step(form, channels) + 63) / 64 * 64;
  }

  // Heads [begin, end) of a tensor of `heads` a sample, as kernels will read it from `to` on.
  Factor add(const PackJob& job, char*& to) {
    const int64_t bytes = int64_t(size_of(job.dtype));
    if (job.form == Form::in_place)
      return {static_cast<const char*>(job.source.data), job.source.stride[0] * bytes,
              job.source.stride[1] * bytes, job.source.stride[2] * bytes, 0};
    PackJob packed = job;
    packed.to = to;
    packed.step = step(job.form, job.channels);
    packed.head_bytes = head_bytes(job.form, job.rows, job.channels, job.block);
    jobs_.push_back(packed);
    to += (job.end - job.begin) * packed.head_bytes;
    return {packed.to, job.heads * packed.head_bytes, packed.head_bytes, packed.step,
            job.begin * packed.head_bytes};
  }

  void pack(Kernel kernel) const {
    for (const PackJob& job : jobs_)
      fastops::cpu::parallel_for(0, (job.end - job.begin) * job.blocks(), 4,
                                 [&](int64_t b, int64_t e) { kernel(job, b, e); });
  }

 private:
  int64_t together() const { return unit_ == Unit::pair ? 2 : 32; }  // channels of an instruction

  Unit unit_;
  std::vector<PackJob> jobs_;
};

// Which key blocks the queries of kv heads [begin, end) list: a byte for each block of each head.
inline std::vector<uint8_t> listed_blocks(const Problem& p, int64_t begin, int64_t end) {
  const BlockLists& lists = p.mask.by_query;
  if (!lists.offsets) return {};
  const int64_t group = p.heads / p.kv_heads;
  std::vector<uint8_t> listed(size_t((end - begin) * lists.columns));
  const bool same = lists.batch == 1 && lists.heads == 1;
  for (int64_t head = begin; head < end; ++head) {
    uint8_t* flags = listed.data() + (head - begin) * lists.columns;
    if (same && head > begin) {
      std::copy(listed.begin(), listed.begin() + lists.columns, flags);
      continue;
    }
    for (int64_t g = 0; g < (lists.heads == 1 ? 1 : group); ++g)
      for (int64_t row = 0; row < lists.rows; ++row) {
        const ListRow list = list_row(lists, p.mask.num_patterns, head / p.kv_heads,
                                      head % p.kv_heads * group + g, row);
        for (int64_t i = 0; i < list.count; ++i)
          if (const int64_t block = list.block(i); block >= 0) flags[block] = 1;
      }
  }
  return listed;
}

}  // namespace fastops::attention::cpu
