// Placeholder until the vector kernels land: compiled per ISA, no symbols.
