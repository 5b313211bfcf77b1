"""Host side of the adaptive pool that frame tokens and scores share."""

from __future__ import annotations


def widest_window(size: int, out: int) -> int:
    """The most cells of ``size`` that one of ``out`` adaptive averages covers."""
    return max(-(-(cell + 1) * size // out) - cell * size // out for cell in range(out))


def window_constants(height: int, width: int, pool: int) -> dict[str, int]:
    """Compile-time constants of kernels that pool a (height, width) grid to (pool, pool).

    Constants, since each token divides by them several times.
    """
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "POOL": pool,
        "WINDOW_H": widest_window(height, pool),
        "WINDOW_W": widest_window(width, pool),
    }


def reach_constants(height: int, width: int, pool: int) -> dict[str, int]:
    """The same for the transpose: how many averages per axis a cell can be part of."""
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "POOL": pool,
        "REACH_H": widest_window(pool, height),
        "REACH_W": widest_window(pool, width),
    }
