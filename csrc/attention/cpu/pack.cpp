// Brings rows into the form that the products read, block by block and only where one is listed.
#include "attention/cpu/chunks.h"
#include "attention/cpu/kernels.h"

namespace fastops::attention::cpu::FASTOPS_ISA {

#ifdef __AMX_BF16__
const Unit kUnit = Unit::matrix;
#elif defined(FASTOPS_AVX512)
const Unit kUnit = Unit::pair;
#else
const Unit kUnit = Unit::single;
#endif

namespace {

// Rows [first, last) of a block, turned: from rows of values to 64 bytes for each channel.
void turn(const PackJob& job, const char* from, int64_t step, int64_t first, int64_t last,
          char* to) {
  const int64_t unit = at_most(job.block, 32), channels = round_up(job.channels, 32);
  for (int64_t row = first; row < last; row += unit, from += unit * step) {
    const int64_t rows = at_most(last - row, unit);
    uint32_t* out = reinterpret_cast<uint32_t*>(to + row / unit * job.step);
    const auto value = [&](int64_t i, int64_t c) -> uint32_t {
      return i < rows && c < job.channels ? reinterpret_cast<const uint16_t*>(from + i * step)[c]
                                          : uint32_t(0);
    };
#ifdef FASTOPS_AVX512
    for (int64_t c = 0; c < channels; c += 32) {
      // Two channels a lane, turned as floats are; then the halves of two rows go together.
      VecF32 low[16], high[16];
      const __mmask32 mask =
          __mmask32(_bzhi_u32(~0u, unsigned(job.channels > c ? at_most(job.channels - c, 32) : 0)));
      for (int64_t i = 0; i < 16; ++i) {
        const auto load = [&](int64_t r) {
          const char* p = from + r * step + 2 * c;
          return r < rows ? _mm512_maskz_loadu_epi16(mask, p) : _mm512_setzero_si512();
        };
        const __m512i even = load(2 * i), odd = load(2 * i + 1);
        low[i] = _mm512_castsi512_ps(
            _mm512_mask_blend_epi16(0xaaaaaaaau, even, _mm512_slli_epi32(odd, 16)));
        high[i] = _mm512_castsi512_ps(
            _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd));
      }
      transpose(low);
      transpose(high);
      for (int64_t i = 0; i < 16; ++i) {
        low[i].store(reinterpret_cast<float*>(out + (c + 2 * i) * 16));
        high[i].store(reinterpret_cast<float*>(out + (c + 2 * i + 1) * 16));
      }
    }
    (void)value;
#else
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < 16; ++i)
        out[c * 16 + i] = value(2 * i, c) | value(2 * i + 1, c) << 16;
#endif
  }
}

}  // namespace

void pack(const PackJob& job, int64_t begin, int64_t end) {
  const int64_t blocks = job.blocks(), bytes = int64_t(size_of(job.dtype));
  for (int64_t unit = begin; unit < end; ++unit) {
    if (job.listed && !job.listed[unit]) continue;
    const int64_t head = job.begin + unit / blocks, first = unit % blocks * job.block;
    const int64_t last = at_most(first + job.block, job.rows), step = job.source.stride[2] * bytes;
    const char* from = row_at(job.source, job.dtype, head / job.heads, head % job.heads, first);
    char* to = job.to + (head - job.begin) * job.head_bytes;
    if (job.form == Form::turned) {
      turn(job, from, step, first, last, to);
      continue;
    }
    for (int64_t row = first; row < last; ++row, from += step) {
      switch (job.form) {
        case Form::widened:
          widen_row(from, job.dtype, job.channels, reinterpret_cast<float*>(to + row * job.step));
          break;
        case Form::padded: {
          uint16_t* out = reinterpret_cast<uint16_t*>(to + row * job.step);
          __builtin_memcpy(out, from, size_t(job.channels) * 2);
          for (int64_t c = job.channels; c < job.step / 2; ++c) out[c] = 0;
          break;
        }
        default: {
          if (row % 2) break;
          const uint16_t* even = reinterpret_cast<const uint16_t*>(from);
          const uint16_t* odd = reinterpret_cast<const uint16_t*>(from + step);
          uint32_t* out = reinterpret_cast<uint32_t*>(to + row / 2 * job.step);
          if (row + 1 < last)
            for (int64_t c = 0; c < job.channels; ++c) out[c] = even[c] | uint32_t(odd[c]) << 16;
          else
            for (int64_t c = 0; c < job.channels; ++c) out[c] = even[c];
        }
      }
    }
  }
}

}  // namespace fastops::attention::cpu::FASTOPS_ISA
