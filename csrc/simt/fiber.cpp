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

#ifdef __SANITIZE_ADDRESS__
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

#ifdef __SANITIZE_ADDRESS__

namespace {

struct Extent {
  void* bottom;
  size_t bytes;
};

// Of the stack the host's thread came with; asked once, before the first switch away from it.
Extent host_stack() {
  static const Extent extent = [] {
    Extent e{};
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &e.bottom, &e.bytes);
    pthread_attr_destroy(&attributes);
    return e;
  }();
  return extent;
}

}  // namespace

void switch_stack(void** save, void* resume, char* stack) {
  const Extent host = host_stack();
  __sanitizer_start_switch_fiber(nullptr, stack ? stack : host.bottom,
                                 stack ? StackPool::kStackBytes : host.bytes);
  simt_switch(save, resume);
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

void fiber_entered() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }

#else

void switch_stack(void** save, void* resume, char*) { simt_switch(save, resume); }
void fiber_entered() {}

#endif

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
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStackBytes);  // an abandoned fiber's frames
#endif
  // Seven slots are popped by the switch: six registers and the return address. After it the
  // stack pointer must be 8 past a multiple of 16, as at the entry of any called function.
  auto* top = reinterpret_cast<void**>(stack + kStackBytes - 8);
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

}  // namespace simt
