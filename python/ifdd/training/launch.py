"""How many processes train together, and which of them this one is.

Nothing heavy is loaded here: the command line asks before it decides who prints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ifdd.training.config import SettingError, TrainingConfig

Starter = Literal["torchrun", "srun", "ifdd"]

INTERACTIVE_JOBS = ("bash", "interactive")
"""Names of SLURM jobs in which people start programs by hand, as Lightning reads them."""


@dataclass(frozen=True)
class Launch:
    """The processes of one training and the place of this one.

    ``devices`` processes on each of ``num_nodes`` machines; ``rank`` of this one among all; ``starter``: who
    starts them, ``"ifdd"`` where Lightning does.
    """

    devices: int = 1
    num_nodes: int = 1
    rank: int = 0
    starter: Starter = "ifdd"

    @property
    def world_size(self) -> int:
        """Processes of all machines."""
        return self.devices * self.num_nodes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    @property
    def text(self) -> str:
        """The processes as a person counts them: `2 processes (--devices 2 --num_nodes 1)`."""
        return f"{self.world_size} processes (--devices {self.devices} --num_nodes {self.num_nodes})"


ALONE = Launch()
"""One process."""


def current_launch(config: TrainingConfig, variables: Mapping[str, str] | None = None) -> Launch:
    """The launch that the settings and the variables of torchrun or SLURM ask for.

    Settings that are left open (None) are what the launcher started, and 1 without a launcher.

    Args:
        config: its ``devices`` and ``num_nodes`` are read.
        variables: of the environment; default: this process's.

    Raises:
        SettingError: the launcher started other numbers, or SLURM's tasks were not started by srun.
    """
    found = started_by(os.environ if variables is None else variables)
    _agree("devices", config.devices, found.devices, found.starter)
    _agree("num_nodes", config.num_nodes, found.num_nodes, found.starter)
    if found.starter != "ifdd":
        return found
    devices, nodes = config.devices or 1, config.num_nodes or 1
    # Lightning numbers the machines by NODE_RANK, and the processes it starts by LOCAL_RANK.
    values = os.environ if variables is None else variables
    node, local = int(values.get("NODE_RANK", 0)), int(values.get("LOCAL_RANK", 0))
    if devices == nodes == 1:
        return ALONE
    return Launch(devices, nodes, node * devices + local)


def started_by(variables: Mapping[str, str]) -> Launch:
    """The processes that torchrun or srun started, by their variables; one process without them.

    Raises:
        SettingError: SLURM gives several tasks, but this process is not one that srun started.
    """
    if "TORCHELASTIC_RUN_ID" in variables:
        local_size, size = int(variables["LOCAL_WORLD_SIZE"]), int(variables["WORLD_SIZE"])
        return Launch(local_size, size // local_size, int(variables["RANK"]), "torchrun")
    tasks = int(variables.get("SLURM_NTASKS", 1))
    # By hand, and not by srun inside of such a job.
    by_hand = variables.get("SLURM_JOB_NAME") in INTERACTIVE_JOBS
    if tasks > 1 and not (by_hand and int(variables.get("SLURM_STEP_NUM_TASKS", 1)) == 1):
        nodes = int(variables.get("SLURM_NNODES", 1))
        if "SLURM_STEP_ID" not in variables:
            raise SettingError(
                "devices",
                f"cannot be {tasks // nodes} by SLURM: its {tasks} tasks start with `srun ifdd ...`",
            )
        return Launch(tasks // nodes, nodes, int(variables["SLURM_PROCID"]), "srun")
    return ALONE


def _agree(name: str, wanted: int | None, found: int, starter: Starter) -> None:
    if starter != "ifdd" and wanted not in (None, found):
        raise SettingError(name, f"must be the {found} that {starter} started, or omitted; got {wanted}")


def check_batch(config: TrainingConfig, launch: Launch, train_clips: int) -> None:
    """Refuses a batch that does not divide evenly: the mean over ranks would not be the mean over clips.

    Raises:
        SettingError: naming the batch and the number of processes.
    """
    batch = config.data.batch_size
    if batch % launch.world_size:
        raise SettingError("data.batch_size", f"must be divisible among the {launch.text}, got {batch}")
    if launch.world_size > 1 and train_clips < batch:
        raise SettingError(
            "data.batch_size",
            f"must be at most the {train_clips} training clips for {launch.text}, got {batch}",
        )
