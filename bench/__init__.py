"""Measures the kernels against what people use today: `python -m bench`."""
