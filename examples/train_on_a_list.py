"""Training on a list file from Python, with a network that a CPU can train.

python examples/train_on_a_list.py LIST CLASS,CLASS,... FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.run import fit


def main(train_list: str, classes: str, out: str, epochs: int = 20) -> Path:
    """Trains and returns the file of the weights."""
    config = TrainingConfig(
        data=DataConfig(
            name="list",
            train_list=train_list,
            classes=classes.split(","),
            batch_size=4,
            workers=0,
            validation=0.25,
        ),
        # The published warm-up is made for a hundred epochs and its own learning rate.
        optim=OptimConfig(epochs=epochs, learning_rate=1e-3, warmup="none"),
        model={
            "backbone": "mvit_nano",
            "image_size": 32,
            "clip_frames": 8,
            "initialisation": "unit_gain",
        },
        device="cpu",
    )
    result = fit(config, out)
    print(f"{result.checkpoint}: epoch {result.epoch}, held out {result.validation}")
    return result.checkpoint


if __name__ == "__main__":
    main(*sys.argv[1:4])
