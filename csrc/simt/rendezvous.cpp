// Where threads meet: warp collectives, the block's and the cluster's barrier, and what each
// orders.
#include <algorithm>
#include <sstream>

#include "simt/machine.h"
#include "simt/memory.h"

namespace simt {

const char* name(Wait wait) {
  switch (wait) {
    case Wait::nothing: return "nothing";
    case Wait::sync_warp: return "__syncwarp";
    case Wait::shuffle: return "a shuffle";
    case Wait::vote: return "a vote";
    case Wait::match: return "__match_any_sync";
    case Wait::reduce: return "__reduce_sync";
    case Wait::ldmatrix: return "ldmatrix";
    case Wait::stmatrix: return "stmatrix";
    case Wait::mma: return "mma";
    case Wait::wgmma: return "wgmma";
    case Wait::setmaxnreg: return "setmaxnreg";
    case Wait::block: return "__syncthreads";
    case Wait::named_barrier: return "named_barrier_sync";
    case Wait::cluster: return "cluster_wait";
    case Wait::mbarrier: return "mbarrier_wait";
    case Wait::registers: return "setmaxnreg_inc, for registers";
  }
  return "";
}

// Two threads meet in one collective only if they call it from the same source line; different
// code addresses may still be one line, duplicated by the compiler.
void Machine::check_site(const Thread& a, const Thread& b, Check check) {
  if (a.wait == b.wait && a.mask == b.mask &&
      (a.code == b.code || source_of(a.code) == source_of(b.code)))
    return;
  std::ostringstream text;
  text << "meets " << name(a.wait) << " (mask 0x" << std::hex << a.mask << std::dec << ")"
       << at_line(a.code) << "\n  while " << describe(b) << " is in " << name(b.wait) << " (mask 0x"
       << std::hex << b.mask << std::dec << ")" << at_line(b.code);
  fail(check, text.str());
}

void Machine::collective(Wait kind, unsigned mask, void* args, Exec exec,
                         const void* return_address) {
  Thread& t = *self;
  Warp& warp = *t.warp;
  t.wait = kind;
  t.mask = mask;
  t.args = args;
  t.code = code_offset(return_address);
  if (!(mask & lane_bit(t.lane)))
    fail(Check::divergent_collective,
         std::string("calls ") + name(kind) + " with a mask that leaves it out" + at_line(t.code));
  // One partner speaks for all: those it met before have been compared with it.
  if (const uint32_t partners = warp.waiting & mask) {
    const Thread& other = *warp.thread[__builtin_ctz(partners)];
    if (of_a_warp(other.wait) && (other.mask & lane_bit(t.lane)))
      check_site(t, other, Check::divergent_collective);
  }
  t.exec = exec;
  warp.ready &= ~lane_bit(t.lane);
  warp.waiting |= lane_bit(t.lane);
  try_complete(t);
  block_self();
}

// Runs the collective that `member` waits in, once every lane of its mask is there or has exited.
void Machine::try_complete(const Thread& member) {
  Warp& warp = *member.warp;
  const uint32_t expected = member.mask & ~warp.gone;
  if ((warp.waiting & expected) != expected) return;
  for (uint32_t rest = expected; rest; rest &= rest - 1) {
    const Thread& other = *warp.thread[__builtin_ctz(rest)];
    if (other.wait != member.wait || other.mask != member.mask) return;
  }
  if (aligned(member.wait) && expected != member.mask)
    fail(Check::divergent_collective, std::string("leaves its warp short for ") +
                                          name(member.wait) + ", which needs every lane" +
                                          at_line(member.code));
  member.exec(warp, expected);
  warp.waiting &= ~expected;
  warp.ready |= expected;
  for (uint32_t rest = expected; rest; rest &= rest - 1)
    warp.thread[__builtin_ctz(rest)]->wait = Wait::nothing;
}

void Machine::finish_barrier(Block& block) {
  block.arrived = 0;
  block.count_result = block.count;
  block.count = 0;
  if (block.cluster_waits > 0) {
    join(block.known, cluster_clocks_[block.cluster_waits % 2]);
  }
  for (Thread* t : block.members) {
    block.known[t->id] = t->clock++;
    if (t->news_for_block) {
      join(block.known, t->acquired);
      t->news_for_block = false;
    }
    if (t->wait != Wait::block) continue;
    t->wait = Wait::nothing;
    t->warp->waiting &= ~lane_bit(t->lane);
    t->warp->ready |= lane_bit(t->lane);
  }
}

void Machine::block_barrier(int predicate, const void* return_address) {
  Thread& t = *self;
  Block& block = *t.block;
  t.wait = Wait::block;
  t.mask = 0;
  t.code = code_offset(return_address);
  if (block.arrived == 0) block.first = &t;
  else check_site(t, *block.first, Check::divergent_barrier);
  block.count += predicate != 0;
  t.warp->ready &= ~lane_bit(t.lane);
  t.warp->waiting |= lane_bit(t.lane);
  if (++block.arrived == block.live) finish_barrier(block);
  block_self();
}

void Machine::named_barrier(int id, int count, bool wait, const void* return_address) {
  Thread& t = *self;
  t.wait = Wait::named_barrier;
  t.mask = unsigned(id);
  t.code = code_offset(return_address);
  if (id < 1 || id >= kNamedBarriers || count <= 0 || count % kWarp || count > kMaxBlockThreads)
    fail(Check::barrier_protocol,
         "uses named barrier " + std::to_string(id) + " for " + std::to_string(count) +
             " threads; there are 1 to 15, for a multiple of 32" + at_line(t.code));
  NamedBarrier& barrier = t.block->named[id];
  if (barrier.arrived == 0) {
    barrier.expected = count;
    barrier.first = &t;
  } else if (barrier.expected != count) {
    fail(Check::barrier_protocol,
         "meets named barrier " + std::to_string(id) + " for " + std::to_string(count) +
             " threads" + at_line(t.code) + "\n  while " + describe(*barrier.first) +
             " was there for " + std::to_string(barrier.expected) + at_line(barrier.first->code));
  }
  release(t, barrier.clocks);
  ++t.clock;
  if (wait) barrier.waiting.push_back(&t);
  if (++barrier.arrived == barrier.expected) {
    for (Thread* waiting : barrier.waiting) {
      acquire(*waiting, barrier.clocks);
      waiting->wait = Wait::nothing;
      if (waiting == &t) continue;
      waiting->warp->waiting &= ~lane_bit(waiting->lane);
      waiting->warp->ready |= lane_bit(waiting->lane);
    }
    barrier = {};
  } else if (wait) {
    t.warp->ready &= ~lane_bit(t.lane);
    t.warp->waiting |= lane_bit(t.lane);
    block_self();
  }
  t.wait = Wait::nothing;
}

// A thread that has exited counts as arrived everywhere.
void Machine::settle_after_exit(Thread& t) {
  Block& block = *t.block;
  if (block.live > 0 && block.arrived == block.live) finish_barrier(block);
  if (block.live == 0) {
    for (size_t i = 0; i < block.visits.size(); ++i) {
      if (block.visits[i] == 0) continue;
      const bool over = std::any_of(
          block.members.begin(), block.members.end(),
          [&](const Thread* member) { return ordered(*member, uint16_t(i), block.visits[i]); });
      if (!over)
        fail(Check::cluster_protocol,
             "is the last of its block to exit, and no cluster barrier or mbarrier says that " +
                 describe(*threads[i]) + " has finished with the block's shared memory");
    }
  }
  if (cluster_blocks > 1 && t.cluster_arrivals == cluster_phases_) {
    ++cluster_arrived_;
    cluster_clocks_[(cluster_phases_ + 1) % 2][t.id] = t.clock;
    finish_cluster_phase();
  }
  for (uint32_t rest = t.warp->waiting; rest; rest &= rest - 1) {
    const Thread& waiting = *t.warp->thread[__builtin_ctz(rest)];
    if (of_a_warp(waiting.wait)) try_complete(waiting);
  }
}

void Machine::finish_cluster_phase() {
  if (cluster_arrived_ < thread_count) return;
  ++cluster_phases_;
  cluster_arrived_ = 0;
  for (size_t i = 0; i < thread_count; ++i) {
    Thread& t = *threads[i];
    if (t.exited) {
      ++cluster_arrived_;
      cluster_clocks_[(cluster_phases_ + 1) % 2][t.id] = t.clock;
    }
    if (t.wait != Wait::cluster) continue;
    t.wait = Wait::nothing;
    t.warp->waiting &= ~lane_bit(t.lane);
    t.warp->ready |= lane_bit(t.lane);
  }
}

void Machine::cluster_arrive(const void* return_address) {
  Thread& t = *self;
  if (t.cluster_arrivals != t.cluster_waits)
    fail(Check::cluster_protocol, "arrives twice at the cluster barrier without waiting" +
                                      at_line(code_offset(return_address)));
  if (cluster_blocks == 1)
    cluster_clocks_[0].resize(thread_count), cluster_clocks_[1].resize(thread_count);
  ++t.cluster_arrivals;
  Clocks& clocks = cluster_clocks_[t.cluster_arrivals % 2];
  clocks[t.id] = t.clock++;
  if (!agents_.empty()) {
    clocks.resize(std::max(clocks.size(), thread_count + agents_.size()));
    for (size_t i = thread_count; i < clocks.size(); ++i) {
      for (const Clocks* known : {&t.block->known, &t.acquired})
        if (i < known->size()) clocks[i] = std::max(clocks[i], (*known)[i]);
    }
  }
  ++cluster_arrived_;
  finish_cluster_phase();
}

void Machine::cluster_wait(const void* return_address) {
  Thread& t = *self;
  t.code = code_offset(return_address);
  if (t.cluster_arrivals != t.cluster_waits + 1)
    fail(Check::cluster_protocol,
         "waits at the cluster barrier without having arrived" + at_line(t.code));
  if (cluster_phases_ < t.cluster_arrivals) {
    t.wait = Wait::cluster;
    t.warp->ready &= ~lane_bit(t.lane);
    t.warp->waiting |= lane_bit(t.lane);
    block_self();
  }
  ++t.cluster_waits;
  t.block->cluster_waits = std::max(t.block->cluster_waits, t.cluster_waits);
}

void Machine::visit(Block& block, uint32_t code) {
  if (block.live == 0 || self->block->cluster_waits == 0)
    fail(Check::cluster_protocol,
         std::string("uses shared memory of a block of its cluster that ") +
             (block.live == 0 ? "has exited" : "may not have started: no cluster barrier yet") +
             at_line(code));
  block.visits[self->id] = self->clock;
}

void join(Clocks& into, const Clocks& other) {
  if (into.size() < other.size()) into.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
}

void Machine::release(Thread& t, Clocks& into) const {
  join(into, t.block->known);
  join(into, t.acquired);
  if (t.cluster_waits > 0) join(into, cluster_clocks_[t.cluster_waits % 2]);
  for (int lane = 0; lane < kWarp; ++lane) {
    const Thread* other = t.warp->thread[lane];
    if (other) into[other->id] = std::max(into[other->id], t.warp->known[t.lane][lane]);
  }
  into[t.id] = std::max(into[t.id], t.clock);
}

void Machine::acquire(Thread& t, const Clocks& clocks) const {
  join(t.acquired, clocks);
  t.news_for_warp = t.news_for_block = true;
}

// ---- Between blocks --------------------------------------------------------------------------

void join(std::vector<Publication>& into, const Publication& one) {
  for (Publication& known : into) {
    if (known.group != one.group) continue;
    join(known.clocks, one.clocks);
    return;
  }
  into.push_back(one);
}

void Machine::fence_grid() {
  Thread& t = *self;
  for (Publication& one : t.seen) {
    if (one.group == group) acquire(t, one.clocks);
    else learnt_.push_back({std::move(one), t.id, t.clock});
  }
  t.seen.clear();
  t.fenced.clear();
  Publication own{group, {}};
  release(t, own.clocks);
  t.fenced.push_back(std::move(own));
  for (const Learnt& learnt : learnt_)
    if (ordered(t, learnt.by, learnt.at)) join(t.fenced, learnt.what);
  ++t.clock;
}

void Machine::publish(const void* word) {
  Thread& t = *self;
  if (t.fenced.empty() && published_.empty()) return;
  auto& published = published_[word];
  for (const Publication& one : published) join(t.seen, one);
  for (const Publication& one : t.fenced) join(published, one);
}

bool Machine::knows_cluster(uint32_t earlier, uint16_t other, uint32_t clock) const {
  return std::any_of(learnt_.begin(), learnt_.end(), [&](const Learnt& learnt) {
    const Clocks& clocks = learnt.what.clocks;
    return learnt.what.group == earlier && other < clocks.size() && clocks[other] >= clock &&
           ordered(*self, learnt.by, learnt.at);
  });
}

bool Machine::ordered(const Thread& t, uint16_t other, uint32_t clock) const {
  if (t.id == other) return true;
  if (other >= thread_count && agents_[other - thread_count].of_warpgroup) {
    for (uint16_t warp = 0; warp < 4; ++warp)
      if (!knows(t, uint16_t(other + warp), clock)) return false;
    return true;
  }
  if (other < thread_count) {
    const Thread& o = *threads[other];
    if (o.warp == t.warp && t.warp->known[t.lane][o.lane] >= clock) return true;
  }
  return knows(t, other, clock);
}

bool Machine::knows(const Thread& t, uint16_t other, uint32_t clock) const {
  const auto covers = [&](const Clocks& clocks) {
    return other < clocks.size() && clocks[other] >= clock;
  };
  return covers(t.block->known) || covers(t.acquired) ||
         (t.cluster_waits > 0 && covers(cluster_clocks_[t.cluster_waits % 2]));
}

}  // namespace simt
