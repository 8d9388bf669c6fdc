"""Whatever a caller has set torch to, MAEDiff computes the same and leaves torch as it was."""

from __future__ import annotations

import getpass
import os

import numpy as np
import pytest
import torch

from maediff import hardware
from maediff.errors import ConfigError
from maediff.inference.load import load_model
from maediff.system import name_user
from maediff.training.loop import fit

CPU = torch.device("cpu")


@pytest.fixture
def default_dtype():
    """Set torch's default dtype for a test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def scan(make_scan):
    return make_scan(
        np.diag([6.0, 6, 24, 1]) + np.array([[0, 0, 0, -66], [0] * 4, [0, 0, 0, -24], [0] * 4]), (22, 14, 3)
    )


class TestDefaults:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_maps_do_not_depend_on_the_default_dtype(self, dtype, default_dtype, tiny, make_model, scan, tmp_path):
        folder = make_model(tmp_path / "model", tiny())
        earlier = load_model(folder, "cpu")
        usual = earlier.predict(scan)
        default_dtype(dtype)
        for predictor in (earlier, load_model(folder, "cpu")):
            np.testing.assert_array_equal(predictor.predict(scan).anomaly, usual.anomaly)
        assert torch.get_default_dtype() == dtype

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_training_does_not_depend_on_the_default_dtype(self, dtype, default_dtype, tiny, discs, tmp_path):
        config = tiny("train.max_steps=2", "train.log_every=2", "train.val_every=2", "train.checkpoint_every=2")
        usual = fit(config, discs(), discs(8, seed=1), tmp_path / "usual", device=CPU)
        default_dtype(dtype)
        other = fit(config, discs(), discs(8, seed=1), tmp_path / "other", device=CPU)
        for name, value in usual.weights.items():
            torch.testing.assert_close(other.weights[name], value, rtol=0, atol=0)

    def test_maps_do_not_depend_on_the_default_device(self, tiny, make_model, scan, tmp_path):
        folder = make_model(tmp_path / "model", tiny())
        usual = load_model(folder, "cpu").predict(scan)
        with torch.device("meta"):
            found = load_model(folder, "cpu").predict(scan)
        np.testing.assert_allclose(found.anomaly, usual.anomaly, atol=1e-5)  # torch takes other kernels under a mode

    def test_the_last_of_several_calls_puts_the_dtype_back(self, default_dtype):
        default_dtype(torch.float64)
        first, second = hardware.usual_defaults(), hardware.usual_defaults()
        first.__enter__(), second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64


class TestRandomState:
    def test_neither_model_nor_map_nor_training_moves_it(self, tiny, make_model, scan, discs, tmp_path):
        folder = make_model(tmp_path / "model", tiny())
        torch.manual_seed(7)
        before = torch.get_rng_state()
        load_model(folder, "cpu").predict(scan)
        assert torch.equal(torch.get_rng_state(), before)
        config = tiny("train.max_steps=1", "train.log_every=1", "train.val_every=1", "train.checkpoint_every=1")
        fit(config, discs(), discs(8, seed=1), tmp_path / "run", device=CPU)
        assert torch.equal(torch.get_rng_state(), before)


class TestFork:
    def test_a_forked_process_is_told_instead_of_waiting(self, tiny, make_model, scan, tmp_path, monkeypatch):
        predictor = load_model(make_model(tmp_path / "model", tiny()), "cpu")
        monkeypatch.setattr(hardware._Fork, "after", False)
        hardware._after_fork()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        with pytest.raises(ConfigError, match="forked after load_model"):
            predictor.predict(scan)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert predictor.predict(scan).score > 0


class TestUser:
    def test_a_user_id_without_a_name_gets_one(self, monkeypatch):
        import pwd

        def unknown(uid):
            raise KeyError(uid)

        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.setenv(name, "")
        monkeypatch.setattr(pwd, "getpwuid", unknown)
        name_user()
        assert getpass.getuser() == f"uid{os.getuid()}"

    def test_a_user_with_a_name_keeps_it(self, monkeypatch):
        monkeypatch.delenv("LOGNAME", raising=False)
        monkeypatch.setenv("USER", "jane")
        name_user()
        assert getpass.getuser() == "jane"
