"""A disk that is full, or a folder that cannot be written, at any moment of any command that writes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff import files, model_folder
from maediff.config import load_config
from maediff.data.synthesis import synthesise
from maediff.errors import ConfigError, OutputError
from maediff.evaluation.evaluate import evaluate
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.infer import infer
from maediff.jobs.train import train
from maediff.report.html import write_report
from maediff.training import checkpoint
from maediff.training.checkpoint import TrainState, save_state

ADVICE = {errno.ENOSPC: "free some space", errno.EROFS: "choose a folder that can be written"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cohort, a model and its outputs, made undisturbed; without a network, so that the tests are fast."""
    folder = tmp_path_factory.mktemp("calm")
    table = synthesise(folder / "data", subjects=8, spacing_mm=8)
    train(load_config("quick", ["method=intensity"]), table, folder / "run", device="cpu")
    infer(folder / "run", table, folder / "out", split="test", device="cpu")
    lines = table.read_text().splitlines()
    (folder / "data" / "healthy.csv").write_text("\n".join([lines[0], *(line for line in lines if ",val," in line)]))
    return folder


COMMANDS = {
    "synth": lambda place, out: synthesise(out / "data", subjects=2, spacing_mm=8, healthy_only=True),
    "train": lambda place, out: train(
        load_config("quick", ["method=intensity"]), place / "data" / "cases.csv", out / "run", device="cpu"
    ),
    "calibrate": lambda place, out: calibrate_model(out / "model", place / "data" / "healthy.csv", device="cpu"),
    "infer": lambda place, out: infer(place / "run", place / "data", out / "out", split="test", device="cpu"),
    "evaluate": lambda place, out: evaluate(place / "out", place / "data" / "cases.csv", out / "m", bootstrap=0),
    "report": lambda place, out: write_report(place / "out", out / "report.html", max_pictures=1),
}


def flush_failing_at(number, code, calls):
    """Make a flush that fails at its so-manieth call, and from then on."""
    real = files._flush

    def flush(path):
        calls.append(path)
        if len(calls) >= number:
            raise OSError(code, os.strerror(code))
        real(path)

    return flush


def unwhole(folder):
    """Name files under a final name that cannot be read to their end, and hidden files that are no part of BIDS."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        try:
            if path.name.endswith(".nii.gz"):
                np.asanyarray(nib.load(path).dataobj)
            elif (path.name.startswith(".") and path.name != ".bidsignore") or path.stat().st_size == 0:
                found.append(path)
        except Exception:
            found.append(path)
    return found


@pytest.mark.parametrize("code", list(ADVICE), ids=["full", "read-only"])
@pytest.mark.parametrize("moment", ["first", "middle", "last"])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_write_that_fails_is_told_and_leaves_nothing_half_written(
    place, tmp_path, monkeypatch, command, moment, code
):
    still = SimpleNamespace(**(vars(time) | {"monotonic": lambda: 0.0}))  # as many tables are written in every run
    monkeypatch.setattr("maediff.inference.cohort.time", still)
    (tmp_path / "calm").mkdir()
    for name in ("calm", "full"):
        model_folder.save_model(tmp_path / name / "model", *stored_model(place / "run" / "model"))
    calls: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", flush_failing_at(10**6, code, calls))
        COMMANDS[command](place, tmp_path / "calm")
    number = {"first": 1, "middle": (len(calls) + 1) // 2, "last": len(calls)}[moment]
    before = model_folder.verify_model_folder(tmp_path / "full" / "model")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", flush_failing_at(number, code, []))
        with pytest.raises(OutputError, match=rf"cannot write .*{os.strerror(code)}; {ADVICE[code]}"):
            COMMANDS[command](place, tmp_path / "full")
    assert unwhole(tmp_path / "full") == []
    assert model_folder.verify_model_folder(tmp_path / "full" / "model") == before
    COMMANDS[command](place, tmp_path / "full")  # with space again it goes through
    assert unwhole(tmp_path / "full") == []


def stored_model(folder):
    stored = model_folder.load_model_folder(folder)
    return stored.weights, stored.config, stored.calibration, stored.card


def test_a_checkpoint_on_a_full_disk_names_the_disk_and_keeps_the_earlier_one(tmp_path, monkeypatch):
    state = TrainState(1, {"a": torch.zeros(10**5)}, {}, {}, "0" * 64)
    save_state(tmp_path / "last.pt", state)
    before = (tmp_path / "last.pt").read_bytes()
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("only Linux has a device that is always full")
    monkeypatch.setattr(checkpoint, "open", lambda *_: full.open("wb"), raising=False)
    with pytest.raises(OutputError, match=r"last.pt: No space left on device; free some space"):
        save_state(tmp_path / "last.pt", state)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


# Folders that are in use


def test_a_new_cohort_leaves_no_subject_of_an_earlier_one(tmp_path):
    synthesise(tmp_path / "used", subjects=9, spacing_mm=8, modality="flair", seed=3)
    synthesise(tmp_path / "used", subjects=2, spacing_mm=8, healthy_only=True)
    synthesise(tmp_path / "new", subjects=2, spacing_mm=8, healthy_only=True)
    used, new = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")
                  if path.is_file()} for name in ("used", "new"))  # fmt: skip
    assert used == new


def test_subjects_that_are_not_synthetic_are_never_removed(tmp_path):
    scan = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"no synthetic cohort \(sub-01\); choose another folder"):
        synthesise(tmp_path, subjects=2, spacing_mm=8, healthy_only=True)
    with pytest.raises(ConfigError):
        synthesise(tmp_path, subjects=1, spacing_mm=8)
    assert scan.read_bytes() == b"precious"
    assert len(list(tmp_path.rglob("*.*"))) == 1


# Determinism over shards


def test_shards_make_the_same_files_as_one_run(place, tmp_path):
    table = place / "data" / "cases.csv"
    for part in ((1, 2), (2, 2)):
        infer(place / "run", table, tmp_path / "out", split="test", device="cpu", shard=part)
    maps = sorted((place / "out").glob("*.nii.gz"))
    assert len(maps) >= 9
    for path in maps:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
