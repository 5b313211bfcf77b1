from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from ifdd import explanation, figures
from ifdd.checkpoint import load_checkpoint
from ifdd.data.resize import frames_to_clip
from ifdd.data.video import read_video
from ifdd.modules import ConvEmbedding
from ifdd.prediction import PredictionError, Predictor
from ifdd.streaming import Window
from ifdd.strips import FaceStrip, StripBuilder
from ifdd.text import figure_fonts, figure_label
from ifdd.training.metrics import scores_from_confusion

from .conftest import make_checkpoint, write_video

Run = Callable[..., Any]


def test_the_figure_holds_the_networks_own_quantities(video: Path, checkpoint: Path) -> None:
    shown = Predictor(checkpoint).explain(video, window=1)
    frames = read_video(video, size=32).frames[8:16]
    assert np.array_equal(shown.frames, frames)
    model = load_checkpoint(checkpoint).model
    with torch.no_grad():
        features = model.features(frames_to_clip(frames)[None])
    assert shown.correlation is not None
    np.testing.assert_allclose(shown.correlation, features.correlation[0].numpy(), rtol=1e-5)
    probabilities = features.output.logits[0].double().softmax(0).numpy()
    np.testing.assert_allclose(shown.probabilities, probabilities, atol=1e-6)
    np.testing.assert_allclose(shown.static_maps, features.static[0].norm(dim=-1).numpy(), rtol=1e-5)

    # The sampler takes index i of T = 8 frames at i T/(T-1) - 1/2, clamped; each is one frame of the clip.
    for index, sampled in (
        (features.static_index, shown.static_frames),
        (features.dynamic_index, shown.dynamic_frames),
    ):
        expected = (index[0].double() * 8 / 7 - 0.5).clamp(0, 7).numpy()
        np.testing.assert_allclose(sampled, expected, atol=1e-5)
    np.testing.assert_allclose(shown.token_frames, np.arange(8))


def test_positions_are_those_of_the_clips_frames(tmp_path: Path, video: Path) -> None:
    path = make_checkpoint(tmp_path / "w.safetensors", clip_frames=16, split="even_odd", lifting="none")
    shown = Predictor(path).explain(video)
    assert shown.static_frames.tolist() == [0, 4, 8, 12]
    assert shown.dynamic_frames.tolist() == [2, 6, 10, 14]
    assert shown.token_frames.tolist() == list(range(0, 16, 2))
    assert shown.correlation is None
    with pytest.raises(PredictionError, match="learns no correlation"):
        explanation.draw_explanation(shown, tmp_path / "f.png", panels=["correlation"])


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
    options = ("--checkpoint", checkpoint, "--window", 1, "--dpi", 80)
    result = ifdd("explain", video, *options, "--out", target)
    assert (result.code, result.err) == (0, "")
    image = np.asarray(Image.open(target).convert("RGB"))
    assert image.shape[1] == 576
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 500


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of files."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, dpi: int) -> Path:
        figure.draw_without_rendering()  # a formula that is none would fail here
        figures.append(figure)
        return path

    monkeypatch.setattr(explanation, "_save", keep)
    return figures


def texts(figure: Figure) -> dict[str, Bbox]:
    """The texts of the figure, and their places."""
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return {text.get_text().replace(r"\$", "$"): text.get_window_extent() for text in shown}


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Texts that run into each other, or out of the figure."""
    places = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text()
    ]
    found = [
        (name, other)
        for number, (name, box) in enumerate(places)
        for other, second in places[:number]
        # Boxes of letters hold room for accents, so lines may touch.
        if min(box.x1, second.x1) - max(box.x0, second.x0) > 0.5
        and min(box.y1, second.y1) - max(box.y0, second.y0) > 1.5
    ]
    whole = figure.bbox
    found += [
        (name, "the edge")
        for name, box in places
        if box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1
    ]
    return found


ODD = ("$x$", "[/]", "a^b_c {}", "Sad " * 20, "$", "\u7b11\u3044", "\u062d\u0632\u064a\u0646")


def test_the_figure_says_whose_numbers_it_shows(video: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    place = tmp_path / "a_b $\\frac$ [x].mp4"
    shutil.copy(video, place)
    classes = ("$x$", "[/]", "a^b_c", "Sad", "$")
    shown = Predictor(make_checkpoint(tmp_path / "w.safetensors", classes)).explain(place, 2)
    explanation.draw_explanation(shown, tmp_path / "f.png", note="50$ to 60$")
    said = texts(drawn[0])
    best = classes[int(shown.probabilities.argmax())]
    share = f"{100 * shown.probabilities.max():.1f} % in this window alone"
    assert f"Window 2, 1.20 s to 2.00 s: {best} has probability {share}" in said
    assert {place.name, "50$ to 60$", "Correlation of the frames, unnormalised", *classes} <= set(said)


@pytest.mark.parametrize("seconds", [0.0, 36000.0])
def test_texts_of_a_figure_do_not_run_into_each_other(
    video: Path, tmp_path: Path, drawn: list[Figure], seconds: float
) -> None:
    shown = Predictor(make_checkpoint(tmp_path / "w.safetensors", ODD)).explain(video)
    shown = dataclasses.replace(
        shown,
        name="long $name_" * 30,
        start_seconds=seconds,
        stop_seconds=seconds + 0.8,
        frame_seconds=seconds + shown.frame_seconds,
        # Three samples that fall together, and one at each end.
        static_frames=np.array([0.0, 3.0, 3.01, 3.1]),
        dynamic_frames=np.array([2.0, 3.0, 6.9, 7.0]),
    )
    explanation.draw_explanation(shown, tmp_path / "f.png", note="note " * 60)
    assert overlapping(drawn[0]) == []
    assert {"2,3,4", "3,4"} <= set(texts(drawn[0]))
    (samples,) = [
        axes for axes in drawn[0].axes if "static" in [t.get_text() for t in axes.get_yticklabels()]
    ]
    mark = 0.5 * np.sqrt(samples.collections[1].get_sizes()[0]) * drawn[0].dpi / 72
    left = samples.get_window_extent().x0 - mark  # of the sample at the beginning
    assert all(label.get_window_extent().x1 < left for label in samples.get_yticklabels())


def test_the_time_axis_and_the_samples_are_in_seconds_of_the_video(
    video: Path, checkpoint: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    """Of a variable rate, too: positions lie between the time stamps of their neighbours."""
    shown = Predictor(checkpoint).explain(video, 1)
    np.testing.assert_allclose(shown.frame_seconds, 0.8 + np.arange(8) / 10)
    times = np.array([2.0, 2.1, 2.2, 2.3, 3.3, 3.4, 3.5, 3.6])
    shown = dataclasses.replace(
        shown, frame_seconds=times, start_seconds=2.0, stop_seconds=3.7, static_frames=np.array([3.5])
    )
    explanation.draw_explanation(shown, tmp_path / "f.png", panels=["samples"])
    (axis,) = drawn[0].axes
    assert axis.get_xlim() == (2.0, 3.7)
    offsets = axis.collections[1].get_offsets()
    np.testing.assert_allclose(np.asarray(offsets)[:, 0], [2.8])


def test_heat_maps_have_scales(video: Path, checkpoint: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    shown = Predictor(checkpoint).explain(video)
    explanation.draw_explanation(shown, tmp_path / "f.png", panels=["maps"])
    bars = [axis for axis in drawn[0].axes if hasattr(axis, "_colorbar")]
    limits = [(maps.min(), maps.max()) for maps in (shown.static_maps, shown.dynamic_maps)]
    np.testing.assert_allclose([bar.get_ylim() for bar in bars], limits, rtol=1e-6)


def test_panels_and_dots_per_inch(ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "f.png"
    options = ("--checkpoint", checkpoint, "--out", target, "--dpi", 30)
    assert ifdd("explain", video, *options).code == 0
    width, height = Image.open(target).size
    assert width == 216
    assert ifdd("explain", video, *options, "--panels", "probabilities,frames").code == 0
    assert Image.open(target).size[1] < 0.6 * height
    assert list(tmp_path.iterdir()) == [target]


def test_a_strip_shows_all_windows(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    result = ifdd(
        "explain", video, "--checkpoint", checkpoint, "--out", tmp_path / "s.pdf", "--window", "all"
    )
    assert (result.code, result.err) == (0, "")
    predictor = Predictor(checkpoint)
    prediction = predictor.predict(video)
    (strip,), footage = predictor.strips(video)
    assert (footage.windows, footage.damage) == (3, None)
    np.testing.assert_allclose(strip.mean, prediction.probabilities, atol=1e-6)
    image = next(axis for axis in drawn[0].axes if axis.get_xlabel()).images[0]
    shown = np.asarray(image.get_array())
    assert image.get_extent()[:2] == [0.0, 2.0]
    for window, column in zip(prediction.windows, (100, 1000, 1900), strict=True):
        np.testing.assert_allclose(shown[:, column], window.probabilities, atol=1e-6)
    frames = read_video(video, size=32).frames
    assert [round(seconds, 6) for seconds, _ in strip.pictures] == [0.4, 1.2, 1.6]
    for seconds, picture in strip.pictures:
        assert np.array_equal(picture, frames[round(10 * seconds)])


def test_a_strip_of_many_windows_and_faces(tmp_path: Path, drawn: list[Figure]) -> None:
    """Pictures stay few, a gap is white, and nothing overlaps."""
    starts = np.arange(500.0)
    starts[250:] += 100
    probabilities = np.full((500, len(ODD)), 1 / len(ODD))
    collected = StripBuilder(3)
    frames = np.zeros((8, 4, 4, 3), np.uint8)
    windows = [
        Window(n, start, start + 1, frames, None, start + np.arange(8) / 8) for n, start in enumerate(starts)
    ]
    for window in windows:
        collected.add(window, torch.zeros(len(ODD)))
    strip = collected.result()
    assert len(strip.pictures) <= 24
    np.testing.assert_allclose(strip.probabilities, probabilities)
    explanation.draw_strip(
        "video $" * 40, ODD, [strip, dataclasses.replace(strip, face=4)], tmp_path / "s.png"
    )
    assert overlapping(drawn[0]) == []
    image = next(axis for axis in drawn[0].axes if axis.get_xlabel()).images[0]
    shown = np.asarray(np.ma.filled(image.get_array(), np.nan))
    assert np.isnan(shown[:, 1000]).all()
    assert np.isfinite(shown[:, [0, 800, 1200, 1999]]).all()


def test_a_strip_of_a_crowd_shows_who_is_there_longest(
    tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanation, "_MOST_STRIPS", 3)
    crowd = []
    for face, count in enumerate((2, 1, 3, 1, 2), 1):
        times = np.arange(float(count))
        crowd.append(FaceStrip(face, times, times + 1, np.full((count, 2), 0.5), np.full(2, 0.5), ()))
    explanation.draw_strip("crowd", ("a", "b"), crowd, tmp_path / "s.png")
    said = "\n".join(texts(drawn[0]))
    assert "; 2 more faces not shown" in said
    assert [face for face in range(1, 6) if f"Face {face}:" in said] == [1, 3, 5]
    assert overlapping(drawn[0]) == []


def test_a_strip_of_a_damaged_video_comes_with_a_warning(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    damaged = write_video(tmp_path / "damaged.ts")
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) * 6 // 10])
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "s.png", "--window", "all")
    result = ifdd("explain", damaged, *options)
    assert result.code == 0
    assert result.err.startswith(f"ifdd: warning: {damaged}: damaged or cut off after")


def test_fonts_for_what_the_usual_one_lacks(drawn: list[Figure]) -> None:
    """Another installed font stands in; of what none has, escapes are shown."""
    in_stix = "\u2a3f"
    assert figure_label(in_stix) == r"\u2a3f"
    with matplotlib.rc_context({"font.family": figure_fonts([in_stix, "\U0001abcd"])}):
        assert figure_label(f"{in_stix}\U0001abcd") == f"{in_stix}\\U0001abcd"


def test_a_font_without_bold_letters_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with explanation._fonts([]):
        logging.getLogger("matplotlib.font_manager").warning("Failed to find font weight bold")
    assert caplog.records == []
    logging.getLogger("matplotlib.font_manager").warning("elsewhere it is")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--window", "3"), 1, "window 3 does not exist, the video has windows 0 to 2"),
        (("--out", "figure.gif"), 2, "a figure ends in .png, .pdf, .svg, .jpg"),
        (("--dpi", "0"), 2, "--dpi must be 20 to 2400, got 0"),
        (("--panels", "map"), 2, "--panels are frames, samples, maps, correlation, probabilities, got 'map'"),
        (("--panels", "maps", "--window", "all"), 2, "--panels are those of one window"),
        (("--window", "some"), 2, "--window: expected a whole number or one of all, got 'some'"),
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
