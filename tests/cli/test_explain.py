from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ifdd import figures
from ifdd.checkpoint import load_checkpoint
from ifdd.data.resize import frames_to_clip
from ifdd.data.video import read_video
from ifdd.modules import ConvEmbedding
from ifdd.prediction import PredictionError, Predictor
from ifdd.training.metrics import scores_from_confusion

from .conftest import make_checkpoint

Run = Callable[..., Any]


def test_the_figure_holds_the_networks_own_quantities(video: Path, checkpoint: Path) -> None:
    explanation = Predictor(checkpoint).explain(video, window=1)
    frames = read_video(video, size=32).frames[8:16]
    assert np.array_equal(explanation.frames, frames)
    model = load_checkpoint(checkpoint).model
    with torch.no_grad():
        features = model.features(frames_to_clip(frames)[None])
    assert explanation.correlation is not None
    np.testing.assert_allclose(explanation.correlation, features.correlation[0].numpy(), rtol=1e-5)
    probabilities = features.output.logits[0].double().softmax(0).numpy()
    np.testing.assert_allclose(explanation.probabilities, probabilities, atol=1e-6)
    np.testing.assert_allclose(explanation.static_maps, features.static[0].norm(dim=-1).numpy(), rtol=1e-5)

    # The sampler takes index i of T = 8 frames at i T/(T-1) - 1/2, clamped; each is one frame of the clip.
    for index, shown in (
        (features.static_index, explanation.static_frames),
        (features.dynamic_index, explanation.dynamic_frames),
    ):
        expected = (index[0].double() * 8 / 7 - 0.5).clamp(0, 7).numpy()
        np.testing.assert_allclose(shown, expected, atol=1e-5)
    np.testing.assert_allclose(explanation.token_frames, np.arange(8))


def test_positions_are_those_of_the_clips_frames(tmp_path: Path, video: Path) -> None:
    path = make_checkpoint(tmp_path / "w.safetensors", clip_frames=16, split="even_odd", lifting="none")
    explanation = Predictor(path).explain(video)
    assert explanation.static_frames.tolist() == [0, 4, 8, 12]
    assert explanation.dynamic_frames.tolist() == [2, 6, 10, 14]
    assert explanation.token_frames.tolist() == list(range(0, 16, 2))
    assert explanation.correlation is None
    assert figures.explain(explanation, tmp_path / "f.png").stat().st_size > 20_000


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_token_frames_are_the_centres_of_the_embeddings_windows(tmp_path: Path, frames: int) -> None:
    """An embedding that passes the frame it is centred on says where that is, for a ramp over time."""
    predictor = Predictor(make_checkpoint(tmp_path / "w.safetensors", clip_frames=frames))
    embedding = predictor.model.embedding
    assert isinstance(embedding, ConvEmbedding)
    with torch.no_grad():
        embedding.conv.weight.zero_()
        embedding.conv.bias.zero_()  # type: ignore[union-attr]
        embedding.conv.weight[:, 0, 1, 3, 3] = 1.0
    ramp = torch.arange(frames, dtype=torch.float32)[None, None, :, None, None].expand(1, 3, -1, 32, 32)
    with torch.no_grad():
        centres = embedding(ramp)[0, 0, :, 4, 4]
    shown = predictor._window_frames(torch.arange(8, dtype=torch.float64))
    np.testing.assert_allclose(shown, centres.numpy())


def test_explain_writes_a_figure(ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "figure.png"
    result = ifdd("explain", video, "--checkpoint", checkpoint, "--window", 1, "--out", target)
    assert (result.code, result.err) == (0, "")
    image = np.asarray(Image.open(target).convert("RGB"))
    assert min(image.shape[:2]) > 800
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 500


def test_the_figure_says_whose_numbers_it_shows(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the names are, they are drawn as they are."""
    drawn: list[str] = []

    def keep(figure: Figure, path: Path, dpi: int = 0) -> Path:
        figure.canvas.draw()  # a formula that is none would fail here
        drawn.extend(text.get_text().replace(r"\$", "$") for text in figure.findobj(Text))
        (axis,) = (a for a in figure.axes if a.get_xlabel() == "probability")
        assert axis.get_xlim() == (0, 1)
        return path

    monkeypatch.setattr(figures, "_save", keep)
    place = tmp_path / "a_b $\\frac$ [x].mp4"
    shutil.copy(video, place)
    classes = ("$x$", "[/]", "a^b_c", "Sad", "$")
    explanation = Predictor(make_checkpoint(tmp_path / "w.safetensors", classes)).explain(place, 2)
    figures.explain(explanation, tmp_path / "f.png", note="50$ to 60$")
    best = classes[int(explanation.probabilities.argmax())]
    share = f"{100 * explanation.probabilities.max():.1f} % in window 2"
    assert f"{place.name}: {best} ({share})" in drawn
    assert "window 2: 1.20 s to 2.00 s, 8 frames. 50$ to 60$" in drawn
    assert set(classes) <= set(drawn)
    assert "Correlation of the frames (unnormalised)" in drawn


def test_dots_per_inch(ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "f.png"
    assert ifdd("explain", video, "--checkpoint", checkpoint, "--out", target, "--dpi", 40).code == 0
    assert Image.open(target).size == (600, 416)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--window", "3"), 1, "window 3 does not exist, the video has windows 0 to 2"),
        (("--out", "figure.gif"), 2, "a figure ends in .png, .pdf, .svg, .jpg"),
        (("--dpi", "0"), 2, "--dpi must be 20 to 2400, got 0"),
        (("--crop", "0,0,500,500"), 1, "reaches outside"),
    ],
)
def test_what_cannot_be_explained(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    result = ifdd("explain", video, "--checkpoint", checkpoint, "--out", tmp_path / "f.png", *arguments)
    assert result.code == code
    assert text in result.err
    assert len(result.err.splitlines()) == 1


def test_a_negative_window_is_refused(video: Path, checkpoint: Path) -> None:
    with pytest.raises(PredictionError, match="window -1 does not exist"):
        Predictor(checkpoint).explain(video, window=-1)


def test_the_other_figures_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    names = ("Happy", "Sad", "Neutral")
    counts = torch.from_numpy(rng.integers(1, 30, (3, 3)))
    scores = scores_from_confusion(counts, names)
    assert figures.confusion_matrix(scores, tmp_path / "c.png", title="t").stat().st_size > 10_000
    assert figures.recall_bars({"a": scores, "b": scores}, tmp_path / "r.png").stat().st_size > 10_000


def test_curves_of_a_resumed_training_are_joined(tmp_path: Path) -> None:
    for version, rows in ((0, "0,0.9,\n0,,0.1\n1,0.8,\n"), (10, "2,0.5,\n"), (2, "1,0.7,\n")):
        folder = tmp_path / f"version_{version}"
        folder.mkdir()
        (folder / "metrics.csv").write_text("epoch,train/loss,val/uar\n" + rows)
    assert figures.read_history(tmp_path) == {
        "train/loss": [(0, 0.9), (1, 0.7), (2, 0.5)],
        "val/uar": [(0, 0.1)],
    }
    with pytest.raises(ValueError, match="no training curves"):
        figures.read_history(tmp_path / "version_0")
