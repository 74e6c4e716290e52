// The SIMD toolbox's own tests, compiled once per instruction set (toolbox.cpp).
#pragma once

namespace fastops::test {
namespace portable {
void toolbox();
}
namespace avx2 {
void toolbox();
}
namespace avx512 {
void toolbox();
}
}  // namespace fastops::test
