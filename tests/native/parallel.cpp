// csrc/cpu/parallel.h without torch: even shares on fresh threads.
#include "cpu/parallel.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "harness.h"

namespace fastops {
namespace {

int threads = 1;

}  // namespace

void test::set_num_threads(int count) { threads = count; }

int cpu::num_threads() { return threads; }

void cpu::parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context) {
  if (begin >= end) return;
  const int64_t size = end - begin, least = std::max<int64_t>(grain, 1);
  const int64_t shares = std::clamp<int64_t>((size + least - 1) / least, 1, threads);
  const int64_t share = std::max(least, (size + shares - 1) / shares);
  std::vector<std::thread> others;
  for (int64_t at = begin + share; at < end; at += share)
    others.emplace_back(fn, at, std::min(end, at + share), context);
  fn(begin, std::min(end, begin + share), context);
  for (std::thread& t : others) t.join();
}

}  // namespace fastops
