// mbarriers: arrivals, expected bytes, phases.
#include "simt/ptx/mbarrier.h"

#include <algorithm>
#include <sstream>

#include "simt/async.h"
#include "simt/memory.h"

#define SIMT_CALLER __builtin_return_address(0)

namespace simt {

Engine& engine() {
  static Engine instance;
  return instance;
}

void Engine::begin_cluster() {
  barriers_.clear();
  flights_.clear();
}

void Engine::init(unsigned barrier, unsigned count, uint32_t code) {
  Machine& m = machine();
  void* p = memory().at_shared(barrier, code);
  memory().check(p, 8, true, Touch::write, code);
  const unsigned absolute = memory().absolute_shared(barrier, code);
  if (count < 1 || count > (1u << 20) - 1)
    m.fail(Check::mbarrier_protocol, "initialises an mbarrier for " + std::to_string(count) +
                                         " arrivals; there must be 1 to 2^20 - 1" + at_line(code));
  if (barriers_.count(absolute))
    m.fail(
        Check::mbarrier_protocol,
        "initialises an mbarrier that is in use (mbarrier_invalidate ends that)" + at_line(code));
  MBarrier& b = barriers_[absolute];
  b.address = absolute;
  b.count = b.pending = count;
  b.initialiser = self->id;
  b.initialised_at = self->clock;
}

void Engine::invalidate(unsigned barrier, uint32_t code) {
  MBarrier& b = find(memory().absolute_shared(barrier, code), code, false);
  if (!b.waiting.empty())
    machine().fail(Check::mbarrier_protocol,
                   "invalidates an mbarrier at which threads wait" + at_line(code));
  barriers_.erase(b.address);
}

// The barrier at an address, which its user must know to be initialised.
MBarrier& Engine::find(unsigned absolute, uint32_t code, bool by_copy) {
  Machine& m = machine();
  const auto found = barriers_.find(absolute);
  if (found == barriers_.end()) {
    std::ostringstream text;
    text << "uses shared address " << (absolute & 0xffffffu)
         << " as an mbarrier, which no one has initialised" << at_line(code);
    m.fail(Check::mbarrier_protocol, text.str());
  }
  MBarrier& b = found->second;
  if (!m.ordered(*self, b.initialiser, b.initialised_at))
    m.fail(Check::mbarrier_protocol, "uses an mbarrier that " + m.describe(m.owner(b.initialiser)) +
                                         " initialised, and nothing orders the two" +
                                         at_line(code));
  const bool remote = Memory::rank_of(absolute) != self->block->rank;
  if ((by_copy || remote) && m.owner(b.initialiser).proxy_fence < b.initialised_at)
    m.fail(Check::proxy_fence, std::string(by_copy ? "completes a copy on" : "arrives at") +
                                   " an mbarrier whose initialisation was not followed by "
                                   "fence_mbarrier_init" +
                                   at_line(code));
  return b;
}

void Engine::arrive(unsigned barrier, unsigned expected_bytes, uint32_t code) {
  Machine& m = machine();
  const unsigned absolute = memory().absolute_shared(barrier, code);
  const unsigned rank = Memory::rank_of(absolute);
  if (rank != self->block->rank) m.visit(m.blocks[rank], code);
  MBarrier& b = find(absolute, code, false);
  if (b.pending == 0)
    m.fail(Check::mbarrier_protocol, "arrives at an mbarrier at which all " +
                                         std::to_string(b.count) +
                                         " arrivals of this phase have been made" + at_line(code));
  b.bytes += expected_bytes;
  if (expected_bytes) b.expected_by = code;
  m.release(*self, b.arriving);
  ++self->clock;
  --b.pending;
  complete_if_done(b, *self, code);
}

void Engine::expect(unsigned barrier, unsigned bytes, uint32_t code) {
  MBarrier& b = find(memory().absolute_shared(barrier, code), code, false);
  b.bytes += bytes;
  b.expected_by = code;
}

void Engine::complete_if_done(MBarrier& b, const Thread& by, uint32_t code) {
  Machine& m = machine();
  if (b.pending > 0) return;
  if (b.bytes < 0)
    m.fail(by, Check::mbarrier_protocol,
           "has copied " + std::to_string(-b.bytes) +
               " bytes more than the mbarrier's phase was told to expect" + at_line(code));
  if (b.bytes > 0) return;
  b.completed[b.phase % 2] = std::move(b.arriving);
  b.arriving.clear();
  const unsigned parity = b.phase % 2;
  ++b.phase;
  b.pending = b.count;
  std::vector<Thread*> still;
  for (Thread* t : b.waiting) {
    if (t->mask != parity) {
      still.push_back(t);
      continue;
    }
    m.acquire(*t, b.completed[parity]);
    m.wake(*t);
  }
  b.waiting = std::move(still);
}

void Engine::wait(unsigned barrier, unsigned parity, uint32_t code) {
  Machine& m = machine();
  const unsigned absolute = memory().absolute_shared(barrier, code);
  if (Memory::rank_of(absolute) != self->block->rank)
    m.fail(Check::mbarrier_protocol, "waits at an mbarrier of another block" + at_line(code));
  if (parity > 1)
    m.fail(Check::mbarrier_protocol,
           "waits for parity " + std::to_string(parity) + "; it is 0 or 1" + at_line(code));
  MBarrier& b = find(absolute, code, false);
  if (b.phase % 2 != parity) {
    m.acquire(*self, b.completed[parity]);
    return;
  }
  b.waiting.push_back(self);
  self->mask = parity;
  m.park(Wait::mbarrier, code);
}

std::string Engine::explain_deadlock() const {
  std::ostringstream text;
  for (const auto& [address, b] : barriers_) {
    if (b.waiting.empty() || b.pending > 0 || b.bytes == 0) continue;
    text << ": an mbarrier still expects " << b.bytes
         << " bytes, and no copy is in flight; last told at" << at_line(b.expected_by);
    break;
  }
  return text.str();
}

void mbarrier_init(unsigned barrier, unsigned count) {
  engine().init(barrier, count, code_offset(SIMT_CALLER));
}
void mbarrier_invalidate(unsigned barrier) {
  engine().invalidate(barrier, code_offset(SIMT_CALLER));
}
void mbarrier_arrive(unsigned barrier, unsigned expected_bytes) {
  engine().arrive(barrier, expected_bytes, code_offset(SIMT_CALLER));
}
void mbarrier_expect(unsigned barrier, unsigned bytes) {
  engine().expect(barrier, bytes, code_offset(SIMT_CALLER));
}
void mbarrier_wait(unsigned barrier, unsigned parity) {
  engine().wait(barrier, parity, code_offset(SIMT_CALLER));
}
void fence_proxy() { self->proxy_fence = self->clock++; }

}  // namespace simt
