"""Draws synthetic.png: one clip of each class of the synthetic set and the intensity of its expression.

Run from the repository root: python docs/figures/synthetic.py
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from ifdd.data.synthetic import SyntheticExpressions

FRAMES, STEP = 32, 4


def main() -> None:
    """Writes the figure beside this file, with a palette of 256 colours to keep it small."""
    data = SyntheticExpressions("test", 14, clip_frames=FRAMES, image_size=72)
    figure = Figure(figsize=(8.2, 6.2), layout="constrained")
    axes = figure.subplots(7, 2, gridspec_kw={"width_ratios": [8, 1.6]})
    for (strip, curve), index in zip(axes, range(7, 14), strict=True):
        clip, label = data[index]
        strip.imshow(torch.cat(list(clip[:, 1::STEP].permute(1, 2, 3, 0)), dim=1).numpy())
        strip.set(xticks=[], yticks=[])
        strip.set_ylabel(data.class_names[label], rotation=0, ha="right", va="center")
        curve.plot(data.truth(index).intensity.numpy(), color="#0072B2")
        curve.set(xlim=(0, FRAMES - 1), ylim=(-0.05, 1.05), yticks=[0, 1])
        curve.tick_params(labelsize=7, labelbottom=index == 13)
    axes[0, 0].set_title(f"every {STEP}th frame of a clip of {FRAMES}", fontsize=9)
    axes[0, 1].set_title("intensity", fontsize=9)
    axes[-1, 1].set_xlabel("frame", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
