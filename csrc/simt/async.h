// What runs beside the threads: mbarriers, and the copies that complete on them.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "simt/machine.h"

namespace simt {

// One barrier in shared memory. `phase` counts the phases that are over.
struct MBarrier {
  unsigned address = 0;  // absolute
  uint32_t count = 0, pending = 0;
  int64_t bytes = 0;  // expected in this phase, less what has come
  uint32_t phase = 0;
  uint16_t initialiser = 0;
  uint32_t initialised_at = 0;  // its time
  uint32_t expected_by = 0;     // code offset of the last expect_tx
  uint16_t agent = 0;           // of the copies that complete here; 0: none yet
  uint32_t agent_clock = 0;
  uint32_t copied_by = 0;         // code offset of the last copy
  Clocks arriving, completed[2];  // of this phase; of the last one of either parity
  std::vector<Thread*> waiting;
};

// A piece of a copy into shared memory. No source: zeros.
struct Piece {
  unsigned to;  // absolute shared address
  const void* from;
  uint32_t bytes;
};

// A copy that completes on an mbarrier, and has not landed.
struct Flight {
  std::vector<Piece> pieces;
  std::vector<unsigned char> data;  // of st.async: pieces have offsets into it
  unsigned from_shared = 0;         // of a copy between blocks
  unsigned barrier = 0;
  uint32_t bytes = 0;  // that the barrier is told
  uint32_t clock = 0;  // of its agent
  uint32_t code = 0;
  const Thread* issuer = nullptr;
  bool arrives = false;  // cp.async.mbarrier.arrive: lands these copies, then arrives
  std::vector<Copy> copies;
  Clocks knowledge;  // of the arrival
};

class Engine {
 public:
  void begin_cluster();

  void init(unsigned barrier, unsigned count, uint32_t code);
  void invalidate(unsigned barrier, uint32_t code);
  void arrive(unsigned barrier, unsigned expected_bytes, uint32_t code);
  void expect(unsigned barrier, unsigned bytes, uint32_t code);
  void wait(unsigned barrier, unsigned parity, uint32_t code);

  // Starts a copy of `pieces` that completes on `barrier` (absolute); checks both ends.
  void launch(Flight flight);
  bool land_one();  // false: nothing is in flight

  void store(std::vector<BulkStore> pieces, uint32_t code);
  void wait_stores(int pending_groups, bool read);

  // `t` exits: nothing of it, and, if it is the last of its block, into that block, is in flight.
  void require_settled(Thread& t);
  std::string explain_deadlock() const;  // where expected bytes will never come

 private:
  MBarrier& find(unsigned absolute, uint32_t code, bool by_copy);
  void complete_if_done(MBarrier& barrier, const Thread& by, uint32_t code);
  void land(Flight& flight);

  std::map<unsigned, MBarrier> barriers_;
  std::deque<Flight> flights_;
};

Engine& engine();

}  // namespace simt
