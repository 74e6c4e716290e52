// sm_90a: wgmma with a in shared memory or in registers, both majors, all swizzles, sparse.
#include <type_traits>

#include "conformance/manual.h"
#include "conformance/probe.h"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace conformance {
namespace {

using namespace fastops::ptx;

// Where an operand lies in the image of shared memory, and how one step along k moves its
// descriptor.
struct Layout {
  unsigned offset, leading, stride, step;
};

template <typename Instruction>
__global__ void __launch_bounds__(128)
    wgmma_probe(const unsigned* image, int image_words, const unsigned* a_registers,
                const unsigned* metadata, Layout a, Layout b, int steps, float* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  auto* shared = reinterpret_cast<unsigned*>(raw);
  const int thread = threadIdx.x;
  for (int i = thread; i < image_words; i += 128) shared[i] = image[i];
  fence_proxy_async();
  __syncthreads();
  const unsigned base = smem_addr(raw);
  constexpr int kCount = Instruction::kN / 2;
  float d[kCount];
  for (int i = 0; i < kCount; ++i) d[i] = 0.0f;
  for (int s = 0; s < steps; ++s) {
    unsigned registers[4] = {};
    if (Instruction::kInRegisters)
      for (int i = 0; i < 4; ++i) registers[i] = a_registers[(s * 128 + thread) * 4 + i];
    const uint64_t da =
        wgmma_descriptor(base + a.offset + s * a.step, a.leading, a.stride, Instruction::kSwizzleA);
    const uint64_t db =
        wgmma_descriptor(base + b.offset + s * b.step, b.leading, b.stride, Instruction::kSwizzleB);
    wgmma_hold(d);
    wgmma_fence();
    Instruction::issue(d, registers, da, db, metadata[s * 128 + thread], s > 0);
    wgmma_commit();
    wgmma_hold(d);
    wgmma_wait<0>();
    wgmma_hold(d);
  }
  for (int i = 0; i < kCount; ++i) out[thread * kCount + i] = d[i];
}

template <typename T>
constexpr Type kType = std::is_same_v<T, Tf32>     ? Type::tf32
                       : std::is_same_v<T, __half> ? Type::f16
                                                   : Type::bf16;
constexpr int chunks(Swizzle swizzle) {
  return swizzle == Swizzle::b128  ? 8
         : swizzle == Swizzle::b64 ? 4
         : swizzle == Swizzle::b32 ? 2
                                   : 1;
}

// kSelector -1: dense. A sparse a in shared memory has half the columns, so half b's swizzle.
template <typename T, int kColumns, Major kMajorA, Major kMajorB, Swizzle kSwizzle,
          bool kRegisters = false, int kSelector = -1>
struct Wgmma {
  static constexpr int kN = kColumns;
  static constexpr bool kInRegisters = kRegisters;
  static constexpr bool kSparse = kSelector >= 0;
  static constexpr Swizzle kSwizzleB = kSwizzle;
  static constexpr Swizzle kSwizzleA = !kSparse                    ? kSwizzle
                                       : kSwizzle == Swizzle::b128 ? Swizzle::b64
                                       : kSwizzle == Swizzle::b64  ? Swizzle::b32
                                                                   : Swizzle::none;
  static constexpr Type kType = conformance::kType<T>;
  static constexpr int kBytes = kType == Type::tf32 ? 4 : 2;
  static constexpr int kDepth = 32 / kBytes * (kSparse ? 2 : 1);
  static constexpr bool kMnA = kMajorA == Major::mn, kMnB = kMajorB == Major::mn;
  static constexpr int kMetadataSelector = kSelector;

  static __device__ void issue(float (&d)[kN / 2], const unsigned (&a)[4], uint64_t da, uint64_t db,
                               unsigned metadata, bool accumulate) {
    if constexpr (kSparse && kRegisters)
      wgmma_sp_rs<T, kN, kSelector, kMajorB>(d, a, db, metadata, accumulate);
    else if constexpr (kSparse)
      wgmma_sp_ss<T, kN, kSelector, kMajorB>(d, da, db, metadata, accumulate);
    else if constexpr (kRegisters) wgmma_rs<T, kN, kMajorB>(d, a, db, accumulate);
    else wgmma_ss<T, kN, kMajorA, kMajorB>(d, da, db, accumulate);
  }
};

struct Problem {
  Words image, a_registers, metadata, d;
  Layout a, b;
  int steps;
};

// Bytes of one operand and where its elements go.
struct Placement {
  bool mn_major;
  int width, bytes, rows, columns, offset;
  int atom() const { return 128 * width; }
  int per_atom() const { return width * 16 / bytes; }
  int along_k() const { return atom(); }  // atoms along k next to one another
  int along_mn() const {
    const int atoms_of_k = mn_major ? columns / 8 : (columns + per_atom() - 1) / per_atom();
    return atoms_of_k * atom();
  }
  int at(int mn, int k) const {
    return offset + atom_offset(mn_major, width, bytes, mn, k, along_mn(), along_k());
  }
  int size() const {
    const int atoms_of_mn = mn_major ? (rows + per_atom() - 1) / per_atom() : rows / 8;
    return atoms_of_mn * along_mn();
  }
  // `depth` columns further; the layout's leading and stride by the manual's definitions.
  Layout layout(int depth) const {
    Layout l{unsigned(offset), 0, 0, 0};
    if (!mn_major) {
      l.stride = unsigned(along_mn());
      l.leading = unsigned(width == 1 ? along_k() : 16);
      l.step = unsigned(depth >= per_atom() ? depth / per_atom() * along_k() : depth * bytes);
    } else {
      l.stride = unsigned(width == 1 ? along_mn() : along_k());
      l.leading = unsigned(width == 1 ? along_k() : along_mn());
      l.step = unsigned(depth / 8 * along_k());
    }
    return l;
  }
};

void put(Words& image, int at, Type type, float value) {
  const uint32_t bits = encode(type, value);
  if (type == Type::tf32) image[size_t(at / 4)] = bits;
  else image[size_t(at / 4)] |= bits << (at % 4 * 8);
}

template <typename I>
Problem make() {
  Integers integers(uint32_t(I::kN) + 17);
  Problem p;
  // As many steps as fit a row of the swizzle, at least two.
  const int b_columns = std::max(2 * I::kDepth, chunks(I::kSwizzleB) * 16 / I::kBytes);
  p.steps = I::kMnB ? 2 : b_columns / I::kDepth;
  const int k_total = p.steps * I::kDepth, a_total = I::kSparse ? k_total / 2 : k_total;
  std::vector<float> a(size_t(64 * k_total), 0.0f), b(size_t(k_total * I::kN));
  for (auto& x : b) x = integers.small();

  Placement pa{I::kMnA, chunks(I::kSwizzleA), I::kBytes, 64, a_total, 0};
  Placement pb{I::kMnB, chunks(I::kSwizzleB), I::kBytes, I::kN, k_total, 0};
  pb.offset = (pa.size() + 1023) / 1024 * 1024;
  p.image.assign(size_t(pb.offset + pb.size()) / 4, 0);
  p.a = pa.layout(I::kSparse ? I::kDepth / 2 : I::kDepth);
  p.b = pb.layout(I::kDepth);
  p.a_registers.assign(size_t(p.steps * 128 * 4), 0);
  p.metadata.assign(size_t(p.steps * 128), 0xffffffffu);

  for (int k = 0; k < k_total; ++k)
    for (int n = 0; n < I::kN; ++n) put(p.image, pb.at(n, k), I::kType, b[size_t(k * I::kN + n)]);

  // Columns kept of row `row` in step s: compressed column -> logical column.
  for (int s = 0; s < p.steps; ++s) {
    std::vector<int> kept(64 * 32);
    for (int row = 0; row < 64; ++row) {
      const int columns = I::kSparse ? I::kDepth / 2 : I::kDepth;
      for (int c = 0; c < columns; ++c) kept[size_t(row * 32 + c)] = c;
      for (int quad = 0; I::kSparse && quad < I::kDepth / 4; ++quad) {
        static constexpr uint32_t kQuads[] = {0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110};
        const uint32_t bits = kQuads[integers.below(6)];
        kept[size_t(row * 32 + 2 * quad)] = 4 * quad + int(bits & 3);
        kept[size_t(row * 32 + 2 * quad + 1)] = 4 * quad + int(bits >> 2);
        const MetadataAt at =
            metadata_of(I::kType, I::kDepth, I::kMetadataSelector, row % 16, 4 * quad);
        uint32_t& word = p.metadata[size_t(s * 128 + row / 16 * 32 + at.lane)];
        word = (word & ~(0xfu << at.bit)) | bits << at.bit;
      }
      for (int c = 0; c < columns; ++c) {
        const float value = integers.small();
        a[size_t(row * k_total + s * I::kDepth + kept[size_t(row * 32 + c)])] = value;
        put(p.image, pa.at(row, s * columns + c), I::kType, value);
      }
    }
    // The same in registers, as mma's a (compressed: the dense layout of half the depth).
    const int per_word = I::kType == Type::tf32 ? 1 : 2;
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < 4 * per_word; ++i) {
        const At at = dense_a(I::kType, I::kType == Type::tf32 ? 8 : 16, thread % 32, i);
        const int row = thread / 32 * 16 + at.row;
        const float value =
            a[size_t(row * k_total + s * I::kDepth + kept[size_t(row * 32 + at.column)])];
        p.a_registers[size_t((s * 128 + thread) * 4 + i / per_word)] |= encode(I::kType, value)
                                                                        << (i % per_word * 16);
      }
    }
  }
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < I::kN / 2; ++i) {
      const At at = wgmma_accumulator(thread, i);
      float sum = 0.0f;
      for (int k = 0; k < k_total; ++k)
        sum += a[size_t(at.row * k_total + k)] * b[size_t(k * I::kN + at.column)];
      p.d.push_back(encode(Type::tf32, sum));
    }
  }
  return p;
}

template <typename I>
Words run_wgmma() {
  const Problem p = make<I>();
  const Array image = Array::input(p.image), registers = Array::input(p.a_registers);
  const Array metadata = Array::input(p.metadata), out = Array::output(p.d.size());
  launch(wgmma_probe<I>, 1, 128, p.image.size() * 4, 1, image.data(), int(p.image.size()),
         registers.data(), metadata.data(), p.a, p.b, p.steps, out.floats());
  return out.words();
}

template <typename I>
Words manual_wgmma() {
  return make<I>().d;
}

template <typename I>
void add(std::vector<Probe>& probes) {
  static constexpr const char* kTypes[] = {"f16", "bf16", "tf32"};
  std::string name = I::kSparse ? "wgmma_sp" : "wgmma";
  name += I::kInRegisters ? "_rs_n" : "_ss_n";
  name += std::to_string(I::kN) + "_" + kTypes[int(I::kType)];
  if (!I::kInRegisters) name += I::kMnA ? "_mn" : "_k";
  name += I::kMnB ? "_mn" : "_k";
  name += "_swizzle" + std::to_string(chunks(I::kSwizzleB) * 16);
  if (I::kSparse) name += "_selector" + std::to_string(I::kMetadataSelector);
  probes.push_back({name, 90, run_wgmma<I>, manual_wgmma<I>});
}

template <Swizzle kSwizzle>
void add_layouts(std::vector<Probe>& probes) {
  constexpr Major k = Major::k, mn = Major::mn;
  add<Wgmma<__half, 64, k, k, kSwizzle>>(probes);
  add<Wgmma<__half, 128, k, mn, kSwizzle>>(probes);
  add<Wgmma<__half, 64, mn, k, kSwizzle>>(probes);
  add<Wgmma<__half, 128, mn, mn, kSwizzle>>(probes);
  add<Wgmma<Tf32, 32, k, k, kSwizzle>>(probes);
}

}  // namespace

std::vector<Probe> wgmma_probes() {
  constexpr Major k = Major::k, mn = Major::mn;
  constexpr Swizzle b128 = Swizzle::b128, b64 = Swizzle::b64;
  std::vector<Probe> probes;
  add_layouts<Swizzle::none>(probes);
  add_layouts<Swizzle::b32>(probes);
  add_layouts<Swizzle::b64>(probes);
  add_layouts<Swizzle::b128>(probes);
  add<Wgmma<__nv_bfloat16, 8, k, k, b128>>(probes);
  add<Wgmma<__nv_bfloat16, 24, k, k, b128>>(probes);
  add<Wgmma<__nv_bfloat16, 256, k, k, b128>>(probes);
  add<Wgmma<__half, 64, k, k, b128, true>>(probes);
  add<Wgmma<__nv_bfloat16, 64, k, mn, b128, true>>(probes);
  add<Wgmma<Tf32, 64, k, k, b64, true>>(probes);
  add<Wgmma<__half, 64, k, k, b128, false, 0>>(probes);
  add<Wgmma<__half, 64, k, k, b128, false, 1>>(probes);
  add<Wgmma<__nv_bfloat16, 64, k, mn, b128, false, 0>>(probes);
  add<Wgmma<__half, 64, k, k, b128, true, 0>>(probes);
  add<Wgmma<__nv_bfloat16, 64, k, mn, b128, true, 1>>(probes);
  return probes;
}

}  // namespace conformance
