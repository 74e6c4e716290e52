#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

// System V x86-64: rbx, rbp, r12-r15 survive a call; everything else the compiler has saved.
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
.align 16
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {

StackPool::~StackPool() {
  for (char* stack : stacks_) munmap(stack - kGuardBytes, kGuardBytes + kStackBytes);
}

char* StackPool::stack(size_t index) {
  while (stacks_.size() <= index) {
    void* base = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    mprotect(base, kGuardBytes, PROT_NONE);
    stacks_.push_back(static_cast<char*>(base) + kGuardBytes);
  }
  return stacks_[index];
}

void* StackPool::prepare(char* stack, void (*entry)()) {
  // Seven slots are popped by the switch: six registers and the return address. After it the
  // stack pointer must be 8 past a multiple of 16, as at the entry of any called function.
  auto* top = reinterpret_cast<void**>(stack + kStackBytes - 8);
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

}  // namespace simt
