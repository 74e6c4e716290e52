// What the checks say: one report per finding, with thread, source line and tensor element.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

enum class Check {
  out_of_bounds,
  misaligned,
  uninitialised,
  write_to_const,
  race,
  block_race,
  unwritten,
  async_pending,
  foreign_stack,
  divergent_collective,
  divergent_barrier,
  shuffle_source,
  deadlock,
  cluster_protocol,
  barrier_protocol,
  sparse_metadata,
  mbarrier_protocol,
  proxy_fence,
  bulk_copy,
  wgmma_protocol,
  setmaxnreg,
  index_bounds,
};
const char* name(Check check);

// Offset of a code address in this module, and back to "file:line (function)" with the chain of
// inlined callers. Needs addr2line (binutils); without it the bare offset.
std::string module_path();  // of the library this runtime is in
uint32_t code_offset(const void* return_address);
std::string source_of(uint32_t code);
std::string at_line(uint32_t code);  // source_of as a line of a report

// The findings of one launch: kept once per kind and pair of source lines, in order of appearance.
class Findings {
 public:
  static constexpr size_t kMost = 8;

  bool is_new(Check check, uint32_t code, uint32_t other);
  void add(std::string text);
  bool empty() const { return texts_.empty(); }
  std::string take(const std::string& kernel);

 private:
  struct Key {
    Check check;
    uint32_t code, other;
  };
  std::vector<Key> keys_;
  std::vector<std::string> texts_;
};

}  // namespace simt
