"""Trainings of several processes: what one process would do, and an end for all where one dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import ifdd.training.peers
import rank_program
from ifdd.checkpoint import load_checkpoint
from ifdd.training.config import SettingError, TrainingConfig
from ifdd.training.launch import Launch, check_batch, current_launch
from ifdd.training.order import EpochOrder, Share
from ifdd.training.peers import Peers
from ifdd.training.run import evaluate, fit
from ifdd.training.storage import load_training_checkpoint

PROGRAM = Path(rank_program.__file__)


def start(ranks: int, folder: Path, what: str) -> list[subprocess.Popen[str]]:
    """Starts processes with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port, "GROUP_RANK": 0}
    started = []
    for rank in range(ranks):
        own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        variables = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
        command = [sys.executable, str(PROGRAM), str(folder), what]
        started.append(
            subprocess.Popen(
                command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Waits until all have ended well; what each of them printed."""
    printed = []
    for process in processes:
        output, errors = process.communicate(timeout=1100)
        assert process.returncode == 0, errors
        printed.append(output)
    return printed


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of all weights, relative to that of the weights.

    Tensor by tensor there is nothing to compare: softmax does not see a bias of the keys, so its gradient is
    rounding alone, and AdamW makes steps of full length of it.
    """
    assert one.keys() == other.keys()
    a, b = (
        torch.cat([value.double().flatten() for value in weights.values() if value.is_floating_point()])
        for weights in (one, other)
    )
    return float((a - b).norm() / b.norm())


@pytest.mark.timeout(1200)
def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    finish(start(2, tmp_path, "train"))
    for name, precision, optim in (
        ("single", 1e-5, {}),
        ("double", 1e-10, {"select": "last", "ema_decay": None}),
    ):
        first, second = (torch.load(tmp_path / f"{name}.{rank}.pt") for rank in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), "ranks have other weights"
        config = replace(rank_program.config(), optim=replace(rank_program.config().optim, **optim))
        alone = tmp_path / f"alone_{name}"
        weights = rank_program.Weights(tmp_path / name, double=name == "double")
        weights.file = alone
        fit(config, alone, callbacks=(weights,))
        assert distance(first, torch.load(alone.with_suffix(".0.pt"))) < precision
        kept, expected = (load_training_checkpoint(place / "last.ckpt") for place in (tmp_path / name, alone))
        assert distance(kept["state_dict"], expected["state_dict"]) < precision
        assert kept["global_step"] == expected["global_step"] == 20
        # One rank writes: no second version of the logs, no file of another process.
        versions = len(list((tmp_path / name / "logs").iterdir()))
        assert versions == (2 if name == "single" else 1), "the resumed run logs a second version"
        assert len((tmp_path / name / "metrics.csv").read_text().splitlines()) == 5
    check_scores(tmp_path, 2)


def check_scores(folder: Path, ranks: int) -> None:
    """All ranks have the scores of one process: of 13 clips, which no number of ranks divides."""
    expected = evaluate(load_checkpoint(folder / "single" / "model.safetensors"), rank_program.config())
    assert int(expected.confusion.sum()) == 13
    found = [torch.load(folder / f"scores.{rank}.pt") for rank in range(ranks)]
    assert found == [expected.to_dict()] * ranks


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_three_ranks_count_as_one_process_does(tmp_path: Path) -> None:
    fit(rank_program.config(), tmp_path / "single")
    finish(start(3, tmp_path, "test"))
    check_scores(tmp_path, 3)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_machines_are_one_training(tmp_path: Path) -> None:
    """Two agents of torchrun on the loopback, each with a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = rank_program.config()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_options()))
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    program = ["-m", "ifdd", "fit", "--config", str(tmp_path / "config.yaml"), "--progress", "false"]
    program += ["--out", str(tmp_path / "run")]
    nodes = [
        subprocess.Popen(
            [*command, "--node_rank", str(node), *program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    first, second = finish(nodes)
    assert "2 clips of each batch on each" in first
    assert second == ""
    assert [file.name for file in (tmp_path / "run" / "logs").iterdir()] == ["version_0"]
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 1
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + config.optim.epochs
    fit(config, tmp_path / "alone")
    run, alone = (load_training_checkpoint(tmp_path / name / "last.ckpt") for name in ("run", "alone"))
    assert run["global_step"] == alone["global_step"] == 20
    assert distance(run["state_dict"], alone["state_dict"]) < 1e-5


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_killed_rank_ends_the_other_and_the_training_goes_on(tmp_path: Path) -> None:
    first, second = start(2, tmp_path, "kill")
    second.communicate(timeout=1100)
    died = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL)
    lines = [line for line in errors.splitlines() if line.startswith("ifdd: error")]
    assert lines == ["ifdd: error: rank 1 of 2 ended unexpectedly (killed, or out of memory); all ranks stop"]
    assert "Traceback" not in errors
    # On as many ranks bit for bit, on one up to rounding.
    shutil.copytree(tmp_path / "killed", tmp_path / "again")
    finish(start(2, tmp_path, "again"))
    again, unbroken = (
        load_training_checkpoint(tmp_path / name / "last.ckpt")["state_dict"]
        for name in ("again", "unbroken")
    )
    assert again.keys() == unbroken.keys()
    assert all(torch.equal(again[name], unbroken[name]) for name in again)
    config = rank_program.config()
    fit(config, tmp_path / "killed", resume=True)
    fit(config, tmp_path / "whole")
    killed, whole = (load_training_checkpoint(tmp_path / name / "last.ckpt") for name in ("killed", "whole"))
    assert distance(killed["state_dict"], whole["state_dict"]) < 1e-5


PEER = """
import runpy, sys, time
how, port, key, file = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4]
# The file alone, without the package: that would load PyTorch.
peers = runpy.run_path(file)["Peers"](1, 2, grace=1.0)
peers.connect(("127.0.0.1", port), key)
if how == "error":
    peers.fail("rank 1: no such video")
elif how == "done":
    peers.done()
else:
    time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("error", "rank 1: no such video; all ranks stop"),
        ("dies", "rank 1 of 2 ended unexpectedly"),
        ("done", ""),
    ],
)
def test_the_first_rank_says_once_why_another_ended(how: str, text: str) -> None:
    said: list[str] = []
    peers = Peers(0, 2, said.append, grace=120.0)
    (_, port), key = peers.listen("127.0.0.1")
    subprocess.run(
        [sys.executable, "-c", PEER, how, str(port), key.hex(), ifdd.training.peers.__file__], check=True
    )
    assert peers.is_lost(0.0 if how == "done" else 20.0) == bool(text)
    peers.vanish()
    assert len(said) == bool(text)
    assert all(line.startswith(text) for line in said)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_and_the_test_clips_of_one_process(ranks: int) -> None:
    whole = EpochOrder(20, 6, seed=5)
    parts = [EpochOrder(20, 6, 5, rank, ranks) for rank in range(ranks)]
    orders = []
    for epoch in (0, 1):
        for order in (whole, *parts):
            order.epoch = epoch
        assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == list(whole)
        assert {len(batch) for part in parts for batch in part} == {6 // ranks}
        orders.append([place.clip for batch in whole for place in batch])
    assert orders[0] != orders[1]
    assert len(orders[0]) == len(set(orders[0])) == 18
    for size in (1, 2, 7):
        shares = [list(Share(size, rank, ranks)) for rank in range(ranks)]
        assert sorted(chain(*shares)) == list(range(size))


def test_launches_are_what_the_launcher_says() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}
    torchrun["LOCAL_RANK"] = "1"
    slurm = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    step = {**slurm, "SLURM_STEP_ID": "0"}
    config = TrainingConfig()
    assert current_launch(config, torchrun) == Launch(2, 3, 3, "torchrun")
    assert current_launch(config, step) == Launch(2, 2, 0, "srun")
    by_hand = {**slurm, "SLURM_JOB_NAME": "bash"}
    assert current_launch(config, by_hand) == Launch()
    assert current_launch(config, {**by_hand, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == Launch()
    inside = {**by_hand, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    assert current_launch(config, inside) == Launch(2, 2, 0, "srun")
    assert current_launch(config, {}) == Launch()
    two = replace(config, devices=2, num_nodes=2)
    child = {"NODE_RANK": "1", "LOCAL_RANK": "1"}
    assert current_launch(two, child) == Launch(2, 2, 3)
    with pytest.raises(SettingError, match=r"devices must be the 2 that torchrun started, .* got 4"):
        current_launch(replace(config, devices=4), torchrun)
    with pytest.raises(SettingError, match="its 4 tasks start with `srun ifdd"):
        current_launch(config, slurm)


def test_batches_must_divide_evenly() -> None:
    config = TrainingConfig()
    launch = Launch(devices=3)
    with pytest.raises(SettingError, match=r"data.batch_size must be divisible among the 3 processes .* 32"):
        check_batch(config, launch, 100)
    thirty = replace(config, data=replace(config.data, batch_size=30))
    check_batch(thirty, launch, 30)
    with pytest.raises(SettingError, match="at most the 29 training clips"):
        check_batch(thirty, launch, 29)
    check_batch(config, Launch(), 5)
