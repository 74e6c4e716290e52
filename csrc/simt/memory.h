// What the checks know about memory: for each byte of shared memory and each element of a tensor
// who wrote it and who read it, and when (csrc/simt/machine.h has the clocks).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "simt/machine.h"
#include "simt/tensors.h"

namespace simt {

// In AddressSanitizer's builds plain accesses do not arrive here (hooks.cpp), so that nothing can
// be said of what was written when: bounds are checked, order and initialisation are not.
#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kEveryAccessSeen = false;
#else
inline constexpr bool kEveryAccessSeen = true;
#endif

enum class Touch : uint8_t { read, write, atomic, land };  // land: an asynchronous copy arriving

// Who wrote: a thread's own instruction; an asynchronous copy that has landed, or is still to.
enum class Proxy : uint8_t { generic, landed, pending };

// One access. Valid while `group` is the running cluster, or, in a tensor, one of this launch.
struct Stamp {
  uint32_t group = 0, clock = 0, code = 0;
  uint16_t thread = 0;
  bool atomic = false;
  Proxy proxy = Proxy::generic;
};

struct Cell {
  Stamp write, read[2];
};

// Zero pages until touched, so that a cell costs memory only where a kernel went.
class Cells {
 public:
  Cells() = default;
  explicit Cells(size_t count);
  Cells(Cells&& other) noexcept : data_(other.data_), count_(other.count_) {
    other.data_ = nullptr;
  }
  Cells& operator=(Cells&& other) noexcept;
  ~Cells();
  Cell* data() const { return data_; }

 private:
  Cell* data_ = nullptr;
  size_t count_ = 0;
};

struct Region {
  std::string name;
  uintptr_t begin = 0, end = 0;
  Access access = Access::read;
  bool must_be_written = false;
  size_t element_bytes = 1;
  std::vector<int64_t> sizes, strides;
  std::vector<bool> exists;  // per element; empty: all do, or
  bool nested = false;       // those that sizes and strides reach, strides falling over `by_stride`
  std::vector<size_t> by_stride;
  Cells cells;  // per element, where written
};

// A `__shared__` variable: where it is in the module's thread-local segment. A guard is the flag
// that g++ keeps beside an array whose elements have a constructor, even one that does nothing.
struct StaticVariable {
  size_t offset, bytes;
  std::string name;
  bool guard;
};
std::vector<StaticVariable> static_variables();  // by offset

// The index of an element of `region` by greedy division with the strides; what is left over is 0
// where there is such an element.
int64_t index_of(const Region& region, size_t element, std::vector<int64_t>& index);

class Memory {
 public:
  Memory();

  void begin_launch(const void* args, size_t args_bytes);
  void begin_cluster();
  // Brings the static shared memory of `to` into the thread-local segment.
  void switch_block(const Block* from, const Block* to);

  void access(const void* p, size_t bytes, bool aligned, Touch touch, const void* return_address);
  // The same for memory that is not on a stack, by the running thread at code offset `code`.
  void check(const void* p, size_t bytes, bool aligned, Touch touch, uint32_t code);
  void copy_async(void* to, const void* from, size_t bytes, const void* return_address);
  // At the issuer's time `clock`.
  void land(const Copy& copy, uint32_t clock, uint32_t code);

  // Asynchronous accesses for the running thread, by `agent` at its time `clock`. Shared addresses
  // are absolute (see absolute_shared). A write is pending until it lands.
  void write_shared_async(unsigned address, size_t bytes, uint32_t code);
  void land_shared(unsigned address, size_t bytes, uint16_t agent, uint32_t clock);
  void read_shared_async(unsigned address, size_t bytes, uint32_t code, uint16_t agent,
                         uint32_t clock);
  void write_global_async(void* p, size_t bytes, uint32_t code);
  void land_global(void* p, size_t bytes, uint16_t agent, uint32_t clock);
  void check_registers(uintptr_t p, size_t bytes, Touch touch, uint32_t code);

  unsigned char* dynamic_shared(unsigned rank);
  bool is_shared(uintptr_t p) const;
  unsigned shared_address(const void* p, const void* return_address);
  void* at_shared(unsigned address, uint32_t code);  // the generic pointer
  // The same address with its block's rank in it, whoever runs; and what is there.
  unsigned absolute_shared(unsigned address, uint32_t code);
  unsigned char* shared_bytes(unsigned absolute);
  static unsigned in_block(unsigned absolute, unsigned rank) {
    return (absolute & ((1u << kRankShift) - 1)) | (rank + 1) << kRankShift;
  }
  static constexpr unsigned kRankShift = 24;
  static unsigned rank_of(unsigned absolute) { return (absolute >> kRankShift) - 1; }
  static constexpr unsigned kDynamicBytes = 256 * 1024;  // where static shared memory starts
  unsigned map_shared(unsigned address, unsigned rank, const void* return_address);

  void add(const Tensor& tensor);
  void require_written() const;
  void end_scope() { regions_.clear(); }

 private:
  static constexpr size_t kSlotBytes = kDynamicBytes;  // 227 KB of it at most

  struct Place {
    Cell* cells = nullptr;
    size_t granule = 1;
    const Region* region = nullptr;
    unsigned rank = 0;
    bool is_static = false;
    size_t offset = 0;
  };

  void locate_absolute(unsigned absolute, size_t bytes, Touch touch, uint32_t code, Place& place);
  void remember_reader(Cell& cell, const Stamp& reader);
  void require_fence(const Stamp& write, const char* verb, const Place& place, uint32_t code);
  static size_t elements(uintptr_t p, size_t bytes, const Place& place);
  bool locate(uintptr_t p, size_t bytes, Touch touch, uint32_t code, Place& place);
  bool locate_shared(uintptr_t p, size_t bytes, Touch touch, uint32_t code, Place& place);
  Region* find(uintptr_t p);
  void outside(uintptr_t p, size_t bytes, Touch touch, uint32_t code);
  void check_written(Cell& cell, const Place& place, size_t bytes, uint32_t code);
  void check_read(Cell& cell, const Place& place, size_t bytes, uint32_t code);
  void check_write(Cell& cell, const Place& place, size_t bytes, uint32_t code, bool atomic);
  bool conflict(const Stamp& earlier, const Place& place, bool& other_block) const;
  void report_conflict(const Stamp& earlier, const char* kind, const char* now, const char* then,
                       const Place& place, size_t bytes, uint32_t code, bool other_block);
  static bool has(const Region& region, size_t element);
  std::string element_name(const Region& region, size_t element) const;
  std::string describe(const Place& place) const;

  std::vector<std::unique_ptr<Region>> regions_;
  Region* last_ = nullptr;
  uintptr_t args_begin_ = 0, args_end_ = 0;
  uintptr_t image_begin_ = 0, image_end_ = 0;  // this module's code and constants
  unsigned char* dynamic_ = nullptr;           // kMaxCluster slots
  Cells dynamic_cells_[kMaxCluster];
  unsigned char* static_live_ = nullptr;  // the thread-local segment
  size_t static_bytes_ = 0;
  // From one block's image to the next: as aligned as the segment itself.
  size_t image_stride() const { return (static_bytes_ + 15) / 16 * 16; }
  size_t static_begin_ = 0, static_end_ = 0;  // the part of it this launch has touched
  std::vector<StaticVariable> static_variables_;
  std::vector<bool> is_guard_;                // per byte of the segment
  std::vector<unsigned char> static_images_;  // of blocks that are not running
  Cells static_cells_[kMaxCluster];
};

Memory& memory();

}  // namespace simt
