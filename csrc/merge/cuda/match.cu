#include "cuda/launch.h"
#include "merge/cuda/launch.h"
#include "merge/cuda/match.cuh"
#include "merge/cuda/match_mma.cuh"

namespace fastops::merge::cuda {
namespace {

using fastops::cuda::Launch;

dim3 grid_of(int64_t num_src, int rows, int64_t batch) {
  const int64_t blocks = (num_src + rows - 1) / rows * batch;
  if (blocks >= int64_t{1} << 31) fail("fastops.match_tokens: more than 2**31 blocks of sources");
  return dim3(unsigned(blocks));
}

// Whether every 8 channels of every token are whole 16-byte vectors.
bool has_vectors(const MatchParams& p) {
  const int64_t width = 16 / int64_t(size_of(p.dtype));
  const auto aligned = [&](int64_t count, int64_t stride) {
    return count == 1 || stride % width == 0;
  };
  return p.stride[3] == 1 && reinterpret_cast<uintptr_t>(p.metric) % 16 == 0 &&
         aligned(p.batch, p.stride[0]) && aligned(p.heads, p.stride[1]) &&
         aligned(p.part.num_tokens, p.stride[2]);
}

template <typename T, bool kSplit>
void run_mma(const MatchParams& p, bool vector, void* stream) {
  constexpr int kParts = kSplit ? 2 : 1;
  const auto device = fastops::cuda::device_info();
  MatchCut cut =
      plan_match(p.part.num_src, p.batch, p.channels, kParts, device.sm_count, device.shared_optin);
  cut.vector = vector;
  launch(&match_mma_kernel<T, kSplit>,
         Launch{"merge match", grid_of(p.part.num_src, cut.rows(), p.batch), dim3(kMmaThreads),
                cut.shared_bytes(match_chunks(p.channels), kParts), 1, stream},
         p, cut);
}

template <typename T>
void run_half(const MatchParams& p, void* stream) {
  const bool vector = has_vectors(p);
  if (vector && p.heads == 1 && p.channels % 8 == 0) run_mma<T, false>(p, vector, stream);
  else run_mma<T, true>(p, vector, stream);
}

}  // namespace

void match(const MatchParams& p, void* stream) {
  switch (p.dtype) {
    case DType::f64:
      return launch(&match_kernel<double, double>,
                    Launch{"merge match", grid_of(p.part.num_src, kMatchTile, p.batch),
                           dim3(kMatchThreads), 0, 1, stream},
                    p);
    case DType::f16: return run_half<__half>(p, stream);
    case DType::bf16: return run_half<__nv_bfloat16>(p, stream);
    default: return run_mma<float, true>(p, has_vectors(p), stream);
  }
}

}  // namespace fastops::merge::cuda
