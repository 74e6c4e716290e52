// Plans on a CPU: which sources merge, where every token goes, and the composition of plans. Work
// on a few integers per token, so compiled once, for every instruction set.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "merge/merge.h"

namespace fastops::merge::cpu {
namespace {

using fastops::cpu::parallel_for;
using fastops::cpu::thread_scratch;

constexpr int64_t kTokensPerTask = 1024;

int64_t samples_per_task(int64_t tokens) {
  return std::max<int64_t>(kTokensPerTask / std::max<int64_t>(tokens, 1), 1);
}

struct Candidate {
  double score;
  int32_t index;

  // The greater score first, the lower index among equal ones.
  bool operator<(const Candidate& other) const {
    return score != other.score ? score > other.score : index < other.index;
  }
};

// NaN sorts last, with the smallest.
double score_at(const void* scores, DType dtype, int64_t i) {
  const double score = dtype == DType::f64 ? static_cast<const double*>(scores)[i]
                                           : static_cast<const float*>(scores)[i];
  return std::isnan(score) ? -std::numeric_limits<double>::infinity() : score;
}

// offsets and perm from the map of one sample: a counting sort, so tokens ascend in each row.
void fill_rows(const int32_t* map, int64_t num_tokens, int64_t num_out, int32_t* offsets,
               int32_t* perm) {
  std::fill_n(offsets, num_out + 1, 0);
  for (int64_t i = 0; i < num_tokens; ++i)
    if (map[i] >= 0) ++offsets[map[i] + 1];
  for (int64_t o = 0; o < num_out; ++o) offsets[o + 1] += offsets[o];
  std::fill(perm + offsets[num_out], perm + num_tokens, -1);
  // Each row's start moves along as it fills; shifted back afterwards.
  for (int64_t i = 0; i < num_tokens; ++i)
    if (map[i] >= 0) perm[offsets[map[i]]++] = int32_t(i);
  for (int64_t o = num_out; o > 0; --o) offsets[o] = offsets[o - 1];
  offsets[0] = 0;
}

class Planner {
 public:
  Planner(const PlanParams& p, int64_t sample, void* scratch)
      : p_(p),
        part_(p.part),
        sample_(sample),
        candidates_(static_cast<Candidate*>(scratch)),
        merges_(reinterpret_cast<uint8_t*>(candidates_ + part_.num_src)),
        map_(p.map + sample * part_.num_tokens),
        matches_(p.matches + sample * part_.num_src) {}

  static size_t scratch_bytes(const PlanParams& p) {
    return size_t(p.part.num_src) * (sizeof(Candidate) + 1);
  }

  void run() {
    select();
    std::fill_n(map_, part_.num_tokens, -1);
    rows_ = 0;
    switch (p_.order) {
      case Order::position: by_position(); break;
      case Order::reference: as_reference(); break;
      case Order::rest: rest_first(); break;
    }
    // Sources follow their destinations; what a wrong list says twice stays where it was.
    for (int64_t i = 0; i < part_.num_src; ++i) {
      if (!merges_[i]) continue;
      const int64_t t = part_.src(sample_, i), j = matches_[i];
      if (!part_.present(sample_, t) || j < 0 || j >= part_.num_dst) continue;
      const int64_t to = part_.dst(sample_, j);
      if (in_range(to) && (p_.order == Order::position || map_[t] < 0)) map_[t] = map_[to];
    }
    p_.lengths[sample_] = int32_t(rows_);
    fill_rows(map_, part_.num_tokens, p_.num_out, p_.offsets + sample_ * (p_.num_out + 1),
              p_.perm + sample_ * part_.num_tokens);
  }

 private:
  bool in_range(int64_t t) const { return t >= 0 && t < part_.num_tokens; }

  bool mergeable(int64_t i) const {
    const int64_t j = matches_[i];
    return part_.takes_part(sample_, part_.src(sample_, i)) && j >= 0 && j < part_.num_dst &&
           part_.present(sample_, part_.dst(sample_, j));
  }

  void select() {
    count_ = 0;
    std::fill_n(merges_, part_.num_src, uint8_t(p_.order == Order::rest));
    if (p_.order == Order::rest) return;
    for (int64_t i = 0; i < part_.num_src; ++i) {
      const double score = score_at(p_.scores, p_.score_dtype, sample_ * part_.num_src + i);
      if (mergeable(i) && (!p_.has_threshold || score > p_.threshold))
        candidates_[count_++] = {score, int32_t(i)};
    }
    if (p_.r < count_) {
      if (p_.r > 0) std::nth_element(candidates_, candidates_ + p_.r - 1, candidates_ + count_);
      count_ = std::max<int64_t>(p_.r, 0);
    }
    for (int64_t c = 0; c < count_; ++c) merges_[candidates_[c].index] = 1;
  }

  // The next row is this token's, if it exists and has none.
  void keep(int64_t t) {
    if (part_.present(sample_, t) && map_[t] < 0 && rows_ < p_.num_out) map_[t] = int32_t(rows_++);
  }

  void by_position() {
    // -2 marks the sources that merge while the others are numbered.
    for (int64_t i = 0; i < part_.num_src; ++i) {
      const int64_t t = part_.src(sample_, i);
      if (merges_[i] && in_range(t)) map_[t] = -2;
    }
    for (int64_t t = 0; t < part_.num_tokens; ++t) {
      if (map_[t] == -2) map_[t] = -1;
      else keep(t);
    }
  }

  void as_reference() {
    keep_rest();
    int64_t kept = 0;
    for (int64_t i = 0; i < part_.num_src; ++i)
      if (!merges_[i])
        candidates_[kept++] = {score_at(p_.scores, p_.score_dtype, sample_ * part_.num_src + i),
                               int32_t(i)};
    if (!part_.class_token) std::sort(candidates_, candidates_ + kept);
    const auto src = [&](int64_t c) { return part_.src(sample_, candidates_[c].index); };
    int64_t next_src = 0, next_dst = 0;
    if (part_.distill_token && kept > 0 && part_.num_dst > 0) {
      keep(src(next_src++));
      keep(part_.dst(sample_, next_dst++));
    }
    while (next_src < kept) keep(src(next_src++));
    while (next_dst < part_.num_dst) keep(part_.dst(sample_, next_dst++));
  }

  void rest_first() {
    keep_rest();
    for (int64_t j = 0; j < part_.num_dst; ++j) keep(part_.dst(sample_, j));
  }

  void keep_rest() {
    if (!part_.tokens) return;
    const int32_t* list = part_.tokens + sample_ * part_.tokens_stride;
    for (int64_t i = part_.num_src + part_.num_dst; i < part_.num_tokens; ++i) keep(list[i]);
  }

  const PlanParams& p_;
  const Partition& part_;
  int64_t sample_;
  Candidate* candidates_;
  uint8_t* merges_;
  int32_t* map_;
  const int32_t* matches_;
  int64_t count_ = 0, rows_ = 0;
};

}  // namespace

void plan(const PlanParams& p) {
  parallel_for(0, p.batch, samples_per_task(p.part.num_tokens), [&](int64_t begin, int64_t end) {
    void* scratch = thread_scratch(Planner::scratch_bytes(p) + 1);
    for (int64_t sample = begin; sample < end; ++sample) Planner(p, sample, scratch).run();
  });
}

void compose(const ComposeParams& p) {
  parallel_for(0, p.batch, samples_per_task(p.num_tokens), [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) {
      const int32_t* first = p.first + sample * p.num_tokens;
      int32_t* map = p.map + sample * p.num_tokens;
      for (int64_t i = 0; i < p.num_tokens; ++i) {
        int32_t o = first[i];
        if (p.next) o = o >= 0 && o < p.num_mid ? p.next[sample * p.num_mid + o] : -1;
        map[i] = o >= 0 && o < p.num_out ? o : -1;
      }
      fill_rows(map, p.num_tokens, p.num_out, p.offsets + sample * (p.num_out + 1),
                p.perm + sample * p.num_tokens);
    }
  });
}

void select(const SelectParams& p) {
  const int64_t n = p.part.num_tokens;
  parallel_for(0, p.batch, samples_per_task(n), [&](int64_t begin, int64_t end) {
    auto* candidates =
        static_cast<Candidate*>(thread_scratch(size_t(n) * (sizeof(Candidate) + 1) + 1));
    auto* kept = reinterpret_cast<uint8_t*>(candidates + n);
    for (int64_t sample = begin; sample < end; ++sample) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      for (int64_t t = 0; t < n; ++t) {
        // Padding comes after every token, tokens that always stay before.
        double score = score_at(p.scores, p.score_dtype, sample * n + t);
        score = std::clamp(score, -std::numeric_limits<double>::max(),
                           std::numeric_limits<double>::max());
        if (!p.part.present(sample, t)) score = -kInfinity;
        else if (!p.part.takes_part(sample, t)) score = kInfinity;
        candidates[t] = {score, int32_t(t)};
        kept[t] = 0;
      }
      std::partial_sort(candidates, candidates + std::min(p.keep + p.pool, n), candidates + n);
      int32_t* out = p.tokens + sample * n;
      for (int64_t c = 0; c < p.keep; ++c) kept[candidates[c].index] = 1;
      for (int64_t c = 0; c < p.pool; ++c) {
        kept[candidates[p.keep + c].index] = 2;
        out[n - p.keep - p.pool + c] = candidates[p.keep + c].index;
      }
      int32_t *rest = out, *last = out + n - p.keep;
      for (int64_t t = 0; t < n; ++t) {
        if (kept[t] == 0) *rest++ = int32_t(t);
        else if (kept[t] == 1) *last++ = int32_t(t);
      }
    }
  });
}

}  // namespace fastops::merge::cpu
