"""The entry points of public packages, on this package's kernels: change one import."""
