"""The training loop: exact resume, interruption, accumulation, best weights and clear errors."""

from __future__ import annotations

import csv
import os
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from maediff.config import config_hash
from maediff.data.slices import SliceSet
from maediff.errors import ConfigError, MAEDiffError, ModelError, TrainingInterrupted
from maediff.jobs.train import train as train_job
from maediff.training import loop, pace
from maediff.training.checkpoint import TrainState, load_state, save_state
from maediff.training.loop import Losses, fit, learning_rate
from maediff.training.stream import SampleStream

CPU = torch.device("cpu")


@pytest.fixture
def train(discs, tmp_path):
    """Train on discs in a folder of this test."""

    def run(config, folder="run", **options):
        return fit(config, discs(), discs(8, seed=1), tmp_path / folder, device=CPU, **options)

    return run


def rows(folder):
    """Rows of log.csv without the speed."""
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def state(folder, config):
    return load_state(folder / "checkpoints" / "last.pt", config_hash(config))


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def terminate_at(step):
    def on_progress(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


def crash_at(step):
    def on_progress(progress):
        if progress.step == step:
            raise KeyError("power cut")

    return on_progress


# Resume


@pytest.mark.parametrize("overrides", [[], ["train.workers=1", "train.accumulate=2", "train.batch_size=4"]])
def test_an_interrupted_run_continues_exactly(tiny, train, tmp_path, overrides):
    config = tiny(*overrides)
    before = signal.getsignal(signal.SIGTERM)
    straight = train(config, "straight")
    with pytest.raises(TrainingInterrupted, match="SIGTERM after step 3; continue with --resume"):
        train(config, "halves", on_progress=terminate_at(3))
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(rows(tmp_path / "halves")) == 3
    resumed = train(config, "halves", resume=True)
    assert rows(tmp_path / "halves") == rows(tmp_path / "straight")
    assert_same_weights(resumed.weights, straight.weights)
    assert resumed.best_loss == straight.best_loss
    one, other = (state(tmp_path / name, config) for name in ("straight", "halves"))
    assert_same_weights(one.model, other.model)
    assert_same_weights(one.ema, other.ema)
    for name, moments in one.optimizer["state"].items():
        assert_same_weights(moments, other.optimizer["state"][name])


@pytest.fixture
def fp16_on_the_cpu(monkeypatch):
    """Let the CPU train in fp16 with a loss scale that overflows at first, as a GPU would."""
    real = loop._accelerator

    def accelerator(*arguments, **options):
        made = real(*arguments, **options)
        made.state._mixed_precision = "fp16"
        made.native_amp = True
        made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
        return made

    monkeypatch.setattr(loop, "_accelerator", accelerator)
    monkeypatch.setattr(pace, "LEAST_SECONDS", float("inf"))  # CPUs may take minutes to measure their peak in bf16


def test_an_interrupted_run_in_fp16_keeps_its_loss_scale(tiny, train, tmp_path, fp16_on_the_cpu):
    config = tiny("train.max_steps=10", "train.val_every=10", "train.pictures=0")
    straight = train(config, "straight")
    with pytest.raises(TrainingInterrupted):
        train(config, "halves", on_progress=terminate_at(5))
    assert state(tmp_path / "halves", config).scaler["scale"] < 2.0**24  # steps that overflowed were left out
    resumed = train(config, "halves", resume=True)
    assert_same_weights(resumed.weights, straight.weights)
    one, other = (state(tmp_path / name, config) for name in ("straight", "halves"))
    assert one.scaler == other.scaler
    assert all(value.dtype == torch.float32 for value in resumed.weights.values())


def test_fp16_is_refused_on_a_cpu_before_anything_is_read(tiny, train, tmp_path):
    config = tiny("train.precision=fp16")
    with pytest.raises(ConfigError, match=r"train.precision=fp16 needs a CUDA device, .* 'cpu'; use .*bf16"):
        train_job(config, tmp_path / "nothing", tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        train(config)


def test_a_crash_loses_steps_since_the_checkpoint_only(tiny, train, tmp_path):
    straight = train(tiny(), "straight")
    with pytest.raises(KeyError, match="power cut"):
        train(tiny(), "crashed", on_progress=crash_at(5))
    assert state(tmp_path / "crashed", tiny()).step == 4
    resumed = train(tiny(), "crashed", resume=True)
    assert [row["step"] for row in rows(tmp_path / "crashed")] == [str(step) for step in range(1, 7)]
    assert rows(tmp_path / "crashed") == rows(tmp_path / "straight")
    assert_same_weights(resumed.weights, straight.weights)


def test_a_finished_run_resumes_to_its_result(tiny, train, tmp_path):
    config = tiny("train.max_steps=2")
    first = train(config)
    again = train(config, resume=True)
    assert_same_weights(first.weights, again.weights)
    assert (again.steps, again.best_loss) == (first.steps, first.best_loss)
    assert len(rows(tmp_path / "run")) == 2


def test_without_resume_a_run_starts_anew(tiny, train, tmp_path):
    config = tiny("train.max_steps=2")
    first = train(config)
    again = train(config)
    assert_same_weights(first.weights, again.weights)
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named(tiny, train, tmp_path, damage):
    config = tiny("train.max_steps=2")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    save_state(path, TrainState(1, {"w": torch.zeros(99)}, {}, {}, config_hash(config)))
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"abc" * 50, "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"last\.pt cannot be read .*; remove it and start without --resume"):
        train(config, resume=True)


def test_a_checkpoint_holds_no_code(tiny, train, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    path.parent.mkdir(parents=True)
    torch.save({"step": os.getcwd}, path)
    with pytest.raises(ModelError, match="cannot be read"):
        train(tiny("train.max_steps=2"), resume=True)


def test_a_run_of_another_configuration_is_not_resumed(tiny, train, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    save_state(path, TrainState(1, {}, {}, {}, config_hash(tiny("train.max_steps=2"))))
    with pytest.raises(ModelError, match="belongs to another configuration"):
        train(tiny("train.max_steps=2", "train.lr=1e-4"), resume=True)


def test_a_run_on_other_subjects_is_not_resumed(tiny, train, discs, tmp_path):
    config = tiny("train.max_steps=2")
    train(config)
    kept = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(ModelError, match="belongs to a training on other scans"):
        fit(config, discs(16), discs(8, seed=1), tmp_path / "run", device=CPU, resume=True)
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == kept
    old = state(tmp_path / "run", config)
    old.data_hash = ""  # of a version that did not keep it
    save_state(tmp_path / "run" / "checkpoints" / "last.pt", old)
    assert train(config, resume=True).steps == 2


def test_resume_without_a_checkpoint_starts(tiny, train):
    assert train(tiny("train.max_steps=2"), resume=True).steps == 2


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ModelError, match="no checkpoint"):
        load_state(tmp_path / "last.pt", "")


# Steps


def test_accumulated_gradients_equal_a_bigger_batch(tiny, train, tmp_path):
    train(tiny("train.max_steps=2", "train.batch_size=4"), "big")
    train(tiny("train.max_steps=2", "train.batch_size=2", "train.accumulate=2"), "small")
    for big, small in zip(rows(tmp_path / "big"), rows(tmp_path / "small"), strict=True):
        for name in ("loss", "mae_loss", "grad_norm"):
            assert float(small[name]) == pytest.approx(float(big[name]), rel=1e-3)
        assert small["lr"] == big["lr"]


def test_training_learns(tiny, train, tmp_path):
    seen = []
    train(
        tiny("train.max_steps=24", "train.lr=1e-2", "train.val_every=8", "train.batch_size=16"), on_progress=seen.append
    )
    losses = [progress.val_loss for progress in seen if progress.val_loss is not None]
    assert losses[-1] < 0.95 * losses[0]
    assert all(p.step == k + 1 and p.max_steps == 24 and p.eta_seconds >= 0 for k, p in enumerate(seen))


def test_the_end_tells_speed_ceiling_and_waiting(tiny, train, monkeypatch, caplog):
    monkeypatch.setattr(pace, "LEAST_SECONDS", 0)
    with caplog.at_level("INFO", logger="maediff"):
        found = train(tiny("train.max_steps=3")).pace
    assert found.images_per_second > 0
    assert 0 < found.waiting < 1
    assert 0 < found.share_of_ceiling < 1
    assert f"trained 3 steps: {found.images_per_second:.1f} images/s, {found.share_of_ceiling:.0%} of" in caplog.text
    assert train(tiny("train.max_steps=3"), resume=True).pace is None  # nothing was left to do


def test_a_stopwatch_counts_only_the_time_spent_waiting():
    def slow():
        for number in range(3):
            time.sleep(0.02)
            yield number

    watch = pace.Stopwatch()
    seen = []
    for number in watch.watch(slow()):
        seen.append(number)
        time.sleep(0.03)
    assert seen == [0, 1, 2]
    assert watch.waited >= 0.06
    assert watch.seconds - watch.waited >= 0.09


def test_precision_may_differ_between_runs_of_one_process(tiny, train):
    for precision in ("fp32", "bf16", "fp32"):
        result = train(tiny("train.max_steps=2", f"train.precision={precision}"), precision)
        assert all(value.dtype == torch.float32 for value in result.weights.values())


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tiny, train, discs, monkeypatch):
    config = tiny("train.max_steps=8", "train.val_every=1", "train.batch_size=16")
    monkeypatch.setattr(loop, "learning_rate", lambda step, _config: 1e-3 if step < 5 else 10.0)  # learn, then break
    seen = []
    result = train(config, on_progress=seen.append)
    losses = [progress.val_loss for progress in seen]
    assert result.best_loss == min(losses)
    assert losses[-1] > result.best_loss  # so that the best is not the last
    module = Losses(config).eval()
    module.network.load_state_dict(result.weights)
    stream = SampleStream(discs(8, seed=1), config, 64, augmented=False)
    with torch.no_grad():
        again = np.mean([float(module(batch)[0]) for batch in DataLoader(stream, 16)])
    assert again == pytest.approx(result.best_loss, rel=1e-4)


def test_training_starts_from_given_weights(tiny, train, random_network):
    config = tiny("train.max_steps=1", "train.lr=1e-9", "train.weight_decay=0")
    weights = random_network(config).state_dict()
    result = train(config, initial=weights)
    for name, value in result.weights.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="fit another network"):
        train(config, "other", initial=random_network(tiny("model.mae_width=32")).state_dict())


def test_a_validation_that_is_not_a_number_gives_no_model(tiny, discs, tmp_path):
    good = discs()
    bad = SliceSet(np.full_like(good.images, np.nan), good.masks, good.subjects, 0, ())
    with pytest.raises(MAEDiffError, match="validation loss was never finite"):
        fit(tiny("train.max_steps=2"), good, bad, tmp_path, device=CPU)


def test_a_loss_that_is_not_a_number_stops_the_run(tiny, discs, tmp_path):
    good = discs()
    bad = SliceSet(np.full_like(good.images, np.nan), good.masks, good.subjects, 0, ())
    config = tiny("train.augment=false", "lesions.share=0")
    with pytest.raises(MAEDiffError, match=r"the loss is .*nan.* at step 1; lower train.lr"):
        fit(config, bad, good, tmp_path, device=CPU)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["x0_l1", "x0_l2", "simple"])
@pytest.mark.parametrize("objective", ["eps", "x0", "v", "mu"])
def test_every_objective_and_loss_gives_a_gradient(tiny, discs, objective, kind):
    config = tiny(f"diffusion.objective={objective}", f"diffusion.loss={kind}")
    torch.manual_seed(0)
    losses = Losses(config)
    batch = next(iter(DataLoader(SampleStream(discs(), config, 4, augmented=True), 4)))
    loss, mae_loss = losses(batch)
    (loss + mae_loss).backward()
    assert bool(torch.isfinite(loss))
    assert float(losses.network.unet.out[2].conv.weight.grad.abs().max()) > 0
    assert losses.network.abar.dtype == torch.float64


def test_learning_rate_warms_up_and_falls_to_a_hundredth(tiny):
    config = tiny("train.max_steps=100", "train.warmup_steps=10", "train.lr=0.5")
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    assert rates[10] == 0.5
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5 * (0.01 + 0.99 / 2))
    assert rates[100] == pytest.approx(0.005)
    assert learning_rate(500, config) == pytest.approx(0.005)
    assert learning_rate(0, tiny("train.warmup_steps=0", "train.lr=0.5")) == 0.5
