"""What runs on a machine with an NVIDIA GPU: proof, measurements, report (docs/benchmarks.md)."""
