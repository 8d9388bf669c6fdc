"""AUPRC against training time: a run is trained once, its length follows from its speed, a variant is its settings."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from maediff.config import load_config
from maediff.data.synthesis import synthesise
from maediff.errors import InputError
from maediff.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("benchmarks_importable")
FEW = ("train.max_steps=2", "train.warmup_steps=1", "train.workers=0")


def learning():
    return import_module("benchmarks.quality.learning")


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("now:", ()),
        ("a:train.lr=1e-3", ("train.lr=1e-3",)),
        ("b:x=[1, 2, 3],y=true,z=[[1,2],[3]]", ("x=[1, 2, 3]", "y=true", "z=[[1,2],[3]]")),
    ],
)
def test_a_variant_is_a_name_and_overrides(text, overrides):
    assert learning().Variant.read(text) == learning().Variant(text.partition(":")[0], overrides)


@pytest.mark.parametrize("text", ["train.lr=1e-3", ":train.lr=1e-3", ""])
def test_a_variant_without_a_name_is_refused(text):
    with pytest.raises(InputError, match="must be NAME:OVERRIDE"):
        learning().Variant.read(text)


def test_a_run_scores_what_evaluate_scores_and_is_not_trained_again(tmp_path, monkeypatch):
    cohort = synthesise(tmp_path / "cohort", subjects=8, seed=3, spacing_mm=8.0)
    config = load_config("quick", FEW)
    found = learning().run(config, cohort, tmp_path / "run")
    assert found["seconds"] > 0
    expected = evaluate(tmp_path / "run" / "out", cohort, tmp_path / "metrics")
    assert found["auprc"]["all"]["mean"] == pytest.approx(expected["voxel.auprc"]["mean"])
    kinds = set(expected["by_lesion"])
    assert set(found["auprc"]) == {"all", *kinds}
    monkeypatch.setattr(learning().maediff, "train", None)
    assert learning().run(config, cohort, tmp_path / "run") == found


def test_minutes_become_steps_at_the_speed_of_the_first_steps(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def train(config, cohort, run_dir, device):
        clock.now += 10.0 + 0.5 * config.train.max_steps  # ten seconds of reading, and two steps a second

    monkeypatch.setattr(learning().maediff, "train", train)
    monkeypatch.setattr(learning().time, "perf_counter", lambda: clock.now)
    assert learning().lengths(load_config("quick"), [1.0, 2.0, 0.01], tmp_path) == [100, 220, 1]
