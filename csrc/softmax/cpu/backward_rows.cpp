// Backward of rows whose reduced dim is contiguous.
//
// Budget per element (fp32): read y and dy, write dx, 12 bytes; the sum needs both inputs before
// the first output, so each is read twice, the second time from cache if the row fits there:
//   plain rows   one by one: what is read again is in L1 or L2, or (64 and 128 elements) in
//   registers flat rows    that end within vectors: a group of flat.h applied while the next one is
//   summed long rows    summed in two places by turns, then applied from the end, where the cache
//   still
//                holds the row's tail: 20 bytes where it holds nothing
// Sums run in fp32 over a chunk and in double over chunks, in an order that depends on n alone.
#include "cpu/parallel.h"
#include "softmax/cpu/backward_flat.h"
#include "softmax/cpu/backward_math.h"
#include "softmax/cpu/heuristics.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/rows.h"
#include "softmax/cpu/staging.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

constexpr int64_t kPiece = 64 * kChunk;  // elements per thread when a row is split
constexpr int64_t kLine = 64;

// One row: where its elements are, how many take part, and its coefficients.
struct Row {
  const char* y;
  const char* dy;
  char* dx;
  const uint8_t* mask;
  const char* bias;
  int64_t length;
  int64_t head;  // elements before the first whole line of dx
  Factors factors;
};

class BackwardRows {
 public:
  explicit BackwardRows(const BackwardParams& p)
      : p_(p),
        n_(p.shape.n),
        wide_(accumulator(p.y.dtype, p.dx.dtype)),
        y_size_(int64_t(size_of(p.y.dtype))),
        dy_size_(int64_t(size_of(p.dy.dtype))),
        dx_size_(int64_t(size_of(p.dx.dtype))) {
    const DType grad = p.dy ? p.dy.dtype : p.y.dtype;
    kernels_ = backward_kernels(p.kind, bool(p.mask), p.y.dtype, grad, p.dx.dtype);
    staged_ = !kernels_.apply;
    if (staged_) kernels_ = backward_kernels(p.kind, bool(p.mask), wide_, wide_, wide_);
    mask_stride_ = p.shape.reduce_dims ? p.mask.reduce_stride[0] : 0;
    bias_stride_ = p.shape.reduce_dims ? p.bias.reduce_stride[0] : 0;
    const bool in_place = p.dx.data == p.dy.data || p.dx.data == p.y.data;
    stream_ = !staged_ && !in_place && use_streaming(p.shape.rows * n_ * dx_size_);
    const bool alike = !staged_ && kernels_.plain && p.shape.row_dims <= 1 && !p.lengths &&
                       !p.causal && !p.dlse && !p.row_scale && !p.zero_masked_rows;
    lanes_ = wide_ == DType::f64 ? fastops::cpu::VecF64::size : fastops::cpu::VecF32::size;
    flat_ = alike && flat_backward_row(n_, lanes_, p.dx.dtype) && rows_follow(p.shape, p.y) &&
            rows_follow(p.shape, p.dy) && rows_follow(p.shape, p.dx) &&
            (!stream_ || reinterpret_cast<uintptr_t>(p.dx.data) % kLine == 0);
    const auto whole_lines = [&](int64_t elements) { return elements * dx_size_ % kLine == 0; };
    lines_ = reinterpret_cast<uintptr_t>(p.dx.data) % kLine == 0 && whole_lines(n_);
    for (int d = 0; d < p.shape.row_dims; ++d) lines_ = lines_ && whole_lines(p.dx.row_stride[d]);
    // Others of more than kShortRow leave past the caches chunk by chunk.
    const bool few = n_ <= kShortRow;
    plain_ = alike && short_backward_row(n_, y_size_ + dy_size_) && (few || lines_ || !stream_);
    short_ = !staged_ && n_ <= kChunk && (few || lines_ || !stream_) &&
             (!p.mask || mask_stride_ == 1) && !p.bias;
    ahead_ = ahead(few);
  }

  void run() {
    const int64_t threads = fastops::cpu::num_threads(), rows = p_.shape.rows;
    if (threads > 1 && rows < 4 * threads && rows % threads != 0 && n_ >= 2 * kPiece) {
      for (int64_t r = 0; r < rows; ++r) split_row(r);
      return;
    }
    if (flat_) {
      return fastops::cpu::parallel_for(0, (rows + lanes_ - 1) / lanes_, rows_per_task(n_ * lanes_),
                                        [&](int64_t begin, int64_t end) {
                                          end = end * lanes_ < rows ? end * lanes_ : rows;
                                          flat_rows(begin * lanes_, end);
                                          fastops::cpu::store_fence();
                                        });
    }
    fastops::cpu::parallel_for(0, rows, rows_per_task(n_), [&](int64_t begin, int64_t end) {
      if (plain_) plain_rows(begin, end);
      else if (short_) short_rows(begin, end);
      else long_rows(begin, end);
      fastops::cpu::store_fence();
    });
  }

 private:
  // Bytes between a prefetch of inputs and their use: for the next of plain rows in L1 while one is
  // written, for none of long rows, which are read in two places.
  int64_t ahead(bool few) const {
    if (n_ >= 2 * kPiece) return 0;
    if (flat_) return 3072;
    if (plain_ && in_l1_backward(n_, y_size_ + dy_size_)) return n_ * y_size_ < 2048 ? 1024 : 4096;
    return few ? 1024 : 3072;
  }

  // A thread's contiguous copies of what is not laid out as the kernels read it.
  struct Scratch {
    static constexpr int64_t kSize = kChunk + kLine;
    alignas(64) char y[kSize * 8], dy[kSize * 8], dx[kSize * 8], bias[kSize * 8];
    alignas(64) uint8_t mask[kSize];
  };

  Row row_at(const RowCursor& at) const {
    Row r;
    r.y = static_cast<const char*>(p_.y.data) + at.offset(p_.y.row_stride) * y_size_;
    r.dy = p_.dy ? static_cast<const char*>(p_.dy.data) + at.offset(p_.dy.row_stride) * dy_size_
                 : nullptr;
    r.dx = static_cast<char*>(p_.dx.data) + at.offset(p_.dx.row_stride) * dx_size_;
    r.mask = nullptr;
    r.bias = nullptr;
    if (p_.mask) r.mask = static_cast<const uint8_t*>(p_.mask.data) + at.offset(p_.mask.row_stride);
    if (p_.bias)
      r.bias = static_cast<const char*>(p_.bias.data) +
               at.offset(p_.bias.row_stride) * int64_t(size_of(p_.bias.dtype));
    r.length = at.length(p_);
    r.head = stream_ ? int64_t(-reinterpret_cast<uintptr_t>(r.dx) % kLine) / dx_size_ : 0;
    r.factors = row_factors(p_, at);
    return r;
  }

  Chunk chunk_at(const Row& r, int64_t begin, int64_t end, Scratch& s) const {
    const int64_t n = end - begin;
    Chunk c{r.y + begin * y_size_,
            r.dy + begin * dy_size_,
            r.dx + begin * dx_size_,
            r.mask + begin,
            nullptr,
            n,
            ahead_};
    if (r.mask && mask_stride_ != 1) {
      for (int64_t j = 0; j < n; ++j) s.mask[j] = r.mask[(begin + j) * mask_stride_];
      c.mask = s.mask;
    }
    if (r.bias) {
      widen(p_.bias.dtype, r.bias, begin, bias_stride_, n, wide_, s.bias);
      c.bias = s.bias;
    }
    if (staged_) {
      widen(p_.y.dtype, r.y, begin, 1, n, wide_, s.y);
      c.y = s.y;
      if (r.dy) widen(p_.dy.dtype, r.dy, begin, 1, n, wide_, s.dy);
      c.dy = s.dy;
      c.dx = s.dx;
    }
    return c;
  }

  double sum(const Row& r, int64_t begin, int64_t end, Scratch& s) const {
    if (end > r.length) end = r.length;
    return begin < end ? kernels_.sum(chunk_at(r, begin, end, s)) : 0.0;
  }

  // Chunk c of a row, shifted so that every chunk but the first starts on a line of dx.
  void apply(const Row& r, int64_t c, Scratch& s) const {
    const int64_t begin = c == 0 ? 0 : c * kChunk + r.head;
    int64_t end = (c + 1) * kChunk + r.head;
    if (end > r.length) end = r.length;
    if (begin >= end) return;
    Chunk chunk = chunk_at(r, begin, end, s);
    if (stream_ && begin == 0 && r.head > 0) {
      const int64_t head = r.head < end ? r.head : end;
      chunk.n = head;
      kernels_.apply(chunk, r.factors);
      if (head == end) return;
      chunk = chunk_at(r, head, end, s);
    }
    (stream_ ? kernels_.stream : kernels_.apply)(chunk, r.factors);
    if (staged_) narrow(wide_, s.dx, p_.dx.dtype, r.dx, begin, end - begin);
  }

  // What does not take part is 0. Call once a row, before its factors are used.
  void exclude(Row& r) const {
    if (p_.kind == Kind::log_softmax && p_.zero_masked_rows && empty(r)) r.length = 0;
    if (r.length < n_)
      __builtin_memset(r.dx + r.length * dx_size_, 0, size_t((n_ - r.length) * dx_size_));
  }

  // log_softmax: whether all of a row's outputs are -inf. Most rows say no at once.
  bool empty(const Row& r) const {
    for (int64_t j = 0; j < r.length; ++j)
      if ((!r.mask || r.mask[j * mask_stride_]) && !is_minus_infinity(p_.y.dtype, r.y, j))
        return false;
    return true;
  }

  int64_t chunks() const { return (n_ + kChunk - 1) / kChunk; }

  void flat_rows(int64_t begin, int64_t end) const {
    const Row r = row_at(RowCursor(p_.shape, begin));
    kernels_.flat({r.y, r.dy, r.dx, n_, n_, n_, end - begin, n_, ahead_, p_.scale}, stream_);
  }

  void plain_rows(int64_t begin, int64_t end) const {
    const Row r = row_at(RowCursor(p_.shape, begin));
    const auto stride = [&](const Operand& o) { return p_.shape.row_dims ? o.row_stride[0] : 0; };
    kernels_.plain({r.y, r.dy, r.dx, stride(p_.y), stride(p_.dy), stride(p_.dx), end - begin, n_,
                    ahead_, p_.scale},
                   stream_ && lines_);
  }

  void short_rows(int64_t begin, int64_t end) const {
    RowCursor at(p_.shape, begin);
    for (int64_t row = begin; row < end; ++row, at.next()) {
      Row r = row_at(at);
      exclude(r);
      kernels_.row({r.y, r.dy, r.dx, r.mask, nullptr, r.length, ahead_}, r.factors,
                   stream_ && lines_);
    }
  }

  // The sums of pieces [begin, end): chunks of two places by turns, which the hardware reads ahead
  // in both. 128 MB of inputs take 5 ms, where one place after the other they take 6.4.
  void sum_pieces(const Row& r, int64_t begin, int64_t end, double* sums, Scratch& scratch) const {
    const int64_t half = (end - begin) / 2;
    for (int64_t i = begin; i < end; ++i) sums[i] = 0;
    const auto add = [&](int64_t piece, int64_t from) {
      sums[piece] += sum(r, from, from + kChunk, scratch);
    };
    const int64_t apart = half * kPiece, second = (begin + half) * kPiece;
    for (int64_t j = begin * kPiece; j < second; j += kChunk) {
      add(j / kPiece, j);
      if (j + apart < n_) add(j / kPiece + half, j + apart);
    }
    const int64_t stop = end * kPiece < n_ ? end * kPiece : n_;
    for (int64_t j = second + apart; j < stop; j += kChunk) add(j / kPiece, j);
  }

  // Chunks from the last piece to the first, to begin with what the sum left in the cache; forwards
  // within a piece, as the hardware reads ahead.
  void apply_back(const Row& r, int64_t begin, int64_t end, Scratch& scratch) const {
    constexpr int64_t kChunks = kPiece / kChunk;
    while (end > begin) {
      int64_t first = (end - 1) / kChunks * kChunks;
      if (first < begin) first = begin;
      for (int64_t c = first; c < end; ++c) apply(r, c, scratch);
      end = first;
    }
  }

  int64_t pieces() const { return (n_ + kPiece - 1) / kPiece; }

  double* room_for_sums() const {
    return static_cast<double*>(fastops::cpu::thread_scratch(size_t(pieces()) * sizeof(double)));
  }

  void add(Row& r, const double* sums) const {
    double total = 0;
    for (int64_t i = 0; i < pieces(); ++i) total += sums[i];
    r.factors.shift += total;
  }

  void long_rows(int64_t begin, int64_t end) const {
    Scratch scratch;
    double* const sums = room_for_sums();
    RowCursor at(p_.shape, begin);
    for (int64_t row = begin; row < end; ++row, at.next()) {
      Row r = row_at(at);
      exclude(r);
      if (kernels_.sum) {
        sum_pieces(r, 0, pieces(), sums, scratch);
        add(r, sums);
      }
      apply_back(r, 0, chunks(), scratch);
    }
  }

  void split_row(int64_t row) const {
    Row r = row_at(RowCursor(p_.shape, row));
    exclude(r);
    if (kernels_.sum) {
      double* const sums = room_for_sums();
      fastops::cpu::parallel_for(0, pieces(), 1, [&](int64_t begin, int64_t end) {
        Scratch scratch;
        sum_pieces(r, begin, end, sums, scratch);
      });
      add(r, sums);
    }
    fastops::cpu::parallel_for(0, chunks(), kPiece / kChunk, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      apply_back(r, begin, end, scratch);
      fastops::cpu::store_fence();
    });
  }

  const BackwardParams& p_;
  int64_t n_;
  DType wide_;  // the accumulation type
  int64_t y_size_, dy_size_, dx_size_;
  int64_t ahead_;
  int64_t mask_stride_, bias_stride_;
  BackwardKernels kernels_;
  bool staged_;  // no kernel for these dtypes: chunks are converted through scratch
  bool stream_, short_, plain_, flat_;
  bool lines_;  // rows of dx are whole cache lines
  int lanes_;   // of a vector
};

}  // namespace

void backward_rows(const BackwardParams& p) { BackwardRows(p).run(); }

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
