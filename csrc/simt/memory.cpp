#include "simt/memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <sstream>
#include <stdexcept>

#include "simt/counters.h"

namespace simt {
namespace {

// Makes sure the module has a thread-local segment and that this thread's copy of it exists.
thread_local volatile char segment_anchor;

struct Module {
  uintptr_t begin = 0, end = 0;
  unsigned char* segment = nullptr;
  size_t segment_bytes = 0;
};

Module find_module() {
  segment_anchor = 0;
  Module module;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const auto here = reinterpret_cast<uintptr_t>(&find_module);
        Module m;
        m.begin = UINTPTR_MAX;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_LOAD) {
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            m.begin = std::min(m.begin, begin);
            m.end = std::max(m.end, begin + header.p_memsz);
          } else if (header.p_type == PT_TLS) {
            m.segment = static_cast<unsigned char*>(info->dlpi_tls_data);
            m.segment_bytes = header.p_memsz;
          }
        }
        if (here < m.begin || here >= m.end) return 0;
        *static_cast<Module*>(out) = m;
        return 1;
      },
      &module);
  return module;
}

void* map_zero(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

const char* verb(Touch touch) {
  switch (touch) {
    case Touch::read: return "reads";
    case Touch::write: return "writes";
    case Touch::atomic: return "updates atomically";
    case Touch::land: return "copies asynchronously to";
  }
  return "";
}

}  // namespace

Cells::Cells(size_t count)
    : data_(static_cast<Cell*>(map_zero(count * sizeof(Cell)))), count_(count) {}

Cells& Cells::operator=(Cells&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(count_, other.count_);
  return *this;
}

Cells::~Cells() {
  if (data_) munmap(data_, count_ * sizeof(Cell));
}

Memory::Memory() : dynamic_(static_cast<unsigned char*>(map_zero(kMaxCluster * kSlotBytes))) {}

Memory& memory() {
  static Memory instance;
  return instance;
}

void Memory::begin_launch(const void* args, size_t args_bytes) {
  args_begin_ = reinterpret_cast<uintptr_t>(args);
  args_end_ = args_begin_ + args_bytes;
  const Module module = find_module();  // of this host thread: its segment is its own
  image_begin_ = module.begin;
  image_end_ = module.end;
  static_live_ = module.segment;
  if (static_bytes_ != module.segment_bytes) {
    static_bytes_ = module.segment_bytes;
    static_variables_ = static_variables();
    is_guard_.assign(static_bytes_, false);
    for (const StaticVariable& v : static_variables_)
      for (size_t i = 0; v.guard && i < v.bytes; ++i) is_guard_[v.offset + i] = true;
  }
  static_begin_ = static_bytes_;
  static_end_ = 0;
  if (!kEveryAccessSeen) static_begin_ = 0, static_end_ = static_bytes_;
  last_ = nullptr;
}

void Memory::begin_cluster() {
  const Machine& m = machine();
  for (unsigned rank = 0; rank < m.cluster_blocks; ++rank) {
    if (!dynamic_cells_[rank].data()) {
      dynamic_cells_[rank] = Cells(kSlotBytes);
      static_cells_[rank] = Cells(static_bytes_);
    }
    // Numbers that are wrong in an obvious way, should an unchecked path read them.
    std::memset(dynamic_shared(rank), 0xff, m.grid.shared_bytes);
  }
  if (m.cluster_blocks > 1) static_images_.resize(m.cluster_blocks * image_stride());
}

void Memory::switch_block(const Block* from, const Block* to) {
  if (static_begin_ >= static_end_) return;
  const size_t bytes = static_end_ - static_begin_;
  unsigned char* live = static_live_ + static_begin_;
  if (from) std::memcpy(&static_images_[from->rank * image_stride() + static_begin_], live, bytes);
  std::memcpy(live, &static_images_[to->rank * image_stride() + static_begin_], bytes);
}

bool Memory::is_shared(uintptr_t p) const {
  return p - reinterpret_cast<uintptr_t>(dynamic_) < kMaxCluster * kSlotBytes ||
         p - reinterpret_cast<uintptr_t>(static_live_) < static_bytes_ ||
         p - reinterpret_cast<uintptr_t>(static_images_.data()) < static_images_.size();
}

unsigned char* Memory::dynamic_shared(unsigned rank) { return dynamic_ + rank * kSlotBytes; }

// ---- Which memory an address belongs to ----------------------------------------------------

bool Memory::locate_shared(uintptr_t p, size_t bytes, Touch touch, uint32_t code, Place& place) {
  Machine& m = machine();
  const size_t in_dynamic = p - reinterpret_cast<uintptr_t>(dynamic_);
  if (in_dynamic < kMaxCluster * kSlotBytes) {
    place.rank = static_cast<unsigned>(in_dynamic / kSlotBytes);
    place.offset = in_dynamic % kSlotBytes;
    if (place.rank >= m.cluster_blocks || place.offset + bytes > m.grid.shared_bytes) {
      std::ostringstream text;
      text << verb(touch) << " " << bytes << " bytes at +" << place.offset
           << " of dynamic shared memory, which has " << m.grid.shared_bytes << " bytes"
           << at_line(code);
      m.fail(Check::out_of_bounds, text.str());
    }
    place.cells = dynamic_cells_[place.rank].data() + place.offset;
    return true;
  }
  size_t in_static = p - reinterpret_cast<uintptr_t>(static_live_);
  if (in_static < static_bytes_) {
    place.rank = self->block->rank;
  } else {
    in_static = p - reinterpret_cast<uintptr_t>(static_images_.data());
    if (in_static >= m.cluster_blocks * image_stride() || m.cluster_blocks == 1) return false;
    place.rank = static_cast<unsigned>(in_static / image_stride());
    in_static %= image_stride();
    if (in_static >= static_bytes_) return false;
  }
  place.is_static = true;
  place.offset = in_static;
  static_begin_ = std::min(static_begin_, in_static);
  static_end_ = std::max(static_end_, in_static + bytes);
  if (!is_guard_[in_static]) place.cells = static_cells_[place.rank].data() + in_static;
  return true;
}

Region* Memory::find(uintptr_t p) {
  if (last_ && p - last_->begin < last_->end - last_->begin) return last_;
  for (const auto& region : regions_)
    if (p - region->begin < region->end - region->begin) return last_ = region.get();
  return nullptr;
}

// Not a tensor and not shared memory: constants of the module and the launch's own parameters may
// be read, everything else is a finding.
void Memory::outside(uintptr_t p, size_t bytes, Touch touch, uint32_t code) {
  const bool image = p - image_begin_ < image_end_ - image_begin_;
  const bool args = p - args_begin_ < args_end_ - args_begin_;
  if (touch == Touch::read && (image || args)) return;
  Machine& m = machine();
  std::ostringstream text;
  text << verb(touch) << " " << bytes << " bytes ";
  for (size_t i = 0; i < m.thread_count; ++i) {
    const Thread& owner = *m.threads[i];
    if (p - reinterpret_cast<uintptr_t>(owner.stack) >= StackPool::kStackBytes) continue;
    text << "of a local variable of " << m.describe(owner) << at_line(code);
    m.fail(Check::foreign_stack, text.str());
  }
  const Region* nearest = nullptr;
  uintptr_t distance = UINTPTR_MAX;
  for (const auto& region : regions_) {
    const uintptr_t d = p < region->begin ? region->begin - p : p - region->end;
    if (d < distance) distance = d, nearest = region.get();
  }
  if (nearest && distance < (1u << 20)) {
    const auto size = int64_t(nearest->element_bytes);
    const bool before = p < nearest->begin;
    const int64_t offset = int64_t(p) - int64_t(nearest->begin);
    text << "of " << nearest->name << " + " << offset / size << " elements, "
         << (int64_t(distance) + (before ? size - 1 : 0)) / size + (before ? 0 : 1)
         << (before ? " before its start" : " past its last element");
  } else {
    text << "in no tensor of this launch";
  }
  text << at_line(code);
  m.fail(Check::out_of_bounds, text.str());
}

bool Memory::locate(uintptr_t p, size_t bytes, Touch touch, uint32_t code, Place& place) {
  if (locate_shared(p, bytes, touch, code, place)) return place.cells != nullptr;
  Region* region = find(p);
  if (!region) {
    outside(p, bytes, touch, code);
    return false;
  }
  if (p + bytes > region->end) outside(region->end, p + bytes - region->end, touch, code);
  const size_t first = (p - region->begin) / region->element_bytes;
  const size_t last = (p + bytes - 1 - region->begin) / region->element_bytes;
  place.region = region;
  place.granule = region->element_bytes;
  place.offset = first;
  if (!region->exists.empty() || region->nested) {
    for (size_t e = first; e <= last; ++e) {
      if (has(*region, e)) continue;
      std::ostringstream text;
      text << verb(touch) << " " << bytes << " bytes of " << region->name << " + " << e
           << " elements, in a gap between its rows" << at_line(code);
      machine().fail(Check::out_of_bounds, text.str());
    }
  }
  const bool writes = touch != Touch::read;
  if (writes && !(uint8_t(region->access) & uint8_t(Access::write))) {
    machine().fail(Check::write_to_const, std::string(verb(touch)) + " " +
                                              element_name(*region, first) + ", which is an input" +
                                              at_line(code));
  }
  if (region->access == Access::read) return false;  // nothing can race with reads alone
  if (!region->cells.data())
    region->cells = Cells((region->end - region->begin) / region->element_bytes + 1);
  place.cells = region->cells.data() + first;
  return true;
}

// ---- The checks of one access --------------------------------------------------------------

void Memory::access(const void* address, size_t bytes, bool aligned, Touch touch,
                    const void* return_address) {
  const auto p = reinterpret_cast<uintptr_t>(address);
  if (p - reinterpret_cast<uintptr_t>(self->stack) < StackPool::kStackBytes) {
    if (!self->watched.empty()) check_registers(p, bytes, touch, code_offset(return_address));
    return;
  }
  const uint32_t code = code_offset(return_address);
  check(address, bytes, aligned, touch, code);
  if (!counters().on) return;
  const bool shared = is_shared(p);
  if (shared || find(p)) counters().touch(*self, p, bytes, shared, touch != Touch::read, code);
}

// How many cells an access of `bytes` bytes at p covers.
size_t Memory::elements(uintptr_t p, size_t bytes, const Place& place) {
  const size_t skew = place.region ? (p - place.region->begin) % place.granule : 0;
  return (skew + bytes + place.granule - 1) / place.granule;
}

void Memory::check(const void* address, size_t bytes, bool aligned, Touch touch, uint32_t code) {
  const auto p = reinterpret_cast<uintptr_t>(address);
  if (aligned && (p & (bytes - 1)) != 0) {
    std::ostringstream text;
    text << verb(touch) << " " << bytes << " bytes at an address that is " << (p & (bytes - 1))
         << " past a multiple of " << bytes;
    Place place;
    if (locate(p & ~uintptr_t(bytes - 1), 1, Touch::read, code, place) || place.region)
      text << ", in " << describe(place);
    machine().fail(Check::misaligned, text.str() + at_line(code));
  }
  Place place;
  if (!locate(p, bytes, touch, code, place) || !kEveryAccessSeen) return;
  const size_t count = elements(p, bytes, place);
  Cell before;
  for (size_t i = 0; i < count; ++i, ++place.offset) {
    Cell& cell = place.cells[i];
    // Neighbours mostly have one history, and then what is to be said of this one has been said.
    if (i > 0 && std::memcmp(&cell, &before, sizeof(Cell)) == 0) {
      cell = place.cells[i - 1];
      continue;
    }
    before = cell;
    if (touch == Touch::read) check_read(cell, place, bytes, code);
    else check_write(cell, place, bytes, code, touch == Touch::atomic);
  }
}

// Is an earlier access unordered with the running thread? `other_block`: it was another block's.
bool Memory::conflict(const Stamp& earlier, const Place& place, bool& other_block) const {
  const Machine& m = machine();
  if (earlier.group == m.group) {
    other_block = m.owner(earlier.thread).block != self->block;
    return !m.ordered(*self, earlier.thread, earlier.clock);
  }
  // Shared memory of an earlier cluster is gone; a tensor outlives it.
  other_block = true;
  return place.region && earlier.group >= m.first_group &&
         !m.knows_cluster(earlier.group, earlier.thread, earlier.atomic ? 0 : earlier.clock);
}

// What is read has been written, has landed, and is ordered before.
void Memory::check_written(Cell& cell, const Place& place, size_t bytes, uint32_t code) {
  if (!kEveryAccessSeen) return;
  Machine& m = machine();
  const bool written = place.region ? cell.write.group != 0 ||
                                          (uint8_t(place.region->access) & uint8_t(Access::read))
                                    : cell.write.group == m.group;
  if (!written && m.findings.is_new(Check::uninitialised, code, 0)) {
    m.note(std::string(name(Check::uninitialised)) + ": " + m.describe(*self) + " reads " +
           describe(place) + ", which nothing has written" + at_line(code));
  }
  if (cell.write.proxy == Proxy::pending && cell.write.group == m.group)
    report_conflict(cell.write, "async", "reads", "copies asynchronously to", place, bytes, code,
                    false);
  bool other_block = false;
  if (written && conflict(cell.write, place, other_block))
    report_conflict(cell.write, "read after write", "reads", "wrote", place, bytes, code,
                    other_block);
}

void Memory::check_read(Cell& cell, const Place& place, size_t bytes, uint32_t code) {
  check_written(cell, place, bytes, code);
  remember_reader(cell, {machine().group, self->clock, code, self->id, false, Proxy::generic});
}

// Keeps readers that a later writer might not have synchronised with: one that is ordered before
// this read is covered by it.
void Memory::remember_reader(Cell& cell, const Stamp& reader) {
  const Machine& m = machine();
  int slot = 1;
  for (int i = 0; i < 2; ++i) {
    const Stamp& r = cell.read[i];
    if (r.group != m.group || r.thread == reader.thread || m.ordered(*self, r.thread, r.clock)) {
      slot = i;
      break;
    }
  }
  cell.read[slot] = reader;
}

void Memory::check_write(Cell& cell, const Place& place, size_t bytes, uint32_t code, bool atomic) {
  if (!kEveryAccessSeen) return;
  Machine& m = machine();
  bool other_block = false;
  if (cell.write.proxy == Proxy::pending && cell.write.group == m.group)
    report_conflict(cell.write, "async", "writes", "copies asynchronously to", place, bytes, code,
                    false);
  if (!(atomic && cell.write.atomic) && cell.write.group != 0 &&
      conflict(cell.write, place, other_block))
    report_conflict(cell.write, "write after write", "writes", "wrote", place, bytes, code,
                    other_block);
  for (const Stamp& r : cell.read)
    if (r.group != 0 && conflict(r, place, other_block))
      report_conflict(r, "write after read", "writes", "read", place, bytes, code, other_block);
  cell.write = {m.group, self->clock, code, self->id, atomic, Proxy::generic};
}

}  // namespace simt
