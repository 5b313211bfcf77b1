"""A training of several ranks ends as a whole: Lightning's side of `ifdd.training.peers`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ifdd.text import one_line
from ifdd.training.module import TrainingError
from ifdd.training.peers import SAME_ERROR, Address, Peers, say_error


class ReportedError(TrainingError):
    """The training ended with an error that the first rank has shown: nobody needs to show it again."""


class PeerWatch(Callback):
    """Connects the ranks when a training or a test begins; nothing with one process."""

    def __init__(self, say: Callable[[str], object] = say_error) -> None:
        self.say = say
        self.peers: Peers | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Connects, as soon as the ranks can talk to each other."""
        if trainer.world_size == 1:
            return
        self.peers = Peers(trainer.global_rank, trainer.world_size, self.say)
        environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            trainer.strategy.broadcast(self.peers.listen(environment.main_address))
        else:
            address, key = trainer.strategy.broadcast(cast("tuple[Address, bytes]", None))
            self.peers.connect(address, key)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `_end_on_sigterm`; Lightning sets its handlers after `on_fit_start`."""
        self._end_on_sigterm()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `_end_on_sigterm`."""
        self._end_on_sigterm()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The others end after a signal, too, not a loss to report: while Lightning tidies up here."""
        if self.peers is not None and isinstance(exception, (KeyboardInterrupt, SystemExit)):
            self.peers.leave()

    def _end_on_sigterm(self) -> None:
        """Ends this rank at SIGTERM, and by that the others.

        Lightning's handler broadcasts first, which waits for ever where only one rank got the signal.
        """
        if self.peers is not None:
            signal.signal(signal.SIGTERM, _leave_by_signal)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around a training or a test: no rank outlives another one that ended early.

        Raises:
            ReportedError: in place of an error that the first rank has shown, on every rank.
        """
        try:
            yield
        except Exception as error:
            peers = self.peers
            if peers is None:
                raise
            # The error may be no more than the end of the connection to a lost rank.
            if not peers.is_lost(SAME_ERROR / 2):
                peers.fail(f"rank {peers.rank}: {one_line(error)}")
                if peers.rank == 0:
                    raise
            peers.vanish()
            raise ReportedError(peers.lost or one_line(error)) from error
        except BaseException:
            if self.peers is not None:
                self.peers.vanish()
            raise
        if self.peers is not None:
            self.peers.done()


def _leave_by_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
