// A tensor map of the emulator, in the 128 bytes of NVIDIA's.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cstring>

namespace simt {

struct TensorMap {
  static constexpr uint64_t kMagic = 0x70616d20746d6973;  // "simt map"
  uint64_t magic = kMagic;
  const void* data = nullptr;
  uint64_t stride[4] = {};  // bytes, of dimensions 1 to 4
  uint32_t last[5] = {};    // size - 1
  uint16_t box[5] = {};
  uint8_t element_bytes = 0, dims = 0;
  uint8_t swizzle_bytes = 16;  // 16: none
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

inline CUtensorMap pack(const TensorMap& map) {
  CUtensorMap packed{};
  std::memcpy(&packed, &map, sizeof(map));
  return packed;
}

}  // namespace simt
