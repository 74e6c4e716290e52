// Fibers: one small stack per CUDA thread and a hand-written switch between them.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

#if !defined(__x86_64__) || !defined(__linux__)
#error "csrc/simt needs Linux on x86-64: the switch is written for its calling convention"
#endif

// Saves the callee-saved registers on the running stack, its pointer in *save, and continues on
// `resume`. About 20 instructions; signal masks and floating-point control words are not switched.
extern "C" void simt_switch(void** save, void* resume) noexcept;

// The same for AddressSanitizer's builds, which must be told of the stack that is entered; a plain
// switch elsewhere. `stack`: its lowest byte; null: the host's own.
void switch_stack(void** save, void* resume, char* stack);
void fiber_entered();  // the first thing on a new stack

// Stacks in one mapping each, a guard page below; made when first needed and kept.
class StackPool {
 public:
  static constexpr size_t kGuardBytes = 4096;
  static constexpr size_t kStackBytes = 128 * 1024;  // usable: what instrumented -O1 frames need

  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();

  char* stack(size_t index);  // lowest usable byte
  // The stack pointer from which simt_switch enters `entry` on that stack. `entry` never returns.
  static void* prepare(char* stack, void (*entry)());

 private:
  std::vector<char*> stacks_;
};

}  // namespace simt
