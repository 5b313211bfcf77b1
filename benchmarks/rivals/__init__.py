"""Other implementations of the same mathematics: the eager original and its exact rewrites.

:mod:`benchmarks.rivals.contender` says what an implementation in a benchmark is.

"original" is ``benchmarks.original``; "rewrite" replaces its slow parts by PyTorch's fastest kernels without
changing the result: attention with the position bias as SDPA on augmented heads, the sampling in time as a
small matrix product, the depthwise convolution in channels_last_3d memory.
"""
