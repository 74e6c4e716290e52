// Included at the head of the kernel files that mutants.py writes.
#pragma once

// Is this one the synchronisation that is left out?
bool simt_left_out(int mutant);
