#include "simt/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>

#include "simt/async.h"
#include "simt/counters.h"
#include "simt/memory.h"

namespace simt {
namespace {

std::string lanes_of(uint32_t lanes) {
  if (lanes == 0xffffffffu) return "all lanes";
  std::ostringstream text;
  text << (lanes & (lanes - 1) ? "lanes" : "lane");
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int end = lane;
    while (end + 1 < kWarp && (lanes >> (end + 1) & 1)) ++end;
    text << " " << lane;
    if (end > lane) text << "-" << end;
    lane = end;
  }
  return text.str();
}

}  // namespace

Machine& machine() {
  static Machine instance;
  return instance;
}

int shared_optin(int major) { return major >= 9 ? 232448 : 166912; }

Device& device() {
  static Device instance = [] {
    Device d;
    if (const char* text = std::getenv("FASTOPS_SIMT_DEVICE"))
      std::sscanf(text, "%d,%d,%d", &d.sm_count, &d.major, &d.minor);
    d.shared_per_block_optin = shared_optin(d.major);
    return d;
  }();
  return instance;
}

Config& config() {
  static Config instance = [] {
    Config c;
    auto is = [](const char* variable, const char* value) {
      const char* text = std::getenv(variable);
      return text && std::strcmp(text, value) == 0;
    };
    if (is("FASTOPS_SIMT_ORDER", "descending")) c.order = Order::descending;
    if (is("FASTOPS_SIMT_ORDER", "random")) c.order = Order::random;
    if (is("FASTOPS_SIMT_ASYNC", "early")) c.async = Async::early;
    if (const char* text = std::getenv("FASTOPS_SIMT_SEED"))
      c.seed = std::strtoull(text, nullptr, 10);
    return c;
  }();
  return instance;
}

void run_grid(const Grid& grid, void (*entry)(const void*), const void* context, const void* args,
              size_t args_bytes) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard lock(one_launch_at_a_time);
  note_coverage(grid.kernel, grid.shared_bytes);
  memory().begin_launch(args, args_bytes);
  machine().run(grid, entry, context);
}

// ---- A launch ------------------------------------------------------------------------------

uint64_t Machine::random() {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return random_state_;
}

uint3 Machine::block_at(uint64_t number) const {
  uint3 at;
  at.x = unsigned(number % grid.grid.x);
  at.y = unsigned(number / grid.grid.x % grid.grid.y);
  at.z = unsigned(number / grid.grid.x / grid.grid.y);
  return at;
}

void Machine::run(const Grid& wanted, void (*entry)(const void*), const void* context) {
  grid = wanted;
  entry_ = entry;
  context_ = context;
  findings = Findings();
  launched.emplace_back(grid.name);
  const uint64_t block_threads = uint64_t(grid.block.x) * grid.block.y * grid.block.z;
  const uint64_t blocks_total = uint64_t(grid.grid.x) * grid.grid.y * grid.grid.z;
  counters().begin_launch(grid.name, blocks_total);
  cluster_blocks = grid.cluster ? grid.cluster : 1;
  auto reject = [&](const char* why) {
    throw std::runtime_error(std::string("simt: launch of ") + grid.name + ": " + why);
  };
  if (block_threads == 0 || block_threads > kMaxBlockThreads)
    reject("not 1 to 1024 threads per block");
  if (blocks_total == 0) reject("an empty grid");
  if (grid.grid.x > 0x7fffffffu || grid.grid.y > 65535 || grid.grid.z > 65535)
    reject("the grid exceeds 2^31-1, 65535, 65535");
  if (grid.shared_bytes > size_t(device().shared_per_block_optin)) reject("too much shared memory");
  if (cluster_blocks > 1 && device().major < 9) reject("clusters need compute capability 9.0");
  if (cluster_blocks > unsigned(kMaxCluster)) reject("more than 16 blocks per cluster");
  if (grid.grid.x % cluster_blocks) reject("grid.x is not a multiple of the cluster size");

  prepare_fibers();
  random_state_ = config().seed * 0x9e3779b97f4a7c15u | 1;
  const uint64_t clusters = blocks_total / cluster_blocks;
  order_.resize(clusters);
  for (uint64_t i = 0; i < clusters; ++i)
    order_[i] = config().order == Order::descending ? clusters - 1 - i : i;
  if (config().order == Order::random)
    for (uint64_t i = clusters; i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);

  abandoned_ = false;
  published_.clear();
  first_group = group + 1;
  for (uint64_t i = 0; i < clusters && !abandoned_; ++i) run_cluster(order_[i]);
  if (!findings.empty()) throw std::runtime_error(findings.take(grid.name));
}

void Machine::prepare_fibers() {
  const size_t per_block = size_t(grid.block.x) * grid.block.y * grid.block.z;
  const size_t warps_per_block = (per_block + kWarp - 1) / kWarp;
  const bool grown = threads.size() < per_block * cluster_blocks;
  thread_count = per_block * cluster_blocks;
  warp_count = warps_per_block * cluster_blocks;
  while (threads.size() < thread_count) threads.push_back(std::make_unique<Thread>());
  while (warps.size() < warp_count) warps.push_back(std::make_unique<Warp>());
  if (grown || fibers_stale_) {
    for (size_t i = 0; i < threads.size(); ++i) {
      threads[i]->stack = stacks_.stack(i);
      threads[i]->stack_pointer = StackPool::prepare(threads[i]->stack, &Machine::fiber_main);
    }
    fibers_stale_ = false;
  }
  for (size_t w = 0; w < warp_count; ++w) warps[w]->number = int(w);
  for (unsigned rank = 0; rank < cluster_blocks; ++rank) {
    Block& block = blocks[rank];
    block.rank = rank;
    block.threads = int(per_block);
    block.members.resize(per_block);
    for (size_t i = 0; i < per_block; ++i) {
      Thread& t = *threads[rank * per_block + i];
      t.id = uint16_t(rank * per_block + i);
      t.block = &block;
      t.lane = uint8_t(i % kWarp);
      t.warp = warps[rank * warps_per_block + i / kWarp].get();
      t.warp->thread[t.lane] = &t;
      t.index.x = unsigned(i % grid.block.x);
      t.index.y = unsigned(i / grid.block.x % grid.block.y);
      t.index.z = unsigned(i / grid.block.x / grid.block.y);
      block.members[i] = &t;
    }
  }
}

void Machine::run_cluster(uint64_t number) {
  ++group;
  memory().begin_cluster();
  engine().begin_cluster();
  agents_.clear();
  learnt_.clear();
  warpgroup_agents_.assign(warp_count, 0);
  // What a block of this size can have at most; how many ptxas gave it is not known here.
  const int launch_registers = std::min(255, 65536 / int(thread_count / cluster_blocks)) / 8 * 8;
  for (size_t w = 0; w < warp_count; ++w) {
    Warp& warp = *warps[w];
    warp.ready = warp.waiting = 0;
    warp.gone = 0xffffffffu;
    std::memset(warp.known, 0, sizeof(warp.known));
    warp.registers = launch_registers;
    warp.registers_set = false;
    warp.wgmmas = {};
  }
  for (size_t i = 0; i < thread_count; ++i) {
    Thread& t = *threads[i];
    t.exited = false;
    t.clock = 1;
    t.cluster_arrivals = t.cluster_waits = 0;
    t.wait = Wait::nothing;
    t.commits = 0;
    t.copies.clear();
    t.proxy_fence = 0;
    t.stores = {};
    t.watched.clear();
    t.acquired.clear();
    t.fenced.clear();
    t.seen.clear();
    t.news_for_warp = t.news_for_block = false;
    t.warp->ready |= lane_bit(t.lane);
    t.warp->gone &= ~lane_bit(t.lane);
  }
  for (unsigned rank = 0; rank < cluster_blocks; ++rank) {
    Block& block = blocks[rank];
    block.index = block_at(number * cluster_blocks + rank);
    block.live = block.threads;
    block.arrived = block.count = 0;
    block.cluster_waits = 0;
    block.free_registers = 65536 - launch_registers * block.threads;
    block.known.assign(thread_count, 0);
    for (NamedBarrier& barrier : block.named) {
      if (barrier.arrived > 0) barrier = {};
    }
    block.visits.assign(cluster_blocks > 1 ? thread_count : 0, 0);
  }
  cluster_arrived_ = 0;
  cluster_phases_ = 0;
  for (auto& clocks : cluster_clocks_) clocks.assign(cluster_blocks > 1 ? thread_count : 0, 0);
  live_ = thread_count;
  current_warp_ = nullptr;

  Thread* first = next();
  self = first;
  switch_stack(&main_stack_pointer_, first->stack_pointer, first->stack);
  self = nullptr;
  if (counters().on) counters().end_cluster();
}

// Each fiber runs one thread after another; the machine never unwinds it.
void Machine::fiber_main() {
  fiber_entered();
  Machine& m = machine();
  for (;;) {
    m.entry_(m.context_);
    Thread& t = *self;
    t.exited = true;
    t.warp->ready &= ~lane_bit(t.lane);
    t.warp->gone |= lane_bit(t.lane);
    --t.block->live;
    --m.live_;
    engine().require_settled(t);
    m.settle_after_exit(t);
    if (m.live_ == 0) switch_stack(&t.stack_pointer, m.main_stack_pointer_, nullptr);
    else m.block_self();
  }
}

// ---- Who runs next -------------------------------------------------------------------------

int Machine::pick_lane(uint32_t ready) {
  switch (config().order) {
    case Order::ascending: return __builtin_ctz(ready);
    case Order::descending: return 31 - __builtin_clz(ready);
    case Order::random: {
      const int turn = int(random() % kWarp);
      return (__builtin_ctz(ready >> turn | ready << ((kWarp - turn) % kWarp)) + turn) % kWarp;
    }
  }
  return 0;
}

// The running warp goes on while it can, then the next one in turn (at random: any). But not for
// ever: on hardware every warp gets its turn while another polls what it is to write.
Thread* Machine::next() {
  constexpr int kLongestTurn = 1 << 16;  // switches between lanes
  const bool random_order = config().order == Order::random;
  Warp* warp = current_warp_;
  if (!warp || !warp->ready || random_order || ++turn_ == kLongestTurn) {
    turn_ = 0;
    const bool down = config().order == Order::descending;
    const size_t start = random_order ? random() % warp_count
                         : warp       ? size_t(warp->number)
                         : down       ? 0
                                      : warp_count - 1;
    warp = nullptr;
    for (size_t i = 1; i <= warp_count && !warp; ++i) {
      Warp& candidate = *warps[(down ? start + warp_count - i : start + i) % warp_count];
      if (candidate.ready) warp = &candidate;
    }
    if (!warp) return nullptr;
    current_warp_ = warp;
  }
  return warp->thread[pick_lane(warp->ready)];
}

void Machine::resume(Thread& t) {
  Thread& from = *self;
  if (&t == &from) return;
  if (t.block != from.block) memory().switch_block(from.block, t.block);
  self = &t;
  switch_stack(&from.stack_pointer, t.stack_pointer, t.stack);
}

void Machine::block_self() {
  Thread* t = next();
  // Nothing else can happen: now is the latest moment at which an asynchronous copy may land.
  while (!t && engine().land_one()) t = next();
  if (!t) deadlock();
  resume(*t);
}

void Machine::park(Wait wait, uint32_t code) {
  Thread& t = *self;
  t.wait = wait;
  t.code = code;
  t.warp->ready &= ~lane_bit(t.lane);
  t.warp->waiting |= lane_bit(t.lane);
  block_self();
}

void Machine::wake(Thread& t) {
  t.wait = Wait::nothing;
  t.warp->waiting &= ~lane_bit(t.lane);
  t.warp->ready |= lane_bit(t.lane);
}

uint16_t Machine::new_agents(const Thread& issuer, int count) {
  const auto id = uint16_t(thread_count + agents_.size());
  for (int i = 0; i < count; ++i) agents_.push_back({&issuer, count > 1});
  return id;
}

uint16_t Machine::warpgroup_agents(const Warp& warp) {
  uint16_t& first = warpgroup_agents_[size_t(warp.number - warp_of_block(warp) % 4)];
  if (first == 0) first = new_agents(*warp.thread[0], 4);
  return first;
}

// ---- Findings ------------------------------------------------------------------------------

std::string Machine::describe(const Thread& t) const {
  std::ostringstream text;
  text << "block (" << t.block->index.x << ", " << t.block->index.y << ", " << t.block->index.z
       << ") thread (" << t.index.x << ", " << t.index.y << ", " << t.index.z << ")";
  return text.str();
}

std::string Machine::describe_cluster(uint32_t earlier) const {
  const uint3 at = block_at(order_[earlier - first_group] * cluster_blocks);
  std::ostringstream text;
  text << (cluster_blocks > 1 ? "the cluster of block (" : "block (") << at.x << ", " << at.y
       << ", " << at.z << ")";
  return text.str();
}

void Machine::fail(const Thread& t, Check check, const std::string& text) {
  findings.add(std::string(name(check)) + ": " + describe(t) + " " + text);
  abandon();
}

void Machine::fail(Check check, const std::string& text) { fail(*self, check, text); }

// Leaves every fiber where it stands; the next launch starts them afresh.
void Machine::abandon() {
  abandoned_ = true;
  fibers_stale_ = true;
  void* nowhere;
  switch_stack(&nowhere, main_stack_pointer_, nullptr);
  std::abort();
}

std::string Machine::waiting_threads() const {
  std::ostringstream text;
  for (size_t w = 0; w < warp_count; ++w) {
    std::map<std::pair<Wait, uint32_t>, uint32_t> places;
    const Warp& warp = *warps[w];
    for (uint32_t rest = warp.waiting; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      places[{warp.thread[lane]->wait, warp.thread[lane]->code}] |= lane_bit(lane);
    }
    for (const auto& [place, lanes] : places)
      text << "\n  warp " << w << ", " << lanes_of(lanes) << ": in " << name(place.first)
           << at_line(place.second);
  }
  return text.str();
}

void Machine::deadlock() {
  // Threads of one block held in different warp or block collectives: the code has diverged.
  Check check = Check::deadlock;
  for (unsigned rank = 0; rank < cluster_blocks; ++rank) {
    const Thread* first = nullptr;
    for (const Thread* t : blocks[rank].members) {
      if (t->exited || t->wait > Wait::block) continue;
      if (first && (first->wait != t->wait || first->code != t->code))
        check = Check::divergent_collective;
      if (!first) first = t;
    }
  }
  const std::string why = engine().explain_deadlock();
  if (!why.empty()) check = Check::mbarrier_protocol;
  findings.add(std::string(name(check)) + ": no thread can go on" + why + waiting_threads());
  abandon();
}

}  // namespace simt
