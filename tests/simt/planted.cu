// The kernels of planted.cuh, each with the check that must name its bug, and the C functions
// through which tests/simt/test_planted.py runs the cases of all planted_*.cu.
#include "planted.cuh"

using namespace planted;

std::vector<Case> planted::thread_cases() {
  return {
      {"block_sum", "",
       [] {
         Buffers b(100, 2);
         run(block_sum, 2, kThreads, 0, 1, b.x, b.out, 100);
         require(b.out[0] == 2016.0f && b.out[1] == 2934.0f);
       }},
      {"reverse_in_warp", "",
       [] {
         Buffers b(kThreads, kThreads);
         run(reverse_in_warp, 1, kThreads, kThreads * 4, 1, b.x, b.out);
         require(b.out[0] == 31.0f && b.out[63] == 32.0f);
       }},
      {"histogram", "",
       [] {
         Buffers b(kThreads, 4, simt::Access::read_write);
         std::memset(b.out, 0, 16);
         run(histogram, 3, kThreads, 0, 1, b.x_ints(), b.out_ints());
         for (int i = 0; i < 4; ++i) require(b.out_ints()[i] == 48);
       }},
      {"votes", "",
       [] {
         Buffers b(kThreads, kThreads);
         run(votes, 1, kThreads, 0, 1, b.x_ints(), b.out_ints());
         for (int i = 0; i < kThreads; ++i) require(b.out_ints()[i] == 32);
       }},
      {"shuffles", "",
       [] {
         Buffers b(1, 32);
         run(shuffles, 1, 32, 0, 1, b.out_ints());
         for (int lane = 0; lane < 32; ++lane) {
           const int up = lane % 8 >= 3 ? lane - 3 : lane, down = lane % 8 < 5 ? lane + 3 : lane;
           const int index = lane / 16 * 16 + 5;
           require(b.out_ints()[lane] == ((up * 32 + down) * 32 + index) * 32 + (lane ^ 1));
         }
       }},
      {"early_exit", "",
       [] {
         Buffers b(100, 100);
         run(early_exit, 2, kThreads, 0, 1, b.x, b.out, 100);
         require(b.out[99] == 99.0f);
       }},
      {"staged", "",
       [] {
         Buffers b(kThreads * 4, kThreads * 4);
         run(staged, 1, kThreads, 0, 1, b.x, b.out);
         for (int i = 0; i < kThreads * 4; ++i) require(b.out[i] == float(i));
       }},
      {"cluster_sum", "",
       [] {
         Buffers b(kThreads * 8, 8);
         run(cluster_sum, 8, 32, 0, 4, b.x, b.out);
         require(b.out[0] == b.out[3] && b.out[4] == b.out[7] && b.out[0] != b.out[4]);
       }},
      {"missing_barrier", "race",
       [] {
         Buffers b(kThreads, kThreads);
         run(missing_barrier, 1, kThreads, 0, 1, b.x, b.out);
       }},
      {"missing_second_barrier", "race",
       [] {
         Buffers b(kThreads, kThreads);
         run(missing_second_barrier, 1, kThreads, 0, 1, b.x, b.out);
       }},
      {"missing_syncwarp", "race",
       [] {
         Buffers b(32, 32);
         run(missing_syncwarp, 1, 32, 0, 1, b.x, b.out);
       }},
      {"shuffle_is_no_fence", "race",
       [] {
         Buffers b(32, 32);
         run(shuffle_is_no_fence, 1, 32, 0, 1, b.x, b.out);
       }},
      {"atomic_and_plain", "race",
       [] {
         Buffers b(1, kThreads);
         run(atomic_and_plain, 1, kThreads, 0, 1, b.out_ints());
       }},
      {"read_past_end", "out-of-bounds",
       [] {
         Buffers b(kThreads, kThreads);
         run(read_at, 1, kThreads, 0, 1, b.x, b.out, 1);
       }},
      {"read_before_start", "out-of-bounds",
       [] {
         Buffers b(kThreads, kThreads);
         run(read_at, 1, kThreads, 0, 1, b.x, b.out, -1);
       }},
      {"write_past_end", "out-of-bounds",
       [] {
         Buffers b(kThreads, kThreads);
         run(write_at, 1, kThreads, 0, 1, b.x, b.out, 1);
       }},
      {"write_nowhere", "out-of-bounds",
       [] {
         Buffers b(kThreads, kThreads);
         run(write_at, 1, kThreads, 0, 1, b.x, b.out, 1 << 30);
       }},
      {"wide_read_past_end", "out-of-bounds",
       [] {
         Buffers b(6, kThreads);
         run(wide_read, 1, 1, 0, 1, b.x, b.out, 4);
       }},
      {"read_in_gap", "out-of-bounds",
       [] {
         Buffers b(1, kThreads);
         b.tensors.add({"rows", b.x + 1024, 4 * 42, 4, simt::Access::read, false, {4, 6}, {12, 1}});
         run(read_at, 1, 8, 0, 1, b.x + 1024, b.out, 0);
       }},
      {"misaligned", "misaligned",
       [] {
         Buffers b(kThreads, kThreads);
         run(wide_read, 1, 1, 0, 1, b.x, b.out, 1);
       }},
      {"write_input", "write-to-const",
       [] {
         Buffers b(kThreads, kThreads);
         run(write_input, 1, kThreads, 0, 1, b.x, b.out);
       }},
      {"read_output", "uninitialised-read",
       [] {
         Buffers b(kThreads, kThreads);
         run(read_output, 1, 2, 0, 1, b.out);
       }},
      {"forgotten_element", "unwritten",
       [] {
         Buffers b(kThreads, kThreads);
         run(early_exit, 1, kThreads, 0, 1, b.x, b.out, kThreads - 1);
         b.tensors.require_written();
       }},
      {"uninitialised_dynamic", "uninitialised-read",
       [] {
         Buffers b(1, kThreads);
         run(uninitialised_dynamic, 1, kThreads, kThreads * 4, 1, b.out);
       }},
      {"uninitialised_static", "uninitialised-read",
       [] {
         Buffers b(1, kThreads);
         run(uninitialised_static, 2, kThreads, 0, 1, b.out);
       }},
      {"past_dynamic", "out-of-bounds",
       [] {
         Buffers b(1, kThreads);
         run(past_dynamic, 1, kThreads, kThreads * 4, 1, b.out);
       }},
      {"past_static", "index-bounds",
       [] {
         Buffers b(1, kThreads);
         run(past_static, 1, kThreads, 0, 1, b.out, 1);
       }},
      {"past_local", "index-bounds",
       [] {
         Buffers b(kThreads, kThreads);
         run(past_local, 1, kThreads, 0, 1, b.x_ints(), b.out);
       }},
      {"wide_shift", "index-bounds",
       [] {
         Buffers b(kThreads, kThreads);
         run(wide_shift, 1, kThreads, 0, 1, b.x_ints(), b.out_ints());
       }},
      {"foreign_local", "foreign-stack",
       [] {
         Buffers b(1, kThreads);
         run(foreign_local, 1, kThreads, 0, 1, b.out);
       }},
      {"divergent_barrier", "divergent-barrier",
       [] {
         Buffers b(1, kThreads);
         run(divergent_barrier, 1, kThreads, 0, 1, b.out);
       }},
      {"divergent_shuffle", "divergent-collective",
       [] {
         Buffers b(1, kThreads);
         run(divergent_shuffle, 1, 32, 0, 1, b.out);
       }},
      {"shuffle_in_branch", "divergent-collective",
       [] {
         Buffers b(1, kThreads);
         run(shuffle_in_branch, 1, kThreads, 0, 1, b.out);
       }},
      {"mask_without_caller", "divergent-collective",
       [] {
         Buffers b(1, kThreads);
         run(mask_without_caller, 1, 32, 0, 1, b.out);
       }},
      {"shuffle_from_absent", "shuffle-source",
       [] {
         Buffers b(1, kThreads);
         run(shuffle_from_absent, 1, 32, 0, 1, b.out);
       }},
      {"blocks_write_one", "block-race",
       [] {
         Buffers b(1, kThreads);
         run(blocks_write_one, 2, kThreads, 0, 1, b.out);
       }},
      {"block_reads_another", "block-race",
       [] {
         Buffers b(1, kThreads, simt::Access::read_write);
         run(block_reads_another, 2, kThreads, 0, 1, b.out);
       }},
      {"async_without_wait", "async-pending",
       [] {
         Buffers b(kThreads * 4, kThreads);
         run(async_without_wait, 1, kThreads, 0, 1, b.x, b.out);
       }},
      {"async_wait_one_short", "async-pending",
       [] {
         Buffers b(kThreads * 4, kThreads);
         run(async_wait_one_short, 1, kThreads, 0, 1, b.x, b.out);
       }},
      {"async_without_barrier", "race",
       [] {
         Buffers b(kThreads * 4, kThreads);
         run(async_without_barrier, 1, 8, 0, 1, b.x, b.out);
       }},
      {"cluster_without_wait", "race",
       [] {
         Buffers b(1, kThreads * 2);
         run(cluster_without_wait, 2, kThreads, 0, 2, b.out);
       }},
      {"cluster_start_unknown", "cluster-protocol",
       [] {
         Buffers b(1, kThreads * 2);
         run(cluster_start_unknown, 2, kThreads, 0, 2, b.out);
       }},
      {"cluster_exit_too_early", "cluster-protocol",
       [] {
         Buffers b(1, kThreads * 2);
         run(cluster_exit_too_early, 2, kThreads, 0, 2, b.out);
       }},
      {"cluster_wait_alone", "cluster-protocol",
       [] {
         Buffers b(1, kThreads * 2);
         run(cluster_wait_alone, 2, kThreads, 0, 2, b.out);
       }},
      {"cluster_deadlock", "deadlock",
       [] {
         Buffers b(1, kThreads * 2);
         run(cluster_deadlock, 2, kThreads, 0, 2, b.out);
       }},
  };
}

namespace {

const std::vector<Case>& cases() {
  static const std::vector<Case> all = [] {
    std::vector<Case> joined;
    for (const auto& some : {planted::thread_cases(), planted::matrix_cases(),
                             planted::async_cases(), planted::wgmma_cases()})
      joined.insert(joined.end(), some.begin(), some.end());
    return joined;
  }();
  return all;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int planted_count() { return int(cases().size()); }
EXPORT const char* planted_name(int i) { return cases()[size_t(i)].name; }
EXPORT const char* planted_expected(int i) { return cases()[size_t(i)].expected; }

// Runs case i; what it reported, or "".
EXPORT const char* planted_run(int i, int order, int async, unsigned long long seed) {
  static std::string report;
  simt::config() = {simt::Order(order), simt::Async(async), seed};
  report.clear();
  try {
    cases()[size_t(i)].body();
  } catch (const std::exception& error) {
    report = error.what();
  }
  return report.c_str();
}

// For tests/simt/cost.py: 32 * rounds switches between fibers, each through __syncwarp.
EXPORT void planted_switch(int rounds) { run(only_sync, 1, 32, 0, 1, rounds); }
