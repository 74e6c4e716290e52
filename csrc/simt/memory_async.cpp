// The checks of accesses that threads do not make themselves: cp.async, bulk copies, wgmma.
#include <cstring>
#include <sstream>

#include "simt/memory.h"

namespace simt {

// ---- cp.async --------------------------------------------------------------------------------

void Memory::copy_async(void* to, const void* from, size_t bytes, const void* return_address) {
  access(from, bytes, true, Touch::read, return_address);
  access(to, bytes, true, Touch::land, return_address);
  Place place;
  locate(reinterpret_cast<uintptr_t>(to), bytes, Touch::land, code_offset(return_address), place);
  for (size_t i = 0; i < bytes; ++i) place.cells[i].write.proxy = Proxy::pending;
  if (config().async == Async::early) std::memcpy(to, from, bytes);
}

void Memory::land(const Copy& copy, uint32_t clock, uint32_t code) {
  if (config().async == Async::late) std::memcpy(copy.to, copy.from, copy.bytes);
  Place place;
  locate(reinterpret_cast<uintptr_t>(copy.to), copy.bytes, Touch::land, code, place);
  for (size_t i = 0; i < copy.bytes; ++i) {
    Stamp& w = place.cells[i].write;
    w.proxy = Proxy::generic;  // cp.async is no proxy of its own
    w.clock = clock;
  }
}

// ---- The async proxy -------------------------------------------------------------------------

void Memory::locate_absolute(unsigned absolute, size_t bytes, Touch touch, uint32_t code,
                             Place& place) {
  if (!locate_shared(reinterpret_cast<uintptr_t>(shared_bytes(absolute)), bytes, touch, code,
                     place))
    machine().fail(Check::out_of_bounds, "copies to or from no shared memory" + at_line(code));
}

// The async proxy sees an ordinary store only after its thread's fence.
void Memory::require_fence(const Stamp& write, const char* verb, const Place& place,
                           uint32_t code) {
  if (!kEveryAccessSeen) return;
  Machine& m = machine();
  if (write.group != m.group || write.proxy != Proxy::generic) return;
  const Thread& writer = m.owner(write.thread);
  if (writer.proxy_fence >= write.clock || !m.findings.is_new(Check::proxy_fence, code, write.code))
    return;
  std::ostringstream text;
  text << name(Check::proxy_fence) << ": an asynchronous instruction of " << m.describe(*self)
       << " " << verb << " " << describe(place) << at_line(code) << "\n  " << m.describe(writer)
       << " wrote it, with no fence_proxy_async since" << at_line(write.code);
  m.note(text.str());
}

void Memory::write_shared_async(unsigned absolute, size_t bytes, uint32_t code) {
  Place place;
  locate_absolute(absolute, bytes, Touch::land, code, place);
  for (size_t i = 0; i < bytes; ++i, ++place.offset) {
    Cell& cell = place.cells[i];
    require_fence(cell.write, "overwrites", place, code);
    check_write(cell, place, bytes, code, false);
    cell.write.proxy = Proxy::pending;
  }
}

void Memory::land_shared(unsigned absolute, size_t bytes, uint16_t agent, uint32_t clock) {
  Place place;
  locate_absolute(absolute, bytes, Touch::land, 0, place);
  for (size_t i = 0; i < bytes; ++i) {
    Stamp& w = place.cells[i].write;
    w.thread = agent;
    w.clock = clock;
    w.proxy = Proxy::landed;
  }
}

void Memory::read_shared_async(unsigned absolute, size_t bytes, uint32_t code, uint16_t agent,
                               uint32_t clock) {
  const Machine& m = machine();
  Place place;
  locate_absolute(absolute, bytes, Touch::read, code, place);
  Stamp last;
  for (size_t i = 0; i < bytes; ++i, ++place.offset) {
    Cell& cell = place.cells[i];
    const Stamp& w = cell.write;
    const bool same = i > 0 && w.thread == last.thread && w.clock == last.clock &&
                      w.group == last.group && w.proxy == last.proxy;
    if (!same) {
      check_written(cell, place, bytes, code);
      require_fence(w, "reads", place, code);
      last = w;
    }
    remember_reader(cell, {m.group, clock, code, agent, false, Proxy::generic});
  }
}

void Memory::write_global_async(void* p, size_t bytes, uint32_t code) {
  check(p, bytes, false, Touch::land, code);
  Place place;
  if (!locate(reinterpret_cast<uintptr_t>(p), bytes, Touch::land, code, place)) return;
  const size_t count = elements(reinterpret_cast<uintptr_t>(p), bytes, place);
  for (size_t i = 0; i < count; ++i) place.cells[i].write.proxy = Proxy::pending;
}

void Memory::land_global(void* p, size_t bytes, uint16_t agent, uint32_t clock) {
  Place place;
  if (!locate(reinterpret_cast<uintptr_t>(p), bytes, Touch::land, 0, place)) return;
  const size_t count = elements(reinterpret_cast<uintptr_t>(p), bytes, place);
  for (size_t i = 0; i < count; ++i) {
    Stamp& w = place.cells[i].write;
    w.thread = agent;
    w.clock = clock;
    w.proxy = Proxy::landed;
  }
}

}  // namespace simt
