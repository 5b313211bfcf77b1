"""The second stage of sums over programs."""

from __future__ import annotations

import pytest
import torch

from ifdd_kernels.registry import Maker
from ops.triton_cases import DEVICE, device_tiles


@pytest.mark.parametrize("choice", range(3))
@pytest.mark.parametrize("rows", [0, 1, 130])
def test_columns_go_to_their_outputs(choice: int, rows: int) -> None:
    """More rows and columns than a tile has; outputs of several widths and dtypes, none beyond its end."""
    from ifdd_kernels.triton import _sums

    partials = Maker(torch.float32, DEVICE).normal(rows, 170)
    widths, dtypes = (3, 140, 20, 7), (torch.float32, torch.bfloat16, torch.float16, torch.float32)
    with device_tiles(choice, _sums):
        for count in (1, 4):
            taken = partials[:, : sum(widths[:count])].contiguous()
            # One more element behind each output would be overwritten by a store past its end.
            memory = [
                torch.full((width + 1,), 7.0, dtype=dtype, device=DEVICE)
                for width, dtype in zip(widths[:count], dtypes[:count], strict=True)
            ]
            _sums.sum_partials(taken, [values[:-1] for values in memory])
            exact = taken.double().sum(0).split(widths[:count])
            for values, wanted in zip(memory, exact, strict=True):
                eps = torch.finfo(values.dtype).eps
                # A float32 sum of 130 numbers of size 1 errs by a few ulps of its partial sums.
                torch.testing.assert_close(values[:-1].double(), wanted, rtol=eps, atol=2e-5)
                assert values[-1] == 7


def test_more_outputs_than_it_has_are_refused() -> None:
    from ifdd_kernels.triton._sums import sum_partials

    with pytest.raises(ValueError, match="at most 4 outputs, got 5"):
        sum_partials(torch.ones(2, 5), [torch.ones(1) for _ in range(5)])
