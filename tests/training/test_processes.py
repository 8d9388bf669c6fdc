"""Training on several real processes: what one process does, with one writer, also where one of them is killed."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.config import config_hash, dump_yaml
from maediff.errors import ConfigError, TrainingInterrupted
from maediff.files import read_json
from maediff.jobs.train import train
from maediff.model_folder import load_model_folder, verify_model_folder
from maediff.training import loop, processes
from maediff.training.checkpoint import load_state

AFFINE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -76], [0, 0, 10, -55], [0, 0, 0, 1]])
STEPS = 16
STOPPED = 7
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def scans(make_scan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        nib.save(make_scan(AFFINE, (17, 20, 12), seed=number), folder / f"s{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def config(tiny):
    """Four slices a step of two processes."""
    return tiny(f"train.max_steps={STEPS}", "train.batch_size=4", "train.val_every=8", "train.checkpoint_every=2")


def process(rank, port, config, scans, out, resume):
    """Train as one of two processes that a launcher started."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["OMP_NUM_THREADS"] = "1"  # as a launcher sets it; else accelerate chooses, and warns
    try:
        model = train(config, scans, out, device="cpu", resume=resume)
    except TrainingInterrupted:
        sys.exit(STOPPED)
    assert verify_model_folder(model)  # also where the other process wrote it
    assert not torch.distributed.is_initialized()


def start_two(config, scans, out, resume=False):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=process, args=(rank, port, config, scans, out, resume)) for rank in (0, 1)]
    for one in both:
        one.start()
    return both


def exit_codes(both):
    for one in both:
        one.join(120)
    return [one.exitcode for one in both]


def train_on_two(config, scans, out, resume=False):
    assert exit_codes(start_two(config, scans, out, resume)) == [0, 0]
    return out


def wait_for_checkpoint(out, alive):
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "last.pt").is_file():
        assert alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def on_two(config, scans, tmp_path_factory):
    """The run folder of an undisturbed training on two processes."""
    return train_on_two(config, scans, tmp_path_factory.mktemp("two"))


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [
            {k: float(v or "nan") for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)
        ]


def assert_same_training(one, other, config, rtol, atol):
    for first, second in zip(rows(one), rows(other), strict=True):
        assert first == pytest.approx(second, rel=rtol, nan_ok=True)
    states = [load_state(folder / "checkpoints" / "last.pt", digest) for folder, digest in config.items()]
    assert states[0].step == states[1].step == STEPS
    for name, value in states[0].model.items():
        torch.testing.assert_close(value, states[1].model[name], rtol=rtol, atol=atol)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(config, tiny, scans, on_two, tmp_path):
    alone = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 8})})
    train(alone, scans, tmp_path, device="cpu")
    digests = {tmp_path: config_hash(alone), on_two: config_hash(config)}
    assert_same_training(
        tmp_path, on_two, digests, rtol=1e-3, atol=1e-4
    )  # AdamW enlarges the rounding of small gradients
    assert rows(tmp_path)[0] == pytest.approx(rows(on_two)[0], rel=1e-5, nan_ok=True)  # loss and gradient of step 1


@pytest.mark.slow
def test_one_process_writes_one_model_folder_and_one_log(on_two):
    assert sorted(path.name for path in on_two.iterdir()) == [
        "cache",
        "checkpoints",
        "config.yaml",
        "log.csv",
        "model",
        "pictures",
        "run.json",
    ]
    assert [path.name for path in sorted((on_two / "pictures").iterdir())] == ["step-000008.png", "step-000016.png"]
    assert [row["step"] for row in rows(on_two)] == list(range(1, STEPS + 1))
    assert load_model_folder(on_two / "model").calibration is not None
    assert read_json(on_two / "run.json")["pace"]["images_per_second"] > 0


@pytest.mark.slow
def test_parameters_that_a_loss_does_not_reach_stop_nothing(tiny, scans, tmp_path):
    config = tiny("train.max_steps=3", "train.batch_size=2", "model.mae_loss_weight=0")
    train_on_two(config, scans, tmp_path)
    assert len(rows(tmp_path)) == 3


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step_and_loses_nothing(config, scans, on_two, tmp_path):
    both = start_two(config, scans, tmp_path)
    wait_for_checkpoint(tmp_path, both[1].is_alive)
    both[1].terminate()
    assert exit_codes(both) == [STOPPED, STOPPED]
    stopped = load_state(tmp_path / "checkpoints" / "last.pt", config_hash(config)).step
    assert 2 <= stopped == len(rows(tmp_path)) < STEPS
    train_on_two(config, scans, tmp_path, resume=True)
    assert_same_training(tmp_path, on_two, dict.fromkeys((tmp_path, on_two), config_hash(config)), rtol=1e-4, atol=1e-5)


def ranks(launcher):
    """Find the processes that a launcher started: process number by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher:
                places = dict(
                    line.split("=", 1) for line in (folder / "environ").read_text().split("\0") if "=" in line
                )
                found[int(places["RANK"])] = int(folder.name)
        except (OSError, KeyError, ValueError):
            continue
    return found


@pytest.mark.slow
def test_after_a_rank_is_killed_torchrun_finishes_with_nothing_lost(config, scans, on_two, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--master-port=0", "--standalone", "-m", "maediff", "train", "-c", str(tmp_path / "config.yaml")]
    command += ["-i", str(scans), "-o", str(out), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_checkpoint(out, lambda: launcher.poll() is None)
        os.kill(ranks(launcher.pid)[1], signal.SIGKILL)
        told = launcher.communicate(timeout=200)[1]
    finally:
        if launcher.poll() is None:
            launcher.terminate()  # it takes its processes along
            launcher.communicate()
    assert launcher.returncode == 0, told
    assert "resumed after step" in told
    digests = dict.fromkeys((out, on_two), config_hash(config))
    assert_same_training(out, on_two, digests, rtol=1e-4, atol=1e-5)
    weights = [load_model_folder(folder / "model").weights for folder in (out, on_two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    assert told.count("next: maediff infer") == 1


@pytest.mark.slow
def test_accelerate_launch_trains_alike_whatever_its_own_settings_say(config, scans, on_two, tmp_path):
    """Precision and accumulation are settings of the training; those of the launcher change nothing, and are told."""
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    command += ["--num_machines=1", "--main_process_port=0", "--mixed_precision=bf16", "--dynamo_backend=no"]
    command += ["-m", "maediff", "train", "-c", str(tmp_path / "config.yaml"), "-i", str(scans), "-o", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    done = subprocess.run([*command, "--device", "cpu"], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "precision bf16 of accelerate launch is not used; set train.precision=bf16" in done.stderr
    digests = dict.fromkeys((out, on_two), config_hash(config))
    assert_same_training(out, on_two, digests, rtol=1e-4, atol=1e-5)


def test_a_single_process_is_the_main_one_and_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # as other tools set it
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert processes.is_main()
    assert not processes.restarted()
    with processes.joined(torch.device("cpu")), processes.main_first():
        processes.wait_for_all()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "found", [{"PMI_SIZE": "4"}, {"OMPI_COMM_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"ACCELERATE_USE_FSDP": "true"}]
)
def test_a_shell_of_a_cluster_is_no_launch(found, monkeypatch, tiny, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    accelerator = loop._accelerator(tiny(), torch.device("cpu"), tmp_path, every_parameter=True)
    assert accelerator.num_processes == 1
    assert {name: os.environ.get(name) for name in found} == found


@pytest.mark.parametrize("size", ["4", "many"])
def test_a_launch_that_is_none_is_told_instead_of_waiting(size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="accelerate launch, or unset WORLD_SIZE"):
        processes.several()
