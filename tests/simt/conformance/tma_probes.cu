// sm_90: tensor copies, of every rank and swizzle, partly outside the tensor.
#include <iterator>
#include <utility>

#include "conformance/manual.h"
#include "conformance/probe.h"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/tensor_map.h"

namespace conformance {
namespace {

using namespace fastops::ptx;

// Tensors of 32-bit words (kWords) or of 16-bit elements, whose value is their position plus 1.
struct TmaCase {
  fastops::DType dtype;
  int dims;
  int size[5], box[5], at[5];
  Swizzle swizzle;
};
constexpr fastops::DType kI32 = fastops::DType::i32, kF16 = fastops::DType::f16;
constexpr TmaCase kTmaCases[] = {
    {kI32, 2, {40, 9}, {8, 4}, {8, 2}, Swizzle::none},
    {kI32, 2, {40, 9}, {8, 4}, {-3, -2}, Swizzle::none},
    {kI32, 2, {40, 9}, {8, 16}, {4, -1}, Swizzle::b32},
    {kF16, 2, {72, 20}, {32, 16}, {48, 10}, Swizzle::b64},
    {kF16, 2, {72, 20}, {64, 16}, {8, 0}, Swizzle::b128},
    {kF16, 2, {72, 20}, {64, 24}, {-5, -3}, Swizzle::b128},
    {kI32, 3, {12, 5, 4}, {8, 3, 2}, {8, 3, -1}, Swizzle::none},
    {kI32, 4, {12, 5, 4, 3}, {4, 2, 3, 2}, {4, 4, 2, 2}, Swizzle::none},
    {kI32, 5, {8, 3, 3, 3, 3}, {4, 2, 2, 2, 2}, {4, 2, -1, 1, 2}, Swizzle::none},
};
constexpr int kTmaCount = int(std::size(kTmaCases));

int bytes_of(const TmaCase& c) { return int(fastops::size_of(c.dtype)); }
int64_t pitch_of(const TmaCase& c) { return (c.size[0] * bytes_of(c) + 15) / 16 * 16; }

fastops::cuda::TensorMapSpec spec_of(const TmaCase& c, const void* data) {
  fastops::cuda::TensorMapSpec spec{data, c.dtype, c.dims, {}, {}, {}, c.swizzle};
  int64_t stride = pitch_of(c);
  for (int d = 0; d < c.dims; ++d) {
    spec.size[d] = c.size[d];
    spec.box[d] = c.box[d];
    if (d == 0) continue;
    spec.stride[d] = stride;
    stride *= c.size[d];
  }
  return spec;
}

size_t tensor_words(const TmaCase& c) {
  int64_t bytes = pitch_of(c);
  for (int d = 1; d < c.dims; ++d) bytes *= c.size[d];
  return size_t(bytes / 4);
}

size_t box_words(const TmaCase& c) { return fastops::cuda::box_bytes(spec_of(c, nullptr)) / 4; }

// The tensor's memory: 16-bit elements count in halves of a word. Padding is all ones.
Words tensor_image(const TmaCase& c) {
  Words words(tensor_words(c), 0xffffffffu);
  const int per_row = int(pitch_of(c)) / bytes_of(c);
  for (size_t i = 0; i < words.size() * 4 / size_t(bytes_of(c)); ++i) {
    if (int(i) % per_row >= c.size[0]) continue;
    const auto value = uint32_t(i + 1);
    if (bytes_of(c) == 4) words[i] = value;
    else words[i / 2] = (words[i / 2] & ~(0xffffu << (i % 2 * 16))) | value << (i % 2 * 16);
  }
  return words;
}

struct Coordinates {
  int x[5];
};

template <int kDims>
__global__ void tma_load_probe(const __grid_constant__ CUtensorMap map, Coordinates at,
                               unsigned bytes, unsigned* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  __shared__ __align__(8) uint64_t barrier;
  const unsigned address = smem_addr(&barrier), tile = smem_addr(raw);
  if (threadIdx.x == 0) {
    tma_prefetch(&map);
    mbarrier_init(address, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(address, bytes);
    if constexpr (kDims == 2) tma_load(tile, &map, address, at.x[0], at.x[1]);
    if constexpr (kDims == 3) tma_load(tile, &map, address, at.x[0], at.x[1], at.x[2]);
    if constexpr (kDims == 4) tma_load(tile, &map, address, at.x[0], at.x[1], at.x[2], at.x[3]);
    if constexpr (kDims == 5)
      tma_load(tile, &map, address, at.x[0], at.x[1], at.x[2], at.x[3], at.x[4]);
  }
  __syncwarp();
  mbarrier_wait(address, 0);
  for (unsigned i = threadIdx.x; i < bytes / 4; i += 32)
    out[i] = reinterpret_cast<const unsigned*>(raw)[i];
}

// Block 0 of a cluster of two loads into both.
template <int kDims>
__global__ void tma_multicast_probe(const __grid_constant__ CUtensorMap map, Coordinates at,
                                    unsigned bytes, unsigned* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  __shared__ __align__(8) uint64_t barrier;
  const unsigned address = smem_addr(&barrier), tile = smem_addr(raw);
  constexpr unsigned short kBoth = 3;
  if (threadIdx.x == 0) {
    mbarrier_init(address, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(address, bytes);
  }
  cluster_arrive();
  cluster_wait();
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    const int* const x = at.x;
    if constexpr (kDims == 2) tma_load_multicast(tile, &map, address, kBoth, x[0], x[1]);
    if constexpr (kDims == 3) tma_load_multicast(tile, &map, address, kBoth, x[0], x[1], x[2]);
    if constexpr (kDims == 4)
      tma_load_multicast(tile, &map, address, kBoth, x[0], x[1], x[2], x[3]);
    if constexpr (kDims == 5)
      tma_load_multicast(tile, &map, address, kBoth, x[0], x[1], x[2], x[3], x[4]);
  }
  __syncwarp();
  mbarrier_wait(address, 0);
  for (unsigned i = threadIdx.x; i < bytes / 4; i += 32)
    out[cluster_rank() * (bytes / 4) + i] = reinterpret_cast<const unsigned*>(raw)[i];
}

template <int kDims>
__global__ void tma_store_probe(const __grid_constant__ CUtensorMap map, Coordinates at,
                                const unsigned* in, unsigned bytes) {
  FASTOPS_DYNAMIC_SHARED(raw);
  for (unsigned i = threadIdx.x; i < bytes / 4; i += 32)
    reinterpret_cast<unsigned*>(raw)[i] = in[i];
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    const unsigned tile = smem_addr(raw);
    if constexpr (kDims == 2) tma_store(&map, tile, at.x[0], at.x[1]);
    if constexpr (kDims == 3) tma_store(&map, tile, at.x[0], at.x[1], at.x[2]);
    if constexpr (kDims == 4) tma_store(&map, tile, at.x[0], at.x[1], at.x[2], at.x[3]);
    if constexpr (kDims == 5) tma_store(&map, tile, at.x[0], at.x[1], at.x[2], at.x[3], at.x[4]);
    bulk_commit();
    bulk_wait<0>();
  }
}

Coordinates coordinates(const TmaCase& c) {
  Coordinates at{};
  for (int d = 0; d < c.dims; ++d) at.x[d] = c.at[d];
  return at;
}

template <int kCase>
Words run_tma_load() {
  constexpr TmaCase c = kTmaCases[kCase];
  const Array tensor = Array::input(tensor_image(c), bytes_of(c)),
              out = Array::output(box_words(c));
  const CUtensorMap map = fastops::cuda::make_tensor_map(spec_of(c, tensor.data()));
  launch(tma_load_probe<c.dims>, 1, 32, box_words(c) * 4, 1, map, coordinates(c),
         unsigned(box_words(c) * 4), out.data());
  return out.words();
}

template <int kCase>
Words run_tma_multicast() {
  constexpr TmaCase c = kTmaCases[kCase];
  const Array tensor = Array::input(tensor_image(c), bytes_of(c)),
              out = Array::output(2 * box_words(c));
  const CUtensorMap map = fastops::cuda::make_tensor_map(spec_of(c, tensor.data()));
  launch(tma_multicast_probe<c.dims>, 2, 32, box_words(c) * 4, 2, map, coordinates(c),
         unsigned(box_words(c) * 4), out.data());
  return out.words();
}

template <int kCase>
Words run_tma_store() {
  constexpr TmaCase c = kTmaCases[kCase];
  const Array in = Array::input(counting(box_words(c))),
              tensor = Array::output(tensor_words(c), bytes_of(c));
  const CUtensorMap map = fastops::cuda::make_tensor_map(spec_of(c, tensor.data()));
  launch(tma_store_probe<c.dims>, 1, 32, box_words(c) * 4, 1, map, coordinates(c), in.data(),
         unsigned(box_words(c) * 4));
  return tensor.words();
}

// Visits each element of the box with its byte in shared memory and, or -1, in the tensor.
template <typename Visit>
void for_box(const TmaCase& c, const Visit& visit) {
  const int bytes = bytes_of(c);
  const int width = fastops::cuda::swizzle_bytes(c.swizzle) / 16;
  const int row_elements = c.box[0], rows = int(box_words(c) * 4) / bytes / row_elements;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < row_elements; ++column) {
      int rest = row;
      bool inside = c.at[0] + column >= 0 && c.at[0] + column < c.size[0];
      int64_t global = (c.at[0] + column) * bytes, stride = pitch_of(c);
      for (int d = 1; d < c.dims; ++d) {
        const int at = c.at[d] + rest % c.box[d];
        rest /= c.box[d];
        inside = inside && at >= 0 && at < c.size[d];
        global += at * stride;
        stride *= c.size[d];
      }
      int shared = row * row_elements * bytes + column * bytes;
      if (width > 1) {
        const int chunk = swizzled_chunk(width, row, column * bytes / 16);
        shared = (row * width + chunk) * 16 + column * bytes % 16;
      }
      visit(shared, inside ? global : -1);
    }
  }
}

uint32_t get(const Words& words, int64_t byte, int bytes) {
  const uint32_t word = words[size_t(byte / 4)];
  return bytes == 4 ? word : word >> (byte % 4 * 8) & 0xffffu;
}

void set(Words& words, int64_t byte, int bytes, uint32_t value) {
  uint32_t& word = words[size_t(byte / 4)];
  if (bytes == 4) word = value;
  else word = (word & ~(0xffffu << (byte % 4 * 8))) | value << (byte % 4 * 8);
}

template <int kCase>
Words manual_tma_load() {
  constexpr TmaCase c = kTmaCases[kCase];
  const Words tensor = tensor_image(c);
  Words out(box_words(c), 0);
  for_box(c, [&](int shared, int64_t global) {
    set(out, shared, bytes_of(c), global < 0 ? 0 : get(tensor, global, bytes_of(c)));
  });
  return out;
}

template <int kCase>
Words manual_tma_multicast() {
  Words words = manual_tma_load<kCase>();
  const Words once = words;
  words.insert(words.end(), once.begin(), once.end());
  return words;
}

template <int kCase>
Words manual_tma_store() {
  constexpr TmaCase c = kTmaCases[kCase];
  const Words in = counting(box_words(c));
  Words tensor(tensor_words(c), 0xdeadbeefu);
  for_box(c, [&](int shared, int64_t global) {
    if (global >= 0) set(tensor, global, bytes_of(c), get(in, shared, bytes_of(c)));
  });
  return tensor;
}

template <int... kCase>
void add_tma(std::vector<Probe>& probes, std::integer_sequence<int, kCase...>) {
  const auto add = [&](const char* what, int i, auto run, auto manual) {
    probes.push_back(
        {std::string(what) + "_" + std::to_string(kTmaCases[i].dims) + "d_case" + std::to_string(i),
         90, run, manual});
  };
  (add("tma_load", kCase, run_tma_load<kCase>, manual_tma_load<kCase>), ...);
  (add("tma_multicast", kCase, run_tma_multicast<kCase>, manual_tma_multicast<kCase>), ...);
  (add("tma_store", kCase, run_tma_store<kCase>, manual_tma_store<kCase>), ...);
}

}  // namespace

std::vector<Probe> tma_probes() {
  std::vector<Probe> probes;
  add_tma(probes, std::make_integer_sequence<int, kTmaCount>());
  return probes;
}

}  // namespace conformance
