// The functions kernels call: csrc/simt/threads.h and csrc/simt/ptx/*.h.
#include "simt/threads.h"

#include <algorithm>
#include <cstring>

#include "simt/machine.h"
#include "simt/memory.h"
#include "simt/ptx/barrier.h"
#include "simt/ptx/cluster.h"
#include "simt/ptx/cp_async.h"
#include "simt/ptx/memory.h"

#define SIMT_CALLER __builtin_return_address(0)

namespace simt {

uint3 thread_index() { return self->index; }
uint3 block_index() { return self->block->index; }
dim3 block_dim() { return machine().grid.block; }
dim3 grid_dim() { return machine().grid.grid; }
unsigned char* dynamic_shared() { return memory().dynamic_shared(self->block->rank); }
unsigned cluster_rank() { return self->block->rank; }
unsigned cluster_size() { return machine().cluster_blocks; }

void sync_block() { machine().block_barrier(0, SIMT_CALLER); }

int sync_block_count(int predicate) {
  machine().block_barrier(predicate, SIMT_CALLER);
  return self->block->count_result;
}

namespace {

// What one lane has acquired (by an mbarrier, say) the others of its warp now know too.
void spread_news(Warp& warp, uint32_t lanes) {
  Clocks all;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    Thread& t = *warp.thread[__builtin_ctz(rest)];
    if (t.news_for_warp) join(all, t.acquired);
    t.news_for_warp = false;
  }
  if (all.empty()) return;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    Thread& t = *warp.thread[__builtin_ctz(rest)];
    join(t.acquired, all);
    t.news_for_block = true;
  }
}

}  // namespace

void sync_warp(unsigned mask) {
  machine().collective(
      Wait::sync_warp, mask, nullptr,
      [](Warp& warp, uint32_t lanes) {
        uint32_t joined[kWarp] = {};
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
          const int lane = __builtin_ctz(rest);
          for (int i = 0; i < kWarp; ++i) joined[i] = std::max(joined[i], warp.known[lane][i]);
        }
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
          const int lane = __builtin_ctz(rest);
          joined[lane] = warp.thread[lane]->clock++;
        }
        spread_news(warp, lanes);
        for (uint32_t rest = lanes; rest; rest &= rest - 1)
          std::memcpy(warp.known[__builtin_ctz(rest)], joined, sizeof(joined));
      },
      SIMT_CALLER);
}

namespace {

struct ShuffleArgs {
  Shuffle mode;
  uint64_t bits, result;
  int lane, width;
};

// The lane whose value `lane` gets, as shfl.sync defines it: out of its segment means its own.
int shuffle_source(const ShuffleArgs& a, int lane) {
  const int segment = lane & -a.width;
  const int last = segment + a.width - 1;
  switch (a.mode) {
    case Shuffle::index: return segment + (a.lane & (a.width - 1));
    case Shuffle::up: return lane - a.lane >= segment ? lane - a.lane : lane;
    case Shuffle::down: return lane + a.lane <= last ? lane + a.lane : lane;
    case Shuffle::butterfly: return (lane ^ a.lane) <= last ? lane ^ a.lane : lane;
  }
  return lane;
}

}  // namespace

uint64_t shuffle(Shuffle mode, unsigned mask, uint64_t bits, int lane, int width) {
  ShuffleArgs args{mode, bits, 0, lane, width};
  machine().collective(
      Wait::shuffle, mask, &args,
      [](Warp& warp, uint32_t lanes) {
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
          const int lane = __builtin_ctz(rest);
          auto& a = *static_cast<ShuffleArgs*>(warp.thread[lane]->args);
          const int source = shuffle_source(a, lane);
          if (!(lanes >> source & 1))
            machine().fail(Check::shuffle_source,
                           "is in a shuffle in which lane " + std::to_string(lane) +
                               " reads lane " + std::to_string(source) + ", which takes no part" +
                               at_line(warp.thread[lane]->code));
          a.result = static_cast<const ShuffleArgs*>(warp.thread[source]->args)->bits;
        }
      },
      SIMT_CALLER);
  return args.result;
}

namespace {

struct VoteArgs {
  bool predicate;
  uint32_t ballot, lanes;
};

}  // namespace

unsigned vote(Vote kind, unsigned mask, int predicate) {
  VoteArgs args{predicate != 0, 0, 0};
  machine().collective(
      Wait::vote, mask, &args,
      [](Warp& warp, uint32_t lanes) {
        uint32_t ballot = 0;
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
          const int lane = __builtin_ctz(rest);
          ballot |= uint32_t(static_cast<VoteArgs*>(warp.thread[lane]->args)->predicate) << lane;
        }
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
          auto& a = *static_cast<VoteArgs*>(warp.thread[__builtin_ctz(rest)]->args);
          a.ballot = ballot;
          a.lanes = lanes;
        }
      },
      SIMT_CALLER);
  switch (kind) {
    case Vote::ballot: return args.ballot;
    case Vote::any: return args.ballot != 0;
    case Vote::all: return args.ballot == args.lanes;
  }
  return 0;
}

namespace {

struct MatchArgs {
  uint64_t bits;
  uint32_t result;
};

}  // namespace

unsigned match_any(unsigned mask, uint64_t bits) {
  MatchArgs args{bits, 0};
  machine().collective(
      Wait::match, mask, &args,
      [](Warp& warp, uint32_t lanes) {
        for (uint32_t a = lanes; a; a &= a - 1) {
          auto& mine = *static_cast<MatchArgs*>(warp.thread[__builtin_ctz(a)]->args);
          for (uint32_t b = lanes; b; b &= b - 1) {
            const int lane = __builtin_ctz(b);
            const auto& other = *static_cast<const MatchArgs*>(warp.thread[lane]->args);
            if (other.bits == mine.bits) mine.result |= uint32_t{1} << lane;
          }
        }
      },
      SIMT_CALLER);
  return args.result;
}

namespace {

struct ReduceArgs {
  Reduce kind;
  int64_t value;
};

int64_t combine(Reduce kind, int64_t a, int64_t b) {
  switch (kind) {
    case Reduce::add: return a + b;
    case Reduce::min: return std::min(a, b);
    case Reduce::max: return std::max(a, b);
    case Reduce::bit_and: return a & b;
    case Reduce::bit_or: return a | b;
    case Reduce::bit_xor: return a ^ b;
  }
  return a;
}

}  // namespace

int64_t reduce(Reduce kind, unsigned mask, int64_t value) {
  ReduceArgs args{kind, value};
  machine().collective(
      Wait::reduce, mask, &args,
      [](Warp& warp, uint32_t lanes) {
        auto args_of = [&](uint32_t rest) -> ReduceArgs& {
          return *static_cast<ReduceArgs*>(warp.thread[__builtin_ctz(rest)]->args);
        };
        int64_t all = args_of(lanes).value;
        for (uint32_t rest = lanes & (lanes - 1); rest; rest &= rest - 1)
          all = combine(args_of(rest).kind, all, args_of(rest).value);
        for (uint32_t rest = lanes; rest; rest &= rest - 1) args_of(rest).value = all;
      },
      SIMT_CALLER);
  return args.value;
}

unsigned active_mask() { return ~self->warp->gone; }

void fence() { machine().fence_grid(); }

void atomic_access(void* p, int bytes) {
  memory().access(p, size_t(bytes), true, Touch::atomic, SIMT_CALLER);
  machine().publish(p);
}

// ---- ptx/memory.h ----------------------------------------------------------------------------

namespace {

template <typename T>
T load(const void* p, const void* caller) {
  memory().access(p, sizeof(T), true, Touch::read, caller);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <typename T>
void store(void* p, T value, const void* caller) {
  memory().access(p, sizeof(T), true, Touch::write, caller);
  std::memcpy(p, &value, sizeof(T));
}

}  // namespace

uint4 load_16(const void* p) { return load<uint4>(p, SIMT_CALLER); }
uint2 load_8(const void* p) { return load<uint2>(p, SIMT_CALLER); }
void store_16(void* p, uint4 value) { store(p, value, SIMT_CALLER); }
void store_8(void* p, uint2 value) { store(p, value, SIMT_CALLER); }

unsigned shared_address(const void* p) { return memory().shared_address(p, SIMT_CALLER); }
void* from_shared_address(unsigned address) {
  return memory().at_shared(address, code_offset(SIMT_CALLER));
}

// ---- ptx/cp_async.h --------------------------------------------------------------------------

void cp_async(void* shared, const void* global, int bytes) {
  memory().copy_async(shared, global, size_t(bytes), SIMT_CALLER);
  self->copies.push_back({shared, global, uint32_t(bytes), self->commits});
}

void cp_async_commit() { ++self->commits; }

void cp_async_wait(int pending_groups) {
  auto& copies = self->copies;
  // Copies issued after the last commit belong to no group yet and are not waited for.
  const int64_t landed = int64_t(self->commits) - pending_groups;
  auto first_left = std::find_if(copies.begin(), copies.end(),
                                 [&](const Copy& c) { return int64_t(c.group) >= landed; });
  for (auto c = copies.begin(); c != first_left; ++c)
    memory().land(*c, self->clock, code_offset(SIMT_CALLER));
  copies.erase(copies.begin(), first_left);
}

// ---- ptx/barrier.h ---------------------------------------------------------------------------

void named_barrier(int id, int threads, bool wait) {
  machine().named_barrier(id, threads, wait, SIMT_CALLER);
}

// ---- ptx/cluster.h ---------------------------------------------------------------------------

unsigned map_shared(unsigned address, unsigned rank) {
  return memory().map_shared(address, rank, SIMT_CALLER);
}
void cluster_arrive() { machine().cluster_arrive(SIMT_CALLER); }
void cluster_wait() { machine().cluster_wait(SIMT_CALLER); }

// ---- csrc/simt/tensors.h ---------------------------------------------------------------------

Tensors::Tensors() = default;
Tensors::~Tensors() { memory().end_scope(); }
void Tensors::add(const Tensor& tensor) { memory().add(tensor); }
void Tensors::add(const char* name, const void* data, size_t element_bytes,
                  std::vector<int64_t> sizes, std::vector<int64_t> strides, Access access) {
  if (!data) return;
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return;
    last += (sizes[d] - 1) * strides[d];
  }
  add({name, data, size_t(last + 1) * element_bytes, element_bytes, access, access == Access::write,
       std::move(sizes), std::move(strides)});
}
void Tensors::add(const char* name, const void* data, size_t element_bytes,
                  std::vector<int64_t> sizes, Access access) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  add(name, data, element_bytes, std::move(sizes), std::move(strides), access);
}
void* Tensors::workspace(size_t bytes) {
  if (bytes == 0) return nullptr;
  workspace_.assign((bytes + 7) / 8, __builtin_nan(""));
  add({"workspace", workspace_.data(), bytes, 4, Access::write, false, {}, {}});
  return workspace_.data();
}
void Tensors::require_written() const { memory().require_written(); }

}  // namespace simt
