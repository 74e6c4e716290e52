// What a launch asks of memory, counted on request: wavefronts of shared memory (bank conflicts),
// sectors of global memory, bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "simt/machine.h"

namespace simt {

// Of one source line, or of a launch. A request is one instruction of one warp.
struct Counts {
  uint64_t requests = 0;
  uint64_t wavefronts = 0, ideal_wavefronts = 0;  // shared memory
  uint64_t sectors = 0, ideal_sectors = 0;        // global memory, 32 bytes each
  uint64_t read_bytes = 0, written_bytes = 0;     // global memory, distinct within a request

  void add(const Counts& other);
};

class Counters {
 public:
  bool on = false;

  void begin_launch(const char* kernel, uint64_t blocks);
  void end_cluster();
  void touch(const Thread& t, uintptr_t p, size_t bytes, bool shared, bool write, uint32_t code);
  // Eight rows of a matrix of ldmatrix or stmatrix.
  void matrix(unsigned char* const* rows, uint32_t code);
  void bulk(size_t bytes, bool write, uint32_t code);  // one bulk or tensor copy's piece
  std::string take();                                  // the launches since the last call, as JSON

 private:
  struct Lane {
    int lane;
    uintptr_t p;
    uint32_t bytes;
  };
  struct Key {
    int warp;
    uint32_t code, execution;
    bool shared, write;
    auto tie() const { return std::tie(warp, code, execution, shared, write); }
    bool operator<(const Key& o) const { return tie() < o.tie(); }
  };
  struct Launch {
    std::string kernel;
    uint64_t blocks;
    std::map<uint32_t, Counts> lines;
  };

  std::map<Key, std::vector<Lane>> open_;              // of the running cluster
  std::unordered_map<uint64_t, uint32_t> executions_;  // by thread and code
  std::vector<Launch> launches_;
};

Counters& counters();

}  // namespace simt
