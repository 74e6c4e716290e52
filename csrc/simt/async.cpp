// Copies that proceed beside the threads: bulk loads and stores, st.async, and what lands when.
#include "simt/async.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "simt/counters.h"
#include "simt/memory.h"
#include "simt/ptx/bulk_copy.h"

#define SIMT_CALLER __builtin_return_address(0)

namespace simt {
namespace {

void require_multiple(const char* what, uint64_t value, uint64_t of, uint32_t code) {
  if (value % of == 0) return;
  std::ostringstream text;
  text << "starts a bulk copy whose " << what << ", " << value << ", is not a multiple of " << of
       << at_line(code);
  machine().fail(Check::bulk_copy, text.str());
}

// Asynchronous copies may only go to blocks that are there.
void require_running(unsigned absolute, uint32_t code) {
  const Block& block = machine().blocks[Memory::rank_of(absolute)];
  if (&block == self->block) return;
  if (block.live == 0 || self->block->cluster_waits == 0)
    machine().fail(
        Check::cluster_protocol,
        std::string("copies to a block of its cluster that ") +
            (block.live == 0 ? "has exited" : "may not have started: no cluster barrier yet") +
            at_line(code));
}

}  // namespace

void Engine::launch(Flight flight) {
  Machine& m = machine();
  require_running(flight.barrier, flight.code);
  MBarrier& b = find(flight.barrier, flight.code, !flight.arrives);
  flight.issuer = self;
  if (flight.arrives) {
    flight.clock = self->clock++;
    m.release(*self, flight.knowledge);
  } else {
    if (b.agent == 0) b.agent = m.new_agents(*self, 1);
    flight.clock = ++b.agent_clock;
    b.copied_by = flight.code;
  }
  if (flight.from_shared)
    memory().read_shared_async(flight.from_shared, flight.bytes, flight.code, b.agent,
                               flight.clock);
  for (const Piece& piece : flight.pieces) {
    if (Memory::rank_of(piece.to) != Memory::rank_of(flight.barrier))
      m.fail(Check::bulk_copy,
             "copies to one block and completes on a barrier of another" + at_line(flight.code));
    memory().write_shared_async(piece.to, piece.bytes, flight.code);
  }
  flights_.push_back(std::move(flight));
  if (config().async == Async::early) {
    Flight now = std::move(flights_.back());
    flights_.pop_back();
    land(now);
  }
}

// The oldest, the newest, or any: by the order of threads.
bool Engine::land_one() {
  if (flights_.empty()) return false;
  size_t i = 0;
  if (config().order == Order::descending) i = flights_.size() - 1;
  if (config().order == Order::random) i = machine().random() % flights_.size();
  Flight flight = std::move(flights_[i]);
  flights_.erase(flights_.begin() + ptrdiff_t(i));
  land(flight);
  return true;
}

void Engine::land(Flight& flight) {
  MBarrier& b = barriers_.at(flight.barrier);
  for (const Copy& copy : flight.copies) memory().land(copy, flight.clock, flight.code);
  if (flight.arrives) {
    if (b.pending == 0)
      machine().fail(*flight.issuer, Check::mbarrier_protocol,
                     "arrives, by cp_async_mbarrier_arrive, once too often" + at_line(flight.code));
    join(b.arriving, flight.knowledge);
    --b.pending;
    complete_if_done(b, *flight.issuer, flight.code);
    return;
  }
  for (const Piece& piece : flight.pieces) {
    unsigned char* to = memory().shared_bytes(piece.to);
    if (!flight.data.empty()) std::memcpy(to, flight.data.data(), piece.bytes);
    else if (flight.from_shared)
      std::memmove(to, memory().shared_bytes(flight.from_shared), piece.bytes);
    else if (piece.from) std::memcpy(to, piece.from, piece.bytes);
    else std::memset(to, 0, piece.bytes);
    memory().land_shared(piece.to, piece.bytes, b.agent, flight.clock);
  }
  if (b.arriving.size() <= b.agent) b.arriving.resize(b.agent + 1u);
  b.arriving[b.agent] = std::max(b.arriving[b.agent], flight.clock);
  b.bytes -= flight.bytes;
  complete_if_done(b, *flight.issuer, flight.code);
}

// ---- Stores ----------------------------------------------------------------------------------

void Engine::store(std::vector<BulkStore> pieces, uint32_t code) {
  BulkStores& stores = self->stores;
  if (stores.agent == 0) stores.agent = machine().new_agents(*self, 1);
  const uint32_t clock = ++stores.clock;
  for (BulkStore& piece : pieces) {
    piece.clock = clock;
    piece.group = stores.commits;
    memory().read_shared_async(piece.from, piece.bytes, code, stores.agent, clock);
    memory().write_global_async(piece.to, piece.bytes, code);
    if (counters().on) counters().bulk(piece.bytes, true, code);
    if (config().async == Async::early)
      std::memcpy(piece.to, memory().shared_bytes(piece.from), piece.bytes);
    stores.in_flight.push_back(piece);
  }
}

void Engine::wait_stores(int pending_groups, bool read) {
  Machine& m = machine();
  BulkStores& stores = self->stores;
  const int64_t done = int64_t(stores.commits) - pending_groups;
  Clocks clocks(stores.agent + 1u, 0);
  std::vector<BulkStore> left;
  for (BulkStore& store : stores.in_flight) {
    if (int64_t(store.group) >= done) {
      left.push_back(store);
      continue;
    }
    if (!store.read && config().async == Async::late)
      std::memcpy(store.to, memory().shared_bytes(store.from), store.bytes);
    store.read = true;
    clocks[stores.agent] = std::max(clocks[stores.agent], store.clock);
    if (read) left.push_back(store);
    else memory().land_global(store.to, store.bytes, stores.agent, store.clock);
  }
  stores.in_flight = std::move(left);
  if (stores.agent) m.acquire(*self, clocks);
}

void Engine::require_settled(Thread& t) {
  Machine& m = machine();
  for (const BulkStore& store : t.stores.in_flight)
    if (!store.read)
      m.fail(Check::async_pending,
             "exits while a bulk store of its own may still read shared memory: no "
             "bulk_wait_read since");
  for (const Watched& watched : t.watched)
    if (watched.last_use > t.warp->wgmmas.landed)
      m.fail(Check::wgmma_protocol, "exits while a wgmma of its own is in flight");
  if (t.block->live > 0) return;
  for (const Thread* first : t.block->members) {
    if (first->lane != 0 || m.warp_of_block(*first->warp) % 4 == 0) continue;
    const Warp& before = *m.warps[size_t(first->warp->number - 1)];
    if (before.wgmmas.issued != first->warp->wgmmas.issued)
      m.fail(*first, Check::wgmma_protocol,
             "and its warp have started " + std::to_string(first->warp->wgmmas.issued) +
                 " wgmmas, the warp before it in the warpgroup " +
                 std::to_string(before.wgmmas.issued));
  }
  for (const auto& [address, b] : barriers_) {
    if (Memory::rank_of(address) != t.block->rank || b.agent == 0) continue;
    const auto has_waited = [&](const Thread* member) {
      return m.ordered(*member, b.agent, b.agent_clock);
    };
    if (std::none_of(t.block->members.begin(), t.block->members.end(), has_waited))
      m.fail(Check::async_pending,
             "is the last of its block to exit, and none has waited for the last copy into the "
             "block's shared memory" +
                 at_line(b.copied_by));
  }
}

// ---- ptx/bulk_copy.h -------------------------------------------------------------------------

void bulk_load(unsigned shared, const void* global, unsigned bytes, unsigned barrier,
               unsigned ranks) {
  const uint32_t code = code_offset(SIMT_CALLER);
  require_multiple("size", bytes, 16, code);
  require_multiple("shared address", shared & 0xffffffu, 16, code);
  require_multiple("global address", reinterpret_cast<uintptr_t>(global), 16, code);
  memory().check(global, bytes, false, Touch::read, code);
  if (counters().on) counters().bulk(bytes, false, code);
  const unsigned to = memory().absolute_shared(shared, code);
  const unsigned on = memory().absolute_shared(barrier, code);
  for (unsigned rank = 0; rank < (ranks ? machine().cluster_blocks : 1); ++rank) {
    if (ranks && !(ranks >> rank & 1)) continue;
    Flight flight;
    flight.pieces = {{ranks ? memory().in_block(to, rank) : to, global, bytes}};
    flight.barrier = ranks ? memory().in_block(on, rank) : on;
    flight.bytes = bytes;
    flight.code = code;
    engine().launch(std::move(flight));
  }
}

void bulk_to_cluster(unsigned mapped, unsigned shared, unsigned bytes, unsigned barrier) {
  const uint32_t code = code_offset(SIMT_CALLER);
  require_multiple("size", bytes, 16, code);
  require_multiple("shared address", shared & 0xffffffu, 16, code);
  require_multiple("destination", mapped & 0xffffffu, 16, code);
  const unsigned from = memory().absolute_shared(shared, code);
  Flight flight;
  flight.pieces = {{memory().absolute_shared(mapped, code), nullptr, bytes}};
  flight.barrier = memory().absolute_shared(barrier, code);
  flight.from_shared = from;
  flight.bytes = bytes;
  flight.code = code;
  engine().launch(std::move(flight));
}

void store_async(unsigned mapped, uint2 value, unsigned barrier) {
  const uint32_t code = code_offset(SIMT_CALLER);
  require_multiple("destination", mapped & 0xffffffu, 8, code);
  Flight flight;
  flight.pieces = {{memory().absolute_shared(mapped, code), nullptr, 8}};
  flight.data.resize(8);
  std::memcpy(flight.data.data(), &value, 8);
  flight.barrier = memory().absolute_shared(barrier, code);
  flight.bytes = 8;
  flight.code = code;
  engine().launch(std::move(flight));
}

void bulk_store(void* global, unsigned shared, unsigned bytes) {
  const uint32_t code = code_offset(SIMT_CALLER);
  require_multiple("size", bytes, 16, code);
  require_multiple("shared address", shared & 0xffffffu, 16, code);
  require_multiple("global address", reinterpret_cast<uintptr_t>(global), 16, code);
  engine().store({{memory().absolute_shared(shared, code), global, bytes, 0, 0, false}}, code);
}

void bulk_commit() { ++self->stores.commits; }
void bulk_wait(int pending_groups, bool read) { engine().wait_stores(pending_groups, read); }

void cp_async_arrive(unsigned barrier) {
  const uint32_t code = code_offset(SIMT_CALLER);
  Flight flight;
  flight.arrives = true;
  flight.copies = std::move(self->copies);
  self->copies.clear();
  flight.barrier = memory().absolute_shared(barrier, code);
  flight.code = code;
  engine().launch(std::move(flight));
}

}  // namespace simt
