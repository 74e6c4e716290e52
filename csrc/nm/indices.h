// Reading the stored indices, for host code of any instruction set.
#pragma once

#include "nm/nm.h"

namespace fastops::nm {
namespace {

// Index q of a row. Whatever the bytes say, it is below m: no kernel can be led out of a group.
inline int stored_index(const uint8_t* row, int64_t q, int bits, int m) {
  const int64_t at = q * bits;
  const int index = row[at >> 3] >> (at & 7) & ((1 << bits) - 1);
  return index < m ? index : m - 1;
}

}  // namespace
}  // namespace fastops::nm
