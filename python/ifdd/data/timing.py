"""Seconds of frames from their time stamps, regular or not."""

from __future__ import annotations

RESTART_SECONDS = 1.0
"""Time stamps that fall back by more than this have started anew (a second recording behind the first)."""


class Clock:
    """Turns time stamps into seconds after the first frame that never decrease.

    A missing stamp stands one frame after the one before. A stamp that falls back a little is held at the one
    before; one that falls back by more than a second starts anew one frame later, and those that follow count
    from there. A jump forward is a pause of the recording: the frame before it was shown all the time.
    """

    def __init__(self, fps: float) -> None:
        self._step = 1.0 / fps
        self._origin: float | None = None
        self._last: float | None = None
        self._missing = 0
        self._back = 0
        self._restarts = 0

    def start(self, stamp: float | None) -> float:
        """The time of the next frame, of which the file says `stamp` (seconds)."""
        following = 0.0 if self._last is None else self._last + self._step
        if stamp is None:
            self._missing += 1
            now = following
        elif self._origin is None:
            self._origin = stamp - following
            now = following
        else:
            now = stamp - self._origin
            if self._last is not None and now < self._last:
                if self._last - now > RESTART_SECONDS:
                    self._restarts += 1
                    self._origin = stamp - following
                    now = following
                else:
                    self._back += 1
                    now = self._last
        self._last = now
        return now

    def stop(self, start: float, length: float | None) -> float:
        """The end of the last frame; without a length it is shown as long as the average."""
        return start + (length if length and length > 0 else self._step)

    def remarks(self) -> list[str]:
        """Remarks, one per line."""
        found = []
        if self._missing:
            found.append(f"{self._missing} frames without a time stamp were placed by the rate")
        if self._back:
            found.append(f"{self._back} time stamps are out of order")
        if self._restarts:
            found.append(f"time stamps start anew {self._restarts} times; the seconds go on")
        return found
