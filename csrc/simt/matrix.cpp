// ldmatrix, stmatrix and mma: each is one collective of a whole warp. csrc/cuda/ptx/ldmatrix.cuh,
// mma.cuh and mma_sparse.cuh say where the elements of a matrix are.
#include "simt/matrix.h"

#include <cstring>
#include <sstream>

#include "simt/counters.h"
#include "simt/memory.h"
#include "simt/ptx/ldmatrix.h"

#define SIMT_CALLER __builtin_return_address(0)

namespace simt {
namespace {

// ---- ldmatrix, stmatrix ----------------------------------------------------------------------

struct MatrixArgs {
  unsigned* registers;
  int count;
  bool transposed;
  unsigned row;
};

// The 16-byte rows of all matrices, resolved and checked for alignment.
void resolve_rows(const Warp& warp, int count, Touch touch, unsigned char** rows) {
  for (int i = 0; i < 8 * count; ++i) {
    const unsigned address = args_of<MatrixArgs>(warp, i).row;
    const ActAs lane(warp.thread[i]);
    if (address % 16) {
      std::ostringstream text;
      text << (touch == Touch::read ? "reads" : "writes") << " a matrix row of 16 bytes at shared "
           << "address " << address << ", which is not a multiple of 16" << at_line(self->code);
      machine().fail(Check::misaligned, text.str());
    }
    rows[i] = static_cast<unsigned char*>(memory().at_shared(address, self->code));
  }
}

// Bytes [begin, begin + bytes) of row `row` of a matrix belong to this part of a lane's register.
struct Piece {
  int row, begin, bytes, shift;
};

int pieces_of(int lane, bool transposed, Piece out[2]) {
  if (!transposed) {
    out[0] = {lane / 4, lane % 4 * 4, 4, 0};
    return 1;
  }
  for (int e = 0; e < 2; ++e) out[e] = {lane % 4 * 2 + e, lane / 4 * 2, 2, 16 * e};
  return 2;
}

template <Touch touch>
void move_matrices(Warp& warp, uint32_t) {
  const auto [first_registers, count, transposed, first_row] = args_of<MatrixArgs>(warp, 0);
  unsigned char* rows[kWarp];
  resolve_rows(warp, count, touch, rows);
  if (counters().on)
    for (int i = 0; i < count; ++i) counters().matrix(rows + 8 * i, warp.thread[0]->code);
  for (int l = 0; l < kWarp; ++l) {
    const ActAs lane(warp.thread[l]);
    unsigned* registers = args_of<MatrixArgs>(warp, l).registers;
    Piece pieces[2];
    const int n = pieces_of(l, transposed, pieces);
    for (int i = 0; i < count; ++i) {
      unsigned word = touch == Touch::read ? 0 : registers[i];
      for (int p = 0; p < n; ++p) {
        const Piece& piece = pieces[p];
        unsigned char* at = rows[8 * i + piece.row] + piece.begin;
        memory().check(at, size_t(piece.bytes), false, touch, self->code);
        unsigned part = word >> piece.shift;
        if (touch == Touch::write) {
          std::memcpy(at, &part, size_t(piece.bytes));
        } else {
          part = 0;
          std::memcpy(&part, at, size_t(piece.bytes));
          word |= part << piece.shift;
        }
      }
      if (touch == Touch::read) registers[i] = word;
    }
  }
}

// ---- mma -------------------------------------------------------------------------------------

struct MmaArgs {
  Mma shape;
  float* d;
  const unsigned *a, *b;
  unsigned metadata;
};

constexpr int kM = 16, kN = 8, kMaxK = 32;

struct Operands {
  float a[kM][kMaxK];  // logical columns
  float b[kMaxK][kN];
};

void gather(const Warp& warp, const Mma& shape, Operands& operands) {
  const bool words = shape.type == Operand::tf32;  // one element a register, else two
  const bool sparse = shape.selector >= 0;
  const int a_columns = sparse ? shape.k / 2 : shape.k;
  const int span = words ? 4 : 8;  // columns (of b: rows) that one register of all lanes covers
  if (sparse) std::memset(operands.a, 0, sizeof(operands.a));
  unsigned metadata[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) metadata[lane] = args_of<MmaArgs>(warp, lane).metadata;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& args = args_of<MmaArgs>(warp, lane);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 2 * a_columns / span; ++r) {
      const int row = g + r % 2 * 8;
      for (int e = 0; e < (words ? 1 : 2); ++e) {
        const int column = (words ? t : 2 * t + e) + r / 2 * span;
        const unsigned bits = words ? args.a[r] : args.a[r] >> (16 * e) & 0xffff;
        const int k = sparse ? logical_column(warp, shape, metadata, row, column) : column;
        operands.a[row][k] = to_float(shape.type, bits);
      }
    }
    for (int r = 0; r < shape.k / span; ++r) {
      for (int e = 0; e < (words ? 1 : 2); ++e) {
        const int k = (words ? t : 2 * t + e) + r * span;
        const unsigned bits = words ? args.b[r] : args.b[r] >> (16 * e) & 0xffff;
        operands.b[k][g] = to_float(shape.type, bits);
      }
    }
  }
}

void multiply(Warp& warp, uint32_t) {
  const Mma shape = args_of<MmaArgs>(warp, 0).shape;
  Operands operands;
  gather(warp, shape, operands);
  for (int row = 0; row < kM; ++row) {
    double sum[kN] = {};
    for (int k = 0; k < shape.k; ++k)
      for (int n = 0; n < kN; ++n) sum[n] += double(operands.a[row][k]) * operands.b[k][n];
    for (int n = 0; n < kN; ++n) {
      float& d = args_of<MmaArgs>(warp, row % 8 * 4 + n / 2).d[row / 8 * 2 + n % 2];
      d = float(d + sum[n]);
    }
  }
}

}  // namespace

float to_float(Operand type, unsigned bits) {
  switch (type) {
    case Operand::f16: return float(__builtin_bit_cast(_Float16, uint16_t(bits)));
    case Operand::bf16: return __builtin_bit_cast(float, bits << 16);
    case Operand::tf32: return __builtin_bit_cast(float, bits & 0xffffe000u);
  }
  return 0;
}

int logical_column(const Warp& warp, const Mma& shape, const unsigned* metadata, int row,
                   int column) {
  const bool pairs = shape.type == Operand::tf32;
  const int group = pairs ? column : column / 2;  // four metadata bits each
  // A word covers four groups of a row; a row of eight groups takes two neighbouring lanes.
  const bool two_lanes = shape.k == (pairs ? 16 : 32);
  const int lane = row % 8 * 4 + (two_lanes ? 2 * shape.selector + group / 4 : shape.selector);
  const unsigned word = metadata[lane];
  const unsigned bits = word >> (row / 8 * 16 + group % 4 * 4) & 0xf;
  const unsigned first = bits & 3, second = bits >> 2;
  if (pairs ? bits != 0b0100 && bits != 0b1110 : first >= second) {
    const ActAs holder(warp.thread[lane]);
    std::ostringstream text;
    text << "gives metadata 0x" << std::hex << word << std::dec << ", whose bits for row " << row
         << ", group " << group << " are no two columns in order" << at_line(self->code);
    machine().fail(Check::sparse_metadata, text.str());
  }
  if (pairs) return 2 * group + (bits == 0b1110);
  return 4 * group + int(column % 2 ? second : first);
}

void load_matrices(unsigned* registers, int count, bool transposed, unsigned row) {
  MatrixArgs args{registers, count, transposed, row};
  machine().collective(Wait::ldmatrix, kWholeWarp, &args, move_matrices<Touch::read>, SIMT_CALLER);
}

void store_matrices(const unsigned* registers, int count, bool transposed, unsigned row) {
  MatrixArgs args{const_cast<unsigned*>(registers), count, transposed, row};
  machine().collective(Wait::stmatrix, kWholeWarp, &args, move_matrices<Touch::write>, SIMT_CALLER);
}

void mma(Mma shape, float* d, const unsigned* a, const unsigned* b, unsigned metadata) {
  MmaArgs args{shape, d, a, b, metadata};
  machine().collective(Wait::mma, kWholeWarp, &args, multiply, SIMT_CALLER);
}

}  // namespace simt
