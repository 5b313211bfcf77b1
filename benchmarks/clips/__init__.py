"""The way of a clip from files to the network, stage by stage, beside the published pipeline's operations:
``python -m benchmarks.clips``.
"""
