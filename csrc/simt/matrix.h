// What the matrix instructions of a warp and of a warpgroup share.
#pragma once

#include "simt/machine.h"
#include "simt/ptx/mma.h"

namespace simt {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename Args>
Args& args_of(const Warp& warp, int lane) {
  return *static_cast<Args*>(warp.thread[lane]->args);
}

// For the length of a scope another lane of the running warp is the one that is checked.
class ActAs {
 public:
  explicit ActAs(Thread* t) : saved_(self) { self = t; }
  ~ActAs() { self = saved_; }
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;

 private:
  Thread* saved_;
};

float to_float(Operand type, unsigned bits);

// The logical column of the kept element at compressed column `column` of `row` (of 16), by the
// metadata words of the 32 lanes.
int logical_column(const Warp& warp, const Mma& shape, const unsigned* metadata, int row,
                   int column);

}  // namespace simt
