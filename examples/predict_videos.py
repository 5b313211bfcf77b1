"""Probabilities of videos from Python.

python examples/predict_videos.py CHECKPOINT VIDEO...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ifdd.outcomes import VideoFailure
from ifdd.prediction import Predictor


def main(checkpoint: str, videos: Sequence[str]) -> dict[str, str]:
    """The expression in each video that could be read."""
    found = {}
    # A video that cannot be read comes as a failure and does not end the others.
    for result in Predictor(checkpoint).predict_many(videos, workers=1):
        if isinstance(result, VideoFailure):
            print(f"{result.path}: {result.error}")
        else:
            print(f"{result.path}: {result.label} {max(result.probabilities):.0%}")
            found[result.path] = result.label
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
