// The emulated machine: the threads of one cluster, who may run, what each waits for.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/launch.h"
#include "simt/report.h"
#include "simt/threads.h"

namespace simt {

inline constexpr int kWarp = 32;
inline constexpr int kMaxBlockThreads = 1024;
inline constexpr int kMaxCluster = 16;

// Warp collectives first: those up to `reduce` take a mask, the others (.aligned) the whole warp.
enum class Wait : uint8_t {
  nothing,
  sync_warp,
  shuffle,
  vote,
  match,
  reduce,
  ldmatrix,
  stmatrix,
  mma,
  wgmma,
  setmaxnreg,
  block,
  named_barrier,
  cluster,
  mbarrier,
  registers,
};
const char* name(Wait wait);
inline bool of_a_warp(Wait wait) { return wait != Wait::nothing && wait < Wait::block; }
inline bool aligned(Wait wait) { return wait > Wait::reduce && wait < Wait::block; }

// What someone has synchronised with: for each thread of the cluster the time up to which
// everything it did is ordered before. May be shorter than there are threads; the rest is 0.
using Clocks = std::vector<uint32_t>;
void join(Clocks& into, const Clocks& other);

inline uint32_t lane_bit(int lane) { return uint32_t{1} << lane; }

struct Warp;
struct Block;
struct MBarrier;

// One asynchronous 16-byte copy (cp.async) that has not landed.
struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
  uint32_t group;  // number of commits before it
};

// What the cluster `group` had done up to some moment.
struct Publication {
  uint32_t group;
  Clocks clocks;
};
void join(std::vector<Publication>& into, const Publication& one);

// Bulk copies out of shared memory by one thread, and how far their groups are.
struct BulkStore {
  unsigned from;  // shared address
  void* to;
  uint32_t bytes, group;  // group: number of commits before it
  uint32_t clock;         // of the thread's agent
  bool read;              // its shared memory may be written again
};
struct BulkStores {
  uint16_t agent = 0;  // 0: none yet
  uint32_t clock = 0, commits = 0;
  std::vector<BulkStore> in_flight;
};

// A local array that wgmma uses as registers.
struct Watched {
  uintptr_t begin, end;
  uint32_t last_use;  // number of the warp's latest wgmma with it
  bool accumulator;
  bool dirty;  // written since the warp's last wgmma.fence
};

struct Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint3 index{};
  uint16_t id = 0;  // within the cluster
  uint8_t lane = 0;
  bool exited = false;
  uint32_t clock = 1;  // own time: grows with every synchronisation this thread takes part in
  uint32_t cluster_arrivals = 0, cluster_waits = 0;

  Wait wait = Wait::nothing;
  unsigned mask = 0;  // of a warp collective
  uint32_t code = 0;  // where it waits
  void* args = nullptr;
  void (*exec)(Warp& warp, uint32_t lanes) = nullptr;

  uint32_t commits = 0;
  std::vector<Copy> copies;
  uint32_t proxy_fence = 0;  // own time of the last fence.proxy.async
  BulkStores stores;
  std::vector<Watched> watched;  // the wgmma operands among its variables

  // By other means than barriers of the warp, the block or the cluster; empty until there are any.
  Clocks acquired;
  // As of its last __threadfence; what the next atomic publishes, and what atomics since have
  // shown.
  std::vector<Publication> fenced, seen;
  bool news_for_warp = false, news_for_block = false;  // not yet passed on by such a barrier
};

// The wgmma instructions of one warp: each is a quarter of one of its warpgroup's.
struct Wgmma {
  uint32_t number, group;  // group: number of commits before it
  uint32_t code;
  std::function<void()> multiply;  // reads shared memory, adds to the accumulators; null: done
};
struct Wgmmas {
  uint32_t issued = 0, landed = 0, commits = 0;
  bool fenced = false;  // a wgmma.fence since the start
  struct Site {
    uint32_t code;
    uint64_t a, b;
  };
  std::vector<Site> sites;  // of the latest, for comparison with the warpgroup's other warps
  std::vector<Wgmma> in_flight;
};

struct Warp {
  Thread* thread[kWarp] = {};
  int number = 0;                             // within the cluster
  uint32_t ready = 0, waiting = 0, gone = 0;  // lanes; gone: exited or beyond the block
  // known[a][b]: lane a has synchronised with everything lane b did up to this time of b's.
  uint32_t known[kWarp][kWarp] = {};
  int registers = 0;  // a thread: a guess, until setmaxnreg has said
  bool registers_set = false;
  Wgmmas wgmmas;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;  // threads
  const Thread* first = nullptr;  // of those that have arrived
  Clocks clocks;                  // of all who have arrived
  std::vector<Thread*> waiting;
};
inline constexpr int kNamedBarriers = 16;

struct Block {
  uint3 index{};
  unsigned rank = 0;  // in the cluster
  int threads = 0, live = 0, arrived = 0;
  const Thread* first = nullptr;    // of those that have arrived
  int count = 0, count_result = 0;  // of sync_block_count
  uint32_t cluster_waits = 0;       // cluster phases some thread of the block has acquired
  Clocks known;                     // ordered by block barriers
  std::vector<uint32_t> visits;     // per thread: its clock when it last reached in from outside
  std::vector<Thread*> members;
  NamedBarrier named[kNamedBarriers];
  int free_registers = 0;
};

// Someone other than a thread who touches memory: the copies that complete on an mbarrier, the bulk
// stores of a thread, the wgmmas of a warpgroup (four agents in a row, one a warp: what they read
// together is free when all four are through).
struct Agent {
  const Thread* issuer;
  bool of_warpgroup;
};

class Machine {
 public:
  void run(const Grid& grid, void (*entry)(const void*), const void* context);
  uint64_t random();
  bool running() const { return main_stack_pointer_ != nullptr; }

  // The running thread stops until `thread.wait` is resolved by another one.
  void block_self();

  // A warp collective: the last lane of `mask` to arrive runs `exec` over the participants.
  using Exec = void (*)(Warp& warp, uint32_t lanes);
  void collective(Wait kind, unsigned mask, void* args, Exec exec, const void* return_address);
  void block_barrier(int predicate, const void* return_address);
  void named_barrier(int id, int count, bool wait, const void* return_address);
  void cluster_arrive(const void* return_address);
  void cluster_wait(const void* return_address);

  // The running thread uses shared memory of another block: that one must have started, and must
  // not exit before it has synchronised with what comes after this.
  void visit(Block& block, uint32_t code);

  // What `t` has done and has synchronised with, joined into `into`; later acts of t are not in it.
  void release(Thread& t, Clocks& into) const;
  // From now on `t` is ordered after all of `clocks`.
  void acquire(Thread& t, const Clocks& clocks) const;
  // __threadfence, then an atomic, on one side; an atomic on the same word, then __threadfence, on
  // the other: orders everything before the first before everything after the last, across blocks.
  void fence_grid();
  void publish(const void* word);
  // Does the running thread know, by that, what thread `other` of an earlier cluster did at
  // `clock`?
  bool knows_cluster(uint32_t group, uint16_t other, uint32_t clock) const;
  // Has `t` synchronised with what thread `other` of its cluster did at its time `clock`?
  bool ordered(const Thread& t, uint16_t other, uint32_t clock) const;

  // Agents have clocks as threads do, under ids from thread_count on.
  uint16_t new_agents(const Thread& issuer, int count);
  const Thread& owner(uint16_t id) const {
    return id < thread_count ? *threads[id] : *agents_[id - thread_count].issuer;
  }

  // The agents of the warpgroup that `warp` is one of.
  uint16_t warpgroup_agents(const Warp& warp);
  int warp_of_block(const Warp& warp) const {
    return warp.number % int(warp_count / cluster_blocks);
  }

  // The running thread waits until `wake` is called for it.
  void park(Wait wait, uint32_t code);
  void wake(Thread& t);

  // Reports what `t`, or the running thread, did, and abandons the launch.
  [[noreturn]] void fail(const Thread& t, Check check, const std::string& text);
  [[noreturn]] void fail(Check check, const std::string& text);
  void note(const std::string& text) { findings.add(text); }
  std::string describe(const Thread& t) const;
  std::string describe_cluster(uint32_t group) const;  // of this launch

  Grid grid{};
  uint32_t group = 0;        // number of the running cluster over the life of the process
  uint32_t first_group = 0;  // of this launch
  unsigned cluster_blocks = 1;
  std::vector<std::unique_ptr<Thread>> threads;  // of the cluster; [0, thread_count) in use
  size_t thread_count = 0;
  std::vector<std::unique_ptr<Warp>> warps;
  size_t warp_count = 0;
  Block blocks[kMaxCluster];
  Findings findings;
  std::vector<std::string> launched;  // kernel names, for tests

 private:
  void run_cluster(uint64_t number);
  uint3 block_at(uint64_t number) const;
  void prepare_fibers();
  Thread* next();
  int pick_lane(uint32_t ready);
  void resume(Thread& t);
  void try_complete(const Thread& member);
  void finish_barrier(Block& block);
  void finish_cluster_phase();
  void settle_after_exit(Thread& t);
  [[noreturn]] void deadlock();
  [[noreturn]] void abandon();
  [[noreturn]] static void fiber_main();
  std::string waiting_threads() const;
  bool knows(const Thread& t, uint16_t other, uint32_t clock) const;
  void check_site(const Thread& a, const Thread& b, Check check);

  std::vector<Agent> agents_;
  std::vector<uint16_t> warpgroup_agents_;  // by the first warp's number
  StackPool stacks_;
  void* main_stack_pointer_ = nullptr;
  void (*entry_)(const void*) = nullptr;
  const void* context_ = nullptr;
  bool fibers_stale_ = true;
  bool abandoned_ = false;
  Warp* current_warp_ = nullptr;
  int turn_ = 0;                 // how long it has gone on
  std::vector<uint64_t> order_;  // of the clusters
  size_t live_ = 0;
  // Cluster barrier: arrivals in the running phase, phases completed, and the clocks each phase
  // carries (two, since a thread may be one phase behind).
  size_t cluster_arrived_ = 0;
  uint32_t cluster_phases_ = 0;
  Clocks cluster_clocks_[2];
  uint64_t random_state_ = 1;
  std::map<const void*, std::vector<Publication>> published_;  // by word, in this launch
  // What a thread of the running cluster has learnt of others, and when (its own time).
  struct Learnt {
    Publication what;
    uint16_t by;
    uint32_t at;
  };
  std::vector<Learnt> learnt_;
};

Machine& machine();
void note_coverage(const void* kernel, size_t shared_bytes);
// The running thread; null on the host's own stack. In hooks.cpp, beside its hottest reader.
extern __attribute__((visibility("hidden"))) Thread* self;

}  // namespace simt
