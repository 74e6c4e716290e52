// Tensor-map copies: which elements a box has, where the swizzle puts them, what lies outside.
#include "simt/ptx/tma.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

#include "simt/async.h"
#include "simt/counters.h"
#include "simt/memory.h"
#include "simt/tensor_map.h"

#define SIMT_CALLER __builtin_return_address(0)

namespace simt {
namespace {

TensorMap unpack(const Box& box, uint32_t code) {
  TensorMap map;
  std::memcpy(static_cast<void*>(&map), box.map, sizeof(map));
  if (map.magic != TensorMap::kMagic)
    machine().fail(Check::bulk_copy,
                   "uses a tensor map that make_tensor_map did not make" + at_line(code));
  if (map.dims != box.dims)
    machine().fail(Check::bulk_copy, "gives " + std::to_string(box.dims) +
                                         " coordinates for a tensor map of " +
                                         std::to_string(map.dims) + " dimensions" + at_line(code));
  return map;
}

unsigned swizzled(unsigned address, unsigned swizzle_bytes) {
  return address ^ (address >> 7 & (swizzle_bytes / 16 - 1)) << 4;
}

// Calls visit(shared offset, global address or null, bytes) for each 16-byte chunk of the box, or,
// where the tensor ends inside one, for its parts.
template <typename Visit>
void walk(const TensorMap& map, const Box& box, unsigned start, const Visit& visit) {
  const unsigned row_bytes = unsigned(map.box[0]) * map.element_bytes;
  uint64_t rows = 1;
  for (int d = 1; d < map.dims; ++d) rows *= map.box[d];
  for (uint64_t row = 0; row < rows; ++row) {
    uint64_t rest = row;
    bool inside = true;
    const auto* base = static_cast<const unsigned char*>(map.data);
    for (int d = 1; d < map.dims; ++d) {
      const int64_t at = box.at[d] + int64_t(rest % map.box[d]);
      rest /= map.box[d];
      inside = inside && at >= 0 && at <= int64_t(map.last[d]);
      base += at * int64_t(map.stride[d - 1]);
    }
    // Bytes [first, end) of the row are in the tensor.
    const int64_t x = box.at[0];
    const int64_t first =
        std::min<int64_t>(row_bytes, std::max<int64_t>(0, -x) * map.element_bytes);
    const int64_t end =
        std::min<int64_t>(row_bytes, std::max<int64_t>(0, map.last[0] + 1 - x) * map.element_bytes);
    for (int64_t chunk = 0; chunk < row_bytes; chunk += 16) {
      const unsigned to = swizzled(start + unsigned(row * row_bytes + chunk), map.swizzle_bytes);
      const int64_t cuts[] = {chunk, std::clamp(first, chunk, chunk + 16),
                              std::clamp(end, chunk, chunk + 16), chunk + 16};
      for (int part = 0; part < 3; ++part) {
        const int64_t begin = cuts[part], bytes = cuts[part + 1] - begin;
        if (bytes <= 0) continue;
        const bool exists = inside && part == 1;
        visit(to + unsigned(begin - chunk), exists ? base + x * map.element_bytes + begin : nullptr,
              uint32_t(bytes));
      }
    }
  }
}

void require_aligned(unsigned address, const TensorMap& map, uint32_t code) {
  const unsigned multiple = map.swizzle_bytes == 16 ? 128 : map.swizzle_bytes * 8u;
  if ((address & 0xffffffu) % multiple == 0) return;
  std::ostringstream text;
  text << "gives a tensor copy shared address " << (address & 0xffffffu)
       << ", which is not a multiple of " << multiple << at_line(code);
  machine().fail(Check::misaligned, text.str());
}

}  // namespace

void tensor_load(unsigned shared, const Box& box, unsigned barrier, unsigned ranks) {
  const uint32_t code = code_offset(SIMT_CALLER);
  const TensorMap map = unpack(box, code);
  require_aligned(shared, map, code);
  const unsigned to = memory().absolute_shared(shared, code);
  const unsigned on = memory().absolute_shared(barrier, code);
  Flight flight;
  flight.code = code;
  walk(map, box, to, [&](unsigned at, const void* from, uint32_t bytes) {
    if (from) memory().check(from, bytes, false, Touch::read, code);
    if (from && counters().on) counters().bulk(bytes, false, code);
    flight.pieces.push_back({at, from, bytes});
    flight.bytes += bytes;
  });
  for (unsigned rank = 0; rank < (ranks ? machine().cluster_blocks : 1); ++rank) {
    if (ranks && !(ranks >> rank & 1)) continue;
    Flight one = flight;
    one.barrier = ranks ? Memory::in_block(on, rank) : on;
    if (ranks)
      for (Piece& piece : one.pieces) piece.to = Memory::in_block(piece.to, rank);
    engine().launch(std::move(one));
  }
}

void tensor_store(const Box& box, unsigned shared) {
  const uint32_t code = code_offset(SIMT_CALLER);
  const TensorMap map = unpack(box, code);
  require_aligned(shared, map, code);
  std::vector<BulkStore> pieces;
  walk(map, box, memory().absolute_shared(shared, code),
       [&](unsigned at, const void* to, uint32_t bytes) {
         if (to) pieces.push_back({at, const_cast<void*>(to), bytes, 0, 0, false});
       });
  engine().store(std::move(pieces), code);
}

}  // namespace simt
