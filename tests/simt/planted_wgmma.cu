// wgmma: a good product, and the same with one line wrong.
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "planted.h"

namespace {

using namespace fastops::ptx;
using namespace planted;

constexpr int kRowBytes = 128;  // 64 columns of __half

// Element (row, k) of a K-major tile with the 128-byte swizzle.
__device__ __forceinline__ int at(int row, int k, bool swizzled) {
  const int chunk = swizzled ? k / 8 ^ row % 8 : k / 8;
  return row * 64 + chunk * 8 + k % 8;
}

enum class Bug {
  none,
  no_fence,
  no_proxy_fence,
  no_barrier,
  no_wait,
  short_wait,
  exit_in_flight,
  write_in_flight,
  written_after_fence,
  wrong_swizzle,
  three_warps,
  overwritten,
  operand_registers,
  wrong_stride,
};

// d = a b', a 64 x 64, b 8 x 64, twice; out[8 row + column].
template <Bug kBug>
__global__ void product(const float* x, float* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  auto* a = reinterpret_cast<__half*>(raw);
  auto* b = a + 64 * 64;
  const int thread = threadIdx.x;
  const auto fill = [&] {
    for (int i = thread; i < 64 * 64; i += 128)
      a[at(i / 64, i % 64, kBug != Bug::wrong_swizzle)] = __float2half(x[(i + i / 64) % 7]);
    for (int i = thread; i < 8 * 64; i += 128)
      b[at(i / 64, i % 64, true)] = __float2half(x[(i + i / 64) % 5]);
    if (kBug != Bug::no_proxy_fence) fence_proxy_async();
  };
  fill();
  if (kBug != Bug::no_barrier) __syncthreads();
  float d[4] = {};
  unsigned registers[4] = {};
  const unsigned base = smem_addr(raw);
  const unsigned stride = kBug == Bug::wrong_stride ? 2048 * 16 : 8 * kRowBytes;
  if (kBug == Bug::three_warps && thread >= 96) return;
  for (int pass = 0; pass < 2; ++pass) {
    if (kBug != Bug::no_fence) wgmma_fence();
    if (kBug == Bug::written_after_fence && pass == 1) d[1] += 0.0f * x[1];
    for (int k = 0; k < 4; ++k) {
      const uint64_t da = wgmma_descriptor(base + k * 32, 16, stride, Swizzle::b128);
      const uint64_t db =
          wgmma_descriptor(base + 64 * kRowBytes + k * 32, 16, 8 * kRowBytes, Swizzle::b128);
      wgmma_ss<__half, 8>(d, da, db, k > 0 || pass > 0);
    }
    if (kBug == Bug::operand_registers) {
      const uint64_t db = wgmma_descriptor(base + 64 * kRowBytes, 16, 8 * kRowBytes, Swizzle::b128);
      wgmma_rs<__half, 8>(d, registers, db);
      registers[0] = __float_as_uint(x[0]);
    }
    wgmma_commit();
    if (kBug == Bug::overwritten && thread == 0) a[0] = __float2half(1.0f);
    if (kBug == Bug::write_in_flight) d[0] = 0.0f;
    if (kBug == Bug::short_wait) wgmma_wait<1>();
    if (kBug != Bug::no_wait && kBug != Bug::short_wait && kBug != Bug::exit_in_flight)
      wgmma_wait<0>();
    if (kBug == Bug::no_wait || kBug == Bug::short_wait) break;
  }
  const int warp = thread / 32, lane = thread % 32;
  for (int i = 0; i < 4 && kBug != Bug::exit_in_flight; ++i)
    out[(warp * 16 + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
  if (kBug == Bug::no_wait || kBug == Bug::short_wait) wgmma_wait<0>();
}

float right(int i) {
  const int row = i / 8, column = i % 8;
  float sum = 0.0f;
  for (int k = 0; k < 64; ++k)
    sum += float((row * 64 + k + row) % 7) * float((column * 64 + k + column) % 5);
  return 2 * sum;
}

template <Bug kBug>
Case product_case(const char* name, const char* expected) {
  return exact(name, product<kBug>, {128, 1, 1, (64 + 8) * kRowBytes}, 512, right, expected);
}

// Half a warpgroup.
__global__ void two_warps(const float*, float* out) {
  float d[4] = {};
  wgmma_fence();
  wgmma_ss<__half, 8>(d, 0, 0);
  out[threadIdx.x] = d[0];
}

}  // namespace

std::vector<Case> planted::wgmma_cases() {
  return {
      product_case<Bug::none>("wgmma_product", ""),
      product_case<Bug::no_fence>("wgmma_no_fence", "wgmma-protocol"),
      product_case<Bug::no_proxy_fence>("wgmma_no_proxy_fence", "proxy-fence"),
      product_case<Bug::no_barrier>("wgmma_no_barrier", "race"),
      product_case<Bug::no_wait>("wgmma_no_wait", "wgmma-protocol"),
      product_case<Bug::short_wait>("wgmma_short_wait", "wgmma-protocol"),
      product_case<Bug::exit_in_flight>("wgmma_exit_in_flight", "wgmma-protocol"),
      product_case<Bug::write_in_flight>("wgmma_write_in_flight", "wgmma-protocol"),
      product_case<Bug::written_after_fence>("wgmma_written_after_fence", "wgmma-protocol"),
      product_case<Bug::operand_registers>("wgmma_operand_registers", "wgmma-protocol"),
      product_case<Bug::three_warps>("wgmma_three_warps", "wgmma-protocol"),
      product_case<Bug::overwritten>("wgmma_overwritten", "race"),
      product_case<Bug::wrong_stride>("wgmma_wrong_stride", "out-of-bounds"),
      // No check can know what was meant: the numbers show it.
      product_case<Bug::wrong_swizzle>("wgmma_wrong_swizzle", "wrong result"),
      plain("wgmma_two_warps", "wgmma-protocol", two_warps),
  };
}
