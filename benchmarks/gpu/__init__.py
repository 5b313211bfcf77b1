"""The machine with a GPU: the check that runs there, and all that can be found out without one.

``make gpu-check`` runs :mod:`benchmarks.gpu.check`. Resources, specialisations, headers and the rehearsal
need no device. Without torch: :mod:`check`, :mod:`host`, :mod:`steps`, :mod:`visit`, :mod:`stages`,
:mod:`sources`, :mod:`rehearsal` and :mod:`torch_headers`.
"""
