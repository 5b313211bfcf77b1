"""What a training step or an inference starts, moves, computes and keeps on a GPU, counted without one.

``python -m benchmarks.counted``; docs/counted.md says what a count can tell.
"""
