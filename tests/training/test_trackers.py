"""Trackers: what accelerate's trackers are told, with a stand-in as oracle, and what is said of a missing package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from PIL import Image

from maediff.errors import ConfigError, TrainingInterrupted
from maediff.jobs.train import train
from maediff.training import loop, trackers
from maediff.training.loop import fit

CPU = torch.device("cpu")


class Fake(GeneralTracker):
    """Notes what accelerate calls it with."""

    name = "fake"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.values, self.images, self.finished = {}, {}, 0

    def store_init_configuration(self, values):
        raise AssertionError("never called")

    def log(self, values, step):
        self.values[step] = values

    def log_images(self, values, step):
        self.images[step] = values

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    """Let a training report to a stand-in."""
    tracker = Fake()
    real = loop._accelerator

    def accelerator(*arguments, **options):
        made = real(*arguments, **options)
        made.trackers = [tracker]
        return made

    monkeypatch.setattr(loop, "_accelerator", accelerator)
    return tracker


def test_losses_and_pictures_are_reported_at_their_steps(fake, tiny, discs, tmp_path):
    seen = []
    fit(tiny("train.log_every=2"), discs(), discs(8, seed=1), tmp_path, device=CPU, on_progress=seen.append)
    assert sorted(fake.values) == [2, 3, 4, 6]  # every second step, and the validations
    told = {progress.step: progress for progress in seen}
    for step, values in fake.values.items():
        assert values["loss"] == told[step].loss
        assert values.get("val_loss") == told[step].val_loss
        assert values["lr"] > 0
    assert sorted(fake.images) == [3, 6]
    for step, images in fake.images.items():
        with Image.open(tmp_path / "pictures" / f"step-{step:06d}.png") as image:
            shown = images["validation"]
            assert shown.shape == (1, image.height, image.width, 3)
            np.testing.assert_array_equal(shown[0, :, :, 0], np.asarray(image))
    assert fake.finished == 1


def test_the_tracker_is_closed_when_a_training_is_stopped(fake, tiny, discs, tmp_path):
    def stop(progress):
        raise TrainingInterrupted("enough")

    with pytest.raises(TrainingInterrupted):
        fit(tiny(), discs(), discs(8, seed=1), tmp_path, device=CPU, on_progress=stop)
    assert fake.finished == 1


def test_tensorboard_is_written_into_the_run_folder(tiny, discs, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tiny("train.report_to=tensorboard"), discs(), discs(8, seed=1), tmp_path, device=CPU)
    events = EventAccumulator(str(tmp_path / TensorBoardTracker.name)).Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [3, 6]
    assert [event.step for event in events.Images("validation")] == [3, 6]


def test_wandb_works_without_a_network(tiny, discs, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit(tiny("train.report_to=wandb"), discs(), discs(8, seed=1), tmp_path, device=CPU)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_before_scans_are_read(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"train.report_to={name} needs a package .* pip install .*{name}"):
        train(tiny(f"train.report_to={name}"), tmp_path / "nothing", tmp_path / "run", device="cpu")
    trackers.check_tracker("none")
