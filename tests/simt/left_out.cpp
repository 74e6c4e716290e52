// Linked with the kernel files that mutants.py writes.
#include "left_out.h"

static int left_out = -1;  // none

bool simt_left_out(int mutant) { return mutant == left_out; }

extern "C" __attribute__((visibility("default"))) void simt_leave_out(int mutant) {
  left_out = mutant;
}
