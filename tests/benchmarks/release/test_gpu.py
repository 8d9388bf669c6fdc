"""The GPU script: it goes on where it stopped, repeats what failed, and gives each training its checkpoint."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from maediff.config import load_config
from maediff.errors import InputError, MAEDiffError
from maediff.files import read_json
from maediff.model_folder import load_model_folder

pytestmark = pytest.mark.usefixtures("benchmarks_importable")
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(5)))
time.sleep(60)
"""


def gpu():
    return import_module("benchmarks.release.gpu")


def options(tmp_path, **others):
    usual = {"out": tmp_path / "out", "work": tmp_path / "work", "minutes": 5.0, "job": None, "device": "cpu"}
    return SimpleNamespace(**usual | others)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Make jobs of pieces of code, each a module that ignores its arguments."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()

    def make(model=None, **codes):
        for name, code in codes.items():
            (tmp_path / "modules" / f"job_{name}.py").write_text(code)
        listed = [gpu().Job(name, (f"job_{name}",), (), model) for name in codes]
        monkeypatch.setattr(gpu(), "jobs", lambda _options: iter(listed))

    return make


def test_a_finished_job_is_not_run_again_and_a_failed_one_is(scripts, tmp_path):
    count = "import pathlib, sys; file = pathlib.Path({!r}); file.open('a').write('x'); sys.exit({})"
    good, bad = tmp_path / "good", tmp_path / "bad"
    scripts(good=count.format(str(good), 0), bad=count.format(str(bad), 1))
    for _ in range(2):
        with pytest.raises(MAEDiffError, match=r"bad failed; read the end of .*bad\.log"):
            gpu().measure(options(tmp_path))
    assert (good.read_text(), bad.read_text()) == ("x", "xx")
    states = gpu().measure(options(tmp_path, job=["good"]))
    assert states["good"]["state"] == "done"
    assert read_json(tmp_path / "work" / "good.done.json") == states["good"]


def test_a_job_that_outlasts_its_time_may_save_and_is_left_for_the_next_call(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu(), "SAVING_S", 20.0)
    scripts(long=WAITS, next="")
    states = gpu().measure(options(tmp_path, minutes=(20.0 + 5.0) / 60))
    assert [state["state"] for state in states.values()] == ["stopped", "not begun"]
    assert (tmp_path / "out" / "long.log").read_text() == "saved\n"
    assert not list((tmp_path / "work").glob("*.done.json"))


def test_a_trained_model_comes_back_in_half_precision(scripts, tmp_path, make_model):
    model = make_model(tmp_path / "model", load_config("quick"))
    scripts(model, train="")
    gpu().measure(options(tmp_path))
    ours, stored = load_model_folder(tmp_path / "out" / "train"), load_model_folder(model)
    assert ours.config == stored.config
    half, full = ((path / "model.safetensors").stat().st_size for path in (tmp_path / "out" / "train", model))
    assert half < 0.6 * full
    assert all((ours.weights[name] - value).abs().max() < 1e-2 for name, value in stored.weights.items())


def test_an_unknown_job_is_refused_before_any_runs(scripts, tmp_path):
    scripts(one="")
    with pytest.raises(InputError, match="--job two is unknown; the jobs are one"):
        gpu().measure(options(tmp_path, job=["one", "two"]))
    assert not (tmp_path / "out" / "one.log").exists()


def test_the_trainings_come_first_and_the_benchmarks_understand_their_options(tmp_path):
    for stub in (False, True):
        found = list(gpu().jobs(options(tmp_path, data=tmp_path, stub=stub, workers=3)))
        assert [job.name for job in found][:3] == ["heads", "heads-disyre", "heads-ddpm"]
        assert all("train.workers=3" in job.settings for job in found[:3])
        assert all(("train.max_steps=2" in job.settings) == stub for job in found[:3])
        for job in [job for job in found if str(job.module[0]).startswith("benchmarks")]:
            script = import_module(str(job.module[0]))
            parser = script.BENCHMARK.parser()
            (script.add_options if hasattr(script, "add_options") else script._options)(parser)
            parser.parse_args([*map(str, job.module[1:]), "--device", "cpu", *job.settings])
