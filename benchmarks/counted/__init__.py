"""Counts, without a GPU, what a training step or an inference launches, moves, computes and keeps on one.

``python -m benchmarks.counted``; docs/counted.md says what a count can tell.
"""
