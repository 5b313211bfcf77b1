"""A training that takes seconds: a tiny network on small drawn clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from rank_program import TINY


def _tiny_config(**optim: Any) -> TrainingConfig:
    data = DataConfig(
        train_size=21, test_size=14, validation=0.34, batch_size=7, eval_batch_size=7, workers=0
    )
    settings: dict[str, Any] = {"epochs": 3, "learning_rate": 3e-3, "warmup": "none"} | optim
    return TrainingConfig(data=data, optim=OptimConfig(**settings), model=TINY, device="cpu", seed=3)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., TrainingConfig]:
    """Makes a tiny training; keyword arguments are fields of `OptimConfig`."""
    return _tiny_config


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over threads differ in their last bit from machine to machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
