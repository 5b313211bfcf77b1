"""Benchmarks of ifdd_kernels and the rivals they are measured against."""
