"""Benchmarks: every op, module and the whole network beside its rivals, checked before it is timed.

``python -m benchmarks`` measures, ``python -m benchmarks.report`` makes tables and plots of the result file,
``python -m benchmarks.report.compare OLD NEW`` says what became slower, ``make gpu-check`` does what a GPU
can tell in minutes. See ``docs/benchmarks.md``.
"""
