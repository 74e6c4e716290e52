// A match through a screen is the match without one, bit for bit.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/isa.h"
#include "harness.h"
#include "merge/cpu/kernels.h"

namespace fastops::test {
namespace {

#ifdef FASTOPS_HAS_AVX512
struct Matched {
  std::vector<float> scores;
  std::vector<int32_t> matches;
};

Matched match(const std::vector<float>& metric, int64_t batch, int64_t tokens, int64_t channels,
              int64_t k, bool screen) {
  merge::MatchParams p;
  p.metric = metric.data();
  p.batch = batch;
  p.channels = channels;
  p.stride[0] = tokens * channels;
  p.stride[1] = p.stride[0];
  p.stride[2] = channels;
  p.stride[3] = 1;
  p.part.num_tokens = tokens;
  p.part.k = k;
  p.part.num_dst = tokens / k;
  p.part.num_src = tokens - tokens / k;
  p.part.class_token = true;
  Matched out{std::vector<float>(batch * p.part.num_src),
              std::vector<int32_t>(batch * p.part.num_src)};
  p.scores = out.scores.data();
  p.matches = out.matches.data();
  merge::cpu::avx512::match(p, screen);
  return out;
}

void compare(const std::vector<float>& metric, int64_t batch, int64_t tokens, int64_t channels,
             int64_t k) {
  const Matched with = match(metric, batch, tokens, channels, k, true);
  const Matched without = match(metric, batch, tokens, channels, k, false);
  CHECK(with.matches == without.matches);
  CHECK(std::memcmp(with.scores.data(), without.scores.data(),
                    with.scores.size() * sizeof(float)) == 0);
}

// How alike tokens are decides how many scores a screen lets through, and whether it gives up.
std::vector<float> tokens_of(int64_t batch, int64_t tokens, int64_t channels, float noise,
                             std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> common(channels), metric(batch * tokens * channels);
  for (float& c : common) c = normal(rng);
  for (int64_t i = 0; i < int64_t(metric.size()); ++i)
    metric[i] = common[i % channels] + noise * normal(rng);
  return metric;
}

// Once, not for every instruction set that the tests walk.
bool can_screen() { return cpu::active_isa() == cpu::Isa::avx512; }

FASTOPS_TEST(match_screen_by_likeness) {
  if (!can_screen()) return;
  std::mt19937 rng(1);
  for (const float noise : {0.f, 1e-4f, 0.02f, 0.2f, 0.7f, 5.f})
    for (const int64_t channels : {32, 33, 47, 64, 80, 130})
      for (const int64_t tokens : {97, 131, 400})
        compare(tokens_of(2, tokens, channels, noise, rng), 2, tokens, channels, 2);
}

FASTOPS_TEST(match_screen_by_blocks) {  // more destinations than a block holds, and few sources
  if (!can_screen()) return;
  std::mt19937 rng(2);
  compare(tokens_of(1, 3000, 320, 1.f, rng), 1, 3000, 320, 2);
  compare(tokens_of(1, 400, 1500, 1.f, rng), 1, 400, 1500, 4);
}

FASTOPS_TEST(match_screen_by_magnitude) {
  if (!can_screen()) return;
  std::mt19937 rng(3);
  std::uniform_int_distribution<int> exponent(-70, 60);
  constexpr int64_t kTokens = 300, kChannels = 65;
  for (const bool rows : {true, false}) {  // of whole tokens, or of each element
    std::vector<float> metric = tokens_of(1, kTokens, kChannels, 1.f, rng);
    int power = 0;
    for (int64_t i = 0; i < int64_t(metric.size()); ++i) {
      if (!rows || i % kChannels == 0) power = exponent(rng);
      metric[i] = std::ldexp(metric[i], power);
    }
    compare(metric, 1, kTokens, kChannels, 2);
  }
}

FASTOPS_TEST(match_screen_with_specials) {
  if (!can_screen()) return;
  std::mt19937 rng(4);
  constexpr int64_t kTokens = 260, kChannels = 48;
  const float specials[] = {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(), 3e38f, 1e-40f, 0.f};
  for (const float special : specials) {
    std::vector<float> metric = tokens_of(1, kTokens, kChannels, 1.f, rng);
    for (int64_t t : {0, 1, 2, 7, 8, 64, 65, 200, 259}) {
      const bool whole = special == 0.f || special == 1e-40f;
      for (int64_t c = 0; c < (whole ? kChannels : 1); ++c) metric[t * kChannels + c] = special;
    }
    compare(metric, 1, kTokens, kChannels, 2);
    compare(std::vector<float>(metric.size(), special), 1, kTokens, kChannels, 2);
  }
}
#endif

}  // namespace
}  // namespace fastops::test
