// wgmma: descriptors, groups, what may not be touched meanwhile; setmaxnreg.
#include "cuda/ptx/wgmma.cuh"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <sstream>

#include "simt/matrix.h"
#include "simt/memory.h"
#include "simt/ptx/registers.h"

#define SIMT_CALLER __builtin_return_address(0)

namespace simt {
namespace {

constexpr int kRows = 16, kMaxK = 32, kMaxN = 256;  // of one warp

struct WgmmaArgs {
  WgmmaShape shape;
  float* d;
  const unsigned* a_registers;
  uint64_t a, b;
  unsigned metadata;
  bool accumulate;
};

int element_bytes(Operand type) { return type == Operand::tf32 ? 4 : 2; }
int depth(const WgmmaShape& shape) {
  return (shape.type == Operand::tf32 ? 8 : 16) * (shape.selector >= 0 ? 2 : 1);
}

// An operand in shared memory as its descriptor says (csrc/cuda/ptx/wgmma_descriptor.cuh).
struct Matrix {
  unsigned start, leading, stride;
  unsigned width;  // chunks of 16 bytes that a swizzle permutes: 1, 2, 4, 8
  bool mn_major;
  int bytes;  // of an element

  Matrix(uint64_t descriptor, bool mn, int element)
      : start(unsigned(descriptor & 0x3fff) << 4),
        leading(unsigned(descriptor >> 16 & 0x3fff) << 4),
        stride(unsigned(descriptor >> 32 & 0x3fff) << 4),
        mn_major(mn),
        bytes(element) {
    constexpr unsigned kWidths[] = {1, 8, 4, 2};
    width = kWidths[descriptor >> 62];
  }

  // Shared address of the 16-byte chunk with element (mn, k), of which it is a multiple of 16 /
  // bytes in the contiguous direction.
  unsigned chunk(int mn, int k) const {
    const unsigned per_chunk = 16u / unsigned(bytes);
    unsigned at = start;
    if (!mn_major) {
      const unsigned column = unsigned(k) / per_chunk;
      at += unsigned(mn) % 8 * 16 * width + unsigned(mn) / 8 * stride;
      at += column * (width == 1 ? leading : 16);
    } else {
      const unsigned row = unsigned(mn) / per_chunk;
      at += unsigned(k) % 8 * 16 * width;
      if (width == 1) at += row * stride + unsigned(k) / 8 * leading;
      else at += row % width * 16 + row / width * leading + unsigned(k) / 8 * stride;
    }
    return at ^ (at >> 7 & (width - 1)) << 4;
  }
};

void require_descriptor(uint64_t descriptor, const Matrix& matrix, int columns, const char* which,
                        uint32_t code) {
  std::ostringstream text;
  constexpr uint64_t kUsed = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
  if (descriptor & ~kUsed) {
    text << "has bits in the descriptor of " << which
         << " that are reserved, or a base offset, which is not emulated";
  } else if (!matrix.mn_major && matrix.width > 1 &&
             matrix.start % (16 * matrix.width) + unsigned(columns * matrix.bytes) >
                 16 * matrix.width) {
    text << "reads " << columns * matrix.bytes << " bytes along k of " << which << " from byte "
         << matrix.start % (16 * matrix.width) << " of rows of " << 16 * matrix.width;
  } else {
    return;
  }
  machine().fail(Check::wgmma_protocol, text.str() + at_line(code));
}

// Visits the shared address of each 16-byte chunk of rows [first, first + count) and all columns.
template <typename Visit>
void for_chunks(const Matrix& matrix, int first, int count, int columns, const Visit& visit) {
  const int per_chunk = 16 / matrix.bytes;
  const int mn_step = matrix.mn_major ? per_chunk : 1, k_step = matrix.mn_major ? 1 : per_chunk;
  for (int mn = first; mn < first + count; mn += mn_step)
    for (int k = 0; k < columns; k += k_step) visit(matrix.chunk(mn, k), mn, k);
}

template <typename Store>
void read_matrix(const Matrix& matrix, Operand type, int first, int count, int columns,
                 const Store& store) {
  for_chunks(matrix, first, count, columns, [&](unsigned at, int mn, int k) {
    const unsigned char* chunk = memory().shared_bytes(memory().absolute_shared(at, 0));
    for (int e = 0; e < 16 / matrix.bytes; ++e) {
      unsigned bits = 0;
      std::memcpy(&bits, chunk + e * matrix.bytes, size_t(matrix.bytes));
      store(matrix.mn_major ? mn + e : mn, matrix.mn_major ? k : k + e, to_float(type, bits));
    }
  });
}

// A warp's part of one wgmma, with everything it takes from registers at its issue.
struct Product {
  WgmmaShape shape;
  uint64_t a, b;
  bool accumulate;
  bool a_in_registers;
  int first_row;  // of the warp, in the 64
  std::array<std::array<unsigned, 4>, kWarp> a_registers;
  std::array<unsigned, kWarp> metadata;
  std::array<float*, kWarp> d;

  void run(const Warp& warp) const {
    static float a_values[kRows][kMaxK], b_values[kMaxK][kMaxN];
    const int k = depth(shape), n = shape.n, element = element_bytes(shape.type);
    const bool sparse = shape.selector >= 0;
    const int a_columns = sparse ? k / 2 : k;
    const Mma mma{shape.type, k, shape.selector};
    if (sparse) std::memset(a_values, 0, sizeof(a_values));
    const auto store_a = [&](int row, int column, float value) {
      const int at = sparse ? logical_column(warp, mma, metadata.data(), row, column) : column;
      a_values[row][at] = value;
    };
    if (a_in_registers) {
      const bool words = shape.type == Operand::tf32;
      for (int lane = 0; lane < kWarp; ++lane) {
        for (int r = 0; r < 4; ++r) {
          for (int e = 0; e < (words ? 1 : 2); ++e) {
            const int column = (words ? lane % 4 : lane % 4 * 2 + e) + r / 2 * (words ? 4 : 8);
            const unsigned word = a_registers[size_t(lane)][size_t(r)];
            store_a(lane / 4 + r % 2 * 8, column,
                    to_float(shape.type, words ? word : word >> (16 * e) & 0xffff));
          }
        }
      }
    } else {
      read_matrix(Matrix(a, shape.a_mn_major, element), shape.type, first_row, kRows, a_columns,
                  [&](int mn, int column, float value) { store_a(mn - first_row, column, value); });
    }
    read_matrix(Matrix(b, shape.b_mn_major, element), shape.type, 0, n, k,
                [&](int mn, int row, float value) { b_values[row][mn] = value; });
    for (int row = 0; row < kRows; ++row) {
      double sum[kMaxN] = {};
      for (int i = 0; i < k; ++i)
        for (int column = 0; column < n; ++column)
          sum[column] += double(a_values[row][i]) * b_values[i][column];
      for (int column = 0; column < n; ++column) {
        float& out =
            d[size_t(row % 8 * 4 + column % 8 / 2)][column / 8 * 4 + row / 8 * 2 + column % 2];
        out = float((accumulate ? double(out) : 0.0) + sum[column]);
      }
    }
  }
};

void watch(Thread& t, const void* begin, size_t bytes, uint32_t number, bool accumulator) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  for (Watched& w : t.watched) {
    if (w.begin != at || w.end != at + bytes || w.accumulator != accumulator) continue;
    if (w.dirty)
      machine().fail(t, Check::wgmma_protocol,
                     std::string("starts a wgmma whose ") + (accumulator ? "accumulator" : "a") +
                         " it has written since the last wgmma_fence" + at_line(t.code));
    w.last_use = number;
    return;
  }
  t.watched.push_back({at, at + bytes, number, accumulator, false});
}

// What an operand in shared memory must be when the instruction is issued.
void check_operand(const Matrix& matrix, int first, int count, int columns, uint32_t code,
                   uint16_t agent, uint32_t number) {
  for_chunks(matrix, first, count, columns, [&](unsigned at, int, int) {
    memory().read_shared_async(memory().absolute_shared(at, code), 16, code, agent, number);
  });
}

void issue(Warp& warp, uint32_t) {
  Machine& m = machine();
  const auto& first = args_of<WgmmaArgs>(warp, 0);
  const WgmmaShape shape = first.shape;
  const ActAs lane_0(warp.thread[0]);
  const uint32_t code = self->code;
  Wgmmas& log = warp.wgmmas;
  const int in_block = m.warp_of_block(warp);
  if (in_block / 4 * 4 + 4 > int(m.warp_count / m.cluster_blocks))
    m.fail(Check::wgmma_protocol, "is in no whole warpgroup" + at_line(code));
  if (!log.fenced)
    m.fail(Check::wgmma_protocol, "starts its first wgmma without a wgmma_fence" + at_line(code));

  // The four warps issue the same instructions in the same order.
  const uint32_t number = ++log.issued;
  for (int w = -(in_block % 4); w < 4 - in_block % 4; ++w) {
    const auto& other = m.warps[size_t(warp.number + w)]->wgmmas;
    if (w == 0 || other.issued < number || number + other.sites.size() <= other.issued) continue;
    const auto& site = other.sites[other.sites.size() - 1 - (other.issued - number)];
    if (site.b == first.b && site.a == first.a && source_of(site.code) == source_of(code)) break;
    m.fail(Check::wgmma_protocol, "starts a wgmma that another warp of its warpgroup does not" +
                                      at_line(code) + "\n  the other's" + at_line(site.code));
  }
  log.sites.push_back({code, first.a, first.b});
  if (log.sites.size() > 64) log.sites.erase(log.sites.begin(), log.sites.begin() + 32);

  auto product = std::make_shared<Product>();
  product->shape = shape;
  product->a = first.a;
  product->b = first.b;
  product->accumulate = first.accumulate;
  product->a_in_registers = first.a_registers != nullptr;
  product->first_row = in_block % 4 * kRows;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& args = args_of<WgmmaArgs>(warp, lane);
    if (args.a != first.a || args.b != first.b || args.accumulate != first.accumulate)
      m.fail(*warp.thread[lane], Check::wgmma_protocol,
             "starts a wgmma with other descriptors than lane 0 of its warp" + at_line(code));
    Thread& t = *warp.thread[lane];
    watch(t, args.d, size_t(shape.n) / 2 * sizeof(float), number, true);
    product->d[size_t(lane)] = args.d;
    product->metadata[size_t(lane)] = args.metadata;
    if (!args.a_registers) continue;
    watch(t, args.a_registers, 4 * sizeof(unsigned), number, false);
    std::copy_n(args.a_registers, 4, product->a_registers[size_t(lane)].begin());
  }

  const uint16_t agent = m.warpgroup_agents(warp);
  const int k = depth(shape), element = element_bytes(shape.type);
  if (!product->a_in_registers) {
    const Matrix a(first.a, shape.a_mn_major, element);
    const int columns = shape.selector >= 0 ? k / 2 : k;
    require_descriptor(first.a, a, columns, "a", code);
    check_operand(a, product->first_row, kRows, columns, code, agent, number);
  }
  const Matrix b(first.b, shape.b_mn_major, element);
  require_descriptor(first.b, b, k, "b", code);
  check_operand(b, 0, shape.n, k, code, agent, number);

  log.in_flight.push_back({number, log.commits, code, nullptr});
  if (config().async == Async::early) product->run(warp);
  else log.in_flight.back().multiply = [product, &warp] { product->run(warp); };
}

void fence_registers(Warp& warp, uint32_t) {
  warp.wgmmas.fenced = true;
  for (Thread* t : warp.thread)
    for (Watched& w : t->watched) w.dirty = false;
}

void commit(Warp& warp, uint32_t) { ++warp.wgmmas.commits; }

void wait(Warp& warp, uint32_t) {
  Machine& m = machine();
  const ActAs lane_0(warp.thread[0]);
  Wgmmas& log = warp.wgmmas;
  const int64_t done = int64_t(log.commits) - args_of<int>(warp, 0);
  auto left = std::find_if(log.in_flight.begin(), log.in_flight.end(),
                           [&](const Wgmma& w) { return int64_t(w.group) >= done; });
  for (auto w = log.in_flight.begin(); w != left; ++w) {
    if (w->multiply) w->multiply();
    log.landed = w->number;
  }
  log.in_flight.erase(log.in_flight.begin(), left);
  if (log.landed == 0) return;
  const auto agent = size_t(m.warpgroup_agents(warp) + m.warp_of_block(warp) % 4);
  Clocks clocks(agent + 1, 0);
  clocks[agent] = log.landed;
  for (Thread* t : warp.thread) m.acquire(*t, clocks);
}

struct RegistersArgs {
  int count;
  bool increase;
};

void take_registers(Warp& warp, uint32_t) {
  Machine& m = machine();
  const auto [count, increase] = args_of<RegistersArgs>(warp, 0);
  if (warp.registers_set && (increase ? count < warp.registers : count > warp.registers))
    m.fail(*warp.thread[0], Check::setmaxnreg,
           std::string(increase ? "raises" : "lowers") + " its registers from " +
               std::to_string(warp.registers) + " to " + std::to_string(count) +
               at_line(warp.thread[0]->code));
  Block& block = *warp.thread[0]->block;
  const int needed = (count - warp.registers) * kWarp;
  if (needed > 0 && needed > block.free_registers) return;  // set_registers asks again
  block.free_registers -= needed;
  warp.registers = count;
  warp.registers_set = true;
  for (Thread* t : block.members)
    if (t->wait == Wait::registers) m.wake(*t);
}

}  // namespace

// ---- What a thread does with its variables meanwhile -------------------------------------------

void Memory::check_registers(uintptr_t p, size_t bytes, Touch touch, uint32_t code) {
  Thread& t = *self;
  for (Watched& w : t.watched) {
    if (p >= w.end || p + bytes <= w.begin) continue;
    const bool writes = touch != Touch::read;
    const bool in_flight = w.last_use > t.warp->wgmmas.landed;
    if (in_flight && (writes || w.accumulator)) {
      Machine& m = machine();
      if (!m.findings.is_new(Check::wgmma_protocol, code, 0)) continue;
      m.note(std::string(name(Check::wgmma_protocol)) + ": " + m.describe(t) +
             (writes ? " writes " : " reads ") + (w.accumulator ? "the accumulator" : "the a") +
             " of a wgmma in flight, with no wgmma_wait for it" + at_line(code));
    }
    w.dirty = w.dirty || writes;
  }
}

// ---- ptx/wgmma.h, ptx/registers.h --------------------------------------------------------------

void wgmma(WgmmaShape shape, float* d, const unsigned* a_registers, uint64_t a, uint64_t b,
           unsigned metadata, bool accumulate) {
  WgmmaArgs args{shape, d, a_registers, a, b, metadata, accumulate};
  machine().collective(Wait::wgmma, kWholeWarp, &args, issue, SIMT_CALLER);
}
void wgmma_fence() {
  machine().collective(Wait::wgmma, kWholeWarp, nullptr, fence_registers, SIMT_CALLER);
}
void wgmma_commit() { machine().collective(Wait::wgmma, kWholeWarp, nullptr, commit, SIMT_CALLER); }
void wgmma_wait(int pending_groups) {
  machine().collective(Wait::wgmma, kWholeWarp, &pending_groups, wait, SIMT_CALLER);
}

void set_registers(int count, bool increase) {
  RegistersArgs args{count, increase};
  machine().collective(Wait::setmaxnreg, kWholeWarp, &args, take_registers, SIMT_CALLER);
  while (self->warp->registers != count) {
    // Not where they have been given up since this lane was told that there are too few.
    if ((count - self->warp->registers) * kWarp > self->block->free_registers)
      machine().park(Wait::registers, code_offset(SIMT_CALLER));
    machine().collective(Wait::setmaxnreg, kWholeWarp, &args, take_registers, SIMT_CALLER);
  }
}

}  // namespace simt
