// sm_80: ldmatrix, mma, mma.sp. stmatrix (sm_90) is with the others of its age.
#include "conformance/manual.h"
#include "conformance/probe.h"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/mma_sparse.cuh"

namespace conformance {
namespace {

using namespace fastops::ptx;

// ---- ldmatrix --------------------------------------------------------------------------------

template <int kCount, bool kTransposed>
__global__ void ldmatrix_probe(unsigned* out) {
  __shared__ __align__(16) unsigned tile[kCount * 32];
  const unsigned lane = threadIdx.x;
  // Element e of the tile is e: two to a word.
  for (int i = 0; i < kCount; ++i) {
    const unsigned word = i * 32 + lane;
    tile[word] = 2 * word | (2 * word + 1) << 16;
  }
  __syncwarp();
  // The rows in reverse, so that an address taken from the wrong lane shows.
  const unsigned row = lane < 8 * kCount ? 8 * kCount - 1 - lane : 0;
  const unsigned address = smem_addr(&tile[row * 4]);
  if constexpr (kCount == 1) {
    out[lane] = kTransposed ? ldmatrix_x1_trans(address) : ldmatrix_x1(address);
  } else {
    unsigned r[kCount];
    if constexpr (kCount == 2 && !kTransposed) ldmatrix_x2(r, address);
    if constexpr (kCount == 2 && kTransposed) ldmatrix_x2_trans(r, address);
    if constexpr (kCount == 4 && !kTransposed) ldmatrix_x4(r, address);
    if constexpr (kCount == 4 && kTransposed) ldmatrix_x4_trans(r, address);
    for (int i = 0; i < kCount; ++i) out[i * 32 + lane] = r[i];
  }
}

template <int kCount, bool kTransposed>
Words run_ldmatrix() {
  const Array out = Array::output(kCount * 32);
  launch(ldmatrix_probe<kCount, kTransposed>, 1, 32, 0, 1, out.data());
  return out.words();
}

// "Each thread holds a fragment of a row: thread 4r + c has elements 2c and 2c + 1 of row r"; with
// .trans "the matrix is loaded in column-major format".
template <int kCount, bool kTransposed>
Words manual_ldmatrix() {
  Words words;
  for (int matrix = 0; matrix < kCount; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t halves[2];
      for (int e = 0; e < 2; ++e) {
        int row = lane / 4, column = lane % 4 * 2 + e;
        if (kTransposed) std::swap(row, column);
        const int tile_row = 8 * kCount - 1 - (matrix * 8 + row);
        halves[e] = uint32_t(tile_row * 8 + column);
      }
      words.push_back(halves[0] | halves[1] << 16);
    }
  }
  return words;
}

// ---- mma -------------------------------------------------------------------------------------

struct Shape {
  Type type;
  int k;
  int selector;  // -1: dense
  int per_word() const { return type == Type::tf32 ? 1 : 2; }
  int a_words() const { return 16 * (selector < 0 ? k : k / 2) / per_word() / 32; }
  int b_words() const { return 8 * k / per_word() / 32; }
};

// a, b, accumulator and (sparse) metadata as the manual says each lane holds them, and the product.
struct Problem {
  Words a, b, c, metadata, d;
};

Problem make(const Shape& shape) {
  Integers integers(uint32_t(shape.k) + 100 * uint32_t(shape.type) + 7);
  const int per_word = shape.per_word();
  std::vector<float> a(16 * 32, 0.0f), b(32 * 8), c(16 * 8);
  for (auto& x : b) x = integers.small();
  for (auto& x : c) x = integers.small();
  Problem p;
  p.metadata.assign(32, 0xffffffffu);  // those who hold none hold nonsense
  std::vector<int> kept(16 * 32, 0);
  const int chunk = shape.type == Type::tf32 ? 2 : 4;
  if (shape.selector >= 0) {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < shape.k; column += chunk) {
        static constexpr uint32_t kPairs[] = {0b0100, 0b1110};
        static constexpr uint32_t kQuads[] = {0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110};
        const uint32_t bits = chunk == 2 ? kPairs[integers.below(2)] : kQuads[integers.below(6)];
        const MetadataAt at = metadata_of(shape.type, shape.k, shape.selector, row, column);
        uint32_t& word = p.metadata[size_t(at.lane)];
        word = (word & ~(0xfu << at.bit)) | bits << at.bit;
        kept[size_t(row * 32 + column)] = int(bits);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto pack = [&](Words& words, int count, auto element) {
      for (int r = 0; r < count; ++r) {
        uint32_t word = 0;
        for (int e = 0; e < per_word; ++e)
          word |= encode(shape.type, element(r * per_word + e)) << (16 * e);
        words.push_back(word);
      }
    };
    pack(p.a, shape.a_words(), [&](int i) {
      const float value = integers.small();
      if (shape.selector < 0) {
        const At at = dense_a(shape.type, shape.k, lane, i);
        return a[size_t(at.row * 32 + at.column)] = value;
      }
      const At at = sparse_a_chunk(shape.type, shape.k, lane, i);
      const int bits = kept[size_t(at.row * 32 + at.column)];
      int column = at.column;
      if (chunk == 2) column += bits == 0b1110;
      else column += i % 2 ? bits >> 2 : bits & 3;
      return a[size_t(at.row * 32 + column)] = value;
    });
    pack(p.b, shape.b_words(), [&](int i) {
      const At at = dense_b(shape.type, shape.k, lane, i);
      return b[size_t(at.row * 8 + at.column)];
    });
    for (int i = 0; i < 4; ++i) {
      const At at = accumulator(lane, i);
      p.c.push_back(encode(Type::tf32, c[size_t(at.row * 8 + at.column)]));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const At at = accumulator(lane, i);
      float sum = c[size_t(at.row * 8 + at.column)];
      for (int k = 0; k < shape.k; ++k)
        sum += a[size_t(at.row * 32 + k)] * b[size_t(k * 8 + at.column)];
      p.d.push_back(encode(Type::tf32, sum));
    }
  }
  return p;
}

template <typename Instruction>
__global__ void mma_probe(const unsigned* a, const unsigned* b, const float* c,
                          const unsigned* metadata, float* out) {
  const unsigned lane = threadIdx.x;
  unsigned ra[Instruction::kA], rb[Instruction::kB];
  float d[4];
  for (int i = 0; i < Instruction::kA; ++i) ra[i] = a[lane * Instruction::kA + i];
  for (int i = 0; i < Instruction::kB; ++i) rb[i] = b[lane * Instruction::kB + i];
  for (int i = 0; i < 4; ++i) d[i] = c[lane * 4 + i];
  Instruction::issue(d, ra, rb, metadata[lane]);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = d[i];
}

template <typename T>
constexpr Type kType = std::is_same_v<T, __half> ? Type::f16 : Type::bf16;

// kSelector -1: dense.
template <typename T, int kDepth, int kSelector>
struct Mma16 {
  static constexpr int kA = kSelector < 0 ? kDepth / 4 : kDepth / 8, kB = kDepth / 8;
  static constexpr Shape kShape{kType<T>, kDepth, kSelector};
  static __device__ void issue(float (&d)[4], const unsigned (&a)[kA], const unsigned (&b)[kB],
                               unsigned metadata) {
    if constexpr (kSelector < 0 && kDepth == 8) mma_m16n8k8<T>(d, a, b[0]);
    if constexpr (kSelector < 0 && kDepth == 16) mma_m16n8k16<T>(d, a, b[0], b[1]);
    if constexpr (kSelector >= 0 && kDepth == 16)
      mma_sp_m16n8k16<T, kSelector>(d, a, b[0], b[1], metadata);
    if constexpr (kSelector >= 0 && kDepth == 32) mma_sp_m16n8k32<T, kSelector>(d, a, b, metadata);
  }
};

template <int kDepth, int kSelector>
struct MmaTf32 {
  static constexpr int kA = kSelector < 0 ? 4 : kDepth / 4, kB = kDepth / 4;
  static constexpr Shape kShape{Type::tf32, kDepth, kSelector};
  static __device__ void issue(float (&d)[4], const unsigned (&a)[kA], const unsigned (&b)[kB],
                               unsigned metadata) {
    if constexpr (kSelector < 0) mma_m16n8k8_tf32(d, a, b[0], b[1]);
    if constexpr (kSelector >= 0 && kDepth == 8)
      mma_sp_m16n8k8_tf32<kSelector>(d, a, b[0], b[1], metadata);
    if constexpr (kSelector >= 0 && kDepth == 16)
      mma_sp_m16n8k16_tf32<kSelector>(d, a, b, metadata);
  }
};

template <typename Instruction>
Words run_mma() {
  const Problem p = make(Instruction::kShape);
  const Array a = Array::input(p.a), b = Array::input(p.b), c = Array::input(p.c);
  const Array metadata = Array::input(p.metadata), out = Array::output(128);
  launch(mma_probe<Instruction>, 1, 32, 0, 1, a.data(), b.data(), c.floats(), metadata.data(),
         out.floats());
  return out.words();
}

template <typename Instruction>
Words manual_mma() {
  return make(Instruction::kShape).d;
}

template <int kCount>
void add_ldmatrix(std::vector<Probe>& probes) {
  const std::string name = "ldmatrix_x" + std::to_string(kCount);
  probes.push_back({name, 80, run_ldmatrix<kCount, false>, manual_ldmatrix<kCount, false>});
  probes.push_back(
      {name + "_trans", 80, run_ldmatrix<kCount, true>, manual_ldmatrix<kCount, true>});
}

template <typename Instruction>
void add_mma(std::vector<Probe>& probes) {
  static constexpr const char* kNames[] = {"f16", "bf16", "tf32"};
  constexpr Shape shape = Instruction::kShape;
  std::string name = shape.selector < 0 ? "mma" : "mma_sp";
  name += "_m16n8k" + std::to_string(shape.k) + "_" + kNames[int(shape.type)];
  if (shape.selector >= 0) name += "_selector" + std::to_string(shape.selector);
  probes.push_back({name, 80, run_mma<Instruction>, manual_mma<Instruction>});
}

template <typename T>
void add_all_mma(std::vector<Probe>& probes) {
  add_mma<Mma16<T, 8, -1>>(probes);
  add_mma<Mma16<T, 16, -1>>(probes);
  add_mma<Mma16<T, 16, 0>>(probes);
  add_mma<Mma16<T, 16, 1>>(probes);
  add_mma<Mma16<T, 16, 2>>(probes);
  add_mma<Mma16<T, 16, 3>>(probes);
  add_mma<Mma16<T, 32, 0>>(probes);
  add_mma<Mma16<T, 32, 1>>(probes);
}

}  // namespace

std::vector<Probe> warp_probes() {
  std::vector<Probe> probes;
  add_ldmatrix<1>(probes);
  add_ldmatrix<2>(probes);
  add_ldmatrix<4>(probes);
  add_all_mma<__half>(probes);
  add_all_mma<__nv_bfloat16>(probes);
  add_mma<MmaTf32<8, -1>>(probes);
  add_mma<MmaTf32<8, 0>>(probes);
  add_mma<MmaTf32<8, 3>>(probes);
  add_mma<MmaTf32<16, 0>>(probes);
  add_mma<MmaTf32<16, 1>>(probes);
  return probes;
}

}  // namespace conformance
