// Host bodies of csrc/cuda/ptx/ldmatrix.cuh and stmatrix.cuh. Each lane is checked as the reader
// (or writer) of the elements it receives (or gives), so that rows need ordering as on the device.
#pragma once

#include "simt/threads.h"

namespace simt {

SIMT_CALL void load_matrices(unsigned* registers, int count, bool transposed, unsigned row);
SIMT_CALL void store_matrices(const unsigned* registers, int count, bool transposed, unsigned row);

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE unsigned ldmatrix_x1(unsigned row) {
  unsigned r;
  simt::load_matrices(&r, 1, false, row);
  return r;
}
SIMT_INLINE unsigned ldmatrix_x1_trans(unsigned row) {
  unsigned r;
  simt::load_matrices(&r, 1, true, row);
  return r;
}
SIMT_INLINE void ldmatrix_x2(unsigned (&r)[2], unsigned row) {
  simt::load_matrices(r, 2, false, row);
}
SIMT_INLINE void ldmatrix_x2_trans(unsigned (&r)[2], unsigned row) {
  simt::load_matrices(r, 2, true, row);
}
SIMT_INLINE void ldmatrix_x4(unsigned (&r)[4], unsigned row) {
  simt::load_matrices(r, 4, false, row);
}
SIMT_INLINE void ldmatrix_x4_trans(unsigned (&r)[4], unsigned row) {
  simt::load_matrices(r, 4, true, row);
}

SIMT_INLINE void stmatrix_x1(unsigned row, unsigned r) { simt::store_matrices(&r, 1, false, row); }
SIMT_INLINE void stmatrix_x1_trans(unsigned row, unsigned r) {
  simt::store_matrices(&r, 1, true, row);
}
SIMT_INLINE void stmatrix_x2(unsigned row, const unsigned (&r)[2]) {
  simt::store_matrices(r, 2, false, row);
}
SIMT_INLINE void stmatrix_x2_trans(unsigned row, const unsigned (&r)[2]) {
  simt::store_matrices(r, 2, true, row);
}
SIMT_INLINE void stmatrix_x4(unsigned row, const unsigned (&r)[4]) {
  simt::store_matrices(r, 4, false, row);
}
SIMT_INLINE void stmatrix_x4_trans(unsigned row, const unsigned (&r)[4]) {
  simt::store_matrices(r, 4, true, row);
}

}  // namespace fastops::ptx
