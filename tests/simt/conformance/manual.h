// The PTX manual's matrix fragments (sections "Matrix fragments for mma.*" and "Matrix fragments
// ... with sparse matrix A"), in the manual's own form: element i of a lane is at (row, column).
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace conformance {

struct At {
  int row, column;
};

enum class Type { f16, bf16, tf32 };

inline uint32_t encode(Type type, float integer) {
  uint32_t bits;
  std::memcpy(&bits, &integer, 4);
  if (type == Type::tf32) return bits;
  if (type == Type::bf16) return bits >> 16;
  if (integer == 0.0f) return bits >> 16;
  return (bits >> 16 & 0x8000u) | ((bits >> 23 & 0xffu) - 127 + 15) << 10 | (bits >> 13 & 0x3ffu);
}

// Shape m16n8k<k> of a dense a.
inline At dense_a(Type type, int k, int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (type == Type::tf32)
    return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? thread : thread + 4};
  if (k == 8) return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
  const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper ? group : group + 8, thread * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}

inline At dense_b(Type type, int, int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (type == Type::tf32) return {thread + 4 * i, group};
  return {thread * 2 + (i & 1) + i / 2 * 8, group};
}

inline At accumulator(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
}

// Sparse a: element i is one of those kept from columns first to first + chunk - 1 of a row; for
// 16-bit types i even is the first kept one.
inline At sparse_a_chunk(Type type, int k, int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (type == Type::tf32)
    return {i == 0 || i == 2 ? group : group + 8, (i == 0 || i == 1 ? thread * 2 : thread * 2 + 8)};
  if (k == 16) return {i < 2 ? group : group + 8, thread * 4};
  const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper ? group : group + 8, thread * 4 + (i >= 4 ? 16 : 0)};
}

// Who holds the four metadata bits of the chunk that starts at `column` of `row`, and where.
struct MetadataAt {
  int lane, bit;
};
inline MetadataAt metadata_of(Type type, int k, int selector, int row, int column) {
  const int half = type == Type::tf32 ? 8 : 16;  // columns one word has of a row
  const int chunk = column % half / (half / 4);
  const int group = row % 8, high = row >= 8 ? 16 : 0;
  const bool pair = k > half;  // a pair of threads contributes
  return {group * 4 + (pair ? selector * 2 + column / half : selector), high + 4 * chunk};
}

// ---- Swizzles, and the shared-memory layouts of wgmma -------------------------------------------

// The 16-byte chunk `chunk` of row `row` in a tile whose rows are `width` chunks (1: no swizzle).
inline int swizzled_chunk(int width, int row, int chunk) {
  if (width == 8) return chunk ^ row % 8;
  if (width == 4) return chunk ^ row / 2 % 4;
  if (width == 2) return chunk ^ row / 4 % 2;
  return chunk;
}

// "Shared memory matrix layout": the matrix is made of swizzle atoms of 8 rows, in units of 16
// bytes 8 x width for K-major, width x 8 for MN-major. `along_mn` and `along_k` are the bytes from
// one atom to the next. Byte offset of element (mn, k) of `bytes` bytes.
inline int atom_offset(bool mn_major, int width, int bytes, int mn, int k, int along_mn,
                       int along_k) {
  const int per_chunk = 16 / bytes;
  const int row = mn_major ? k : mn, column = mn_major ? mn : k;
  const int atom_columns = width * per_chunk;
  const int in_atom = row % 8 * width * 16 +
                      swizzled_chunk(width, row % 8, column % atom_columns / per_chunk) * 16 +
                      column % per_chunk * bytes;
  const int row_atom = row / 8, column_atom = column / atom_columns;
  return in_atom + (mn_major ? row_atom * along_k + column_atom * along_mn
                             : row_atom * along_mn + column_atom * along_k);
}

// Accumulator of wgmma m64nN: element i of thread `thread` of the warpgroup.
inline At wgmma_accumulator(int thread, int i) {
  const int warp = thread / 32, lane = thread % 32;
  const At at = accumulator(lane, i % 4);
  return {16 * warp + at.row, i / 4 * 8 + at.column};
}

}  // namespace conformance
