"""What a run will cost: windows and operations are exact, memory and time are measured."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from maediff.errors import InputError
from maediff.inference.cost import window_flops
from maediff.inference.load import load_model
from maediff.jobs.infer import estimate_inference, infer, plan_inference
from maediff.methods.intensity import Intensity
from maediff.model_folder import save_model

AFFINE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -76], [0, 0, 10, -55], [0, 0, 0, 1]])


@pytest.fixture
def model(make_model, tiny, tmp_path):
    return make_model(tmp_path / "model", tiny("partition.stride=16", "infer.draws=2"))


@pytest.fixture
def scans(make_scan, tmp_path):
    """Two scans of the same brain, after one that cannot be read."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(b"this is no scan")
    for name in "bc":
        nib.save(make_scan(AFFINE, (17, 20, 12)), folder / f"{name}.nii.gz")
    return folder


def test_the_estimate_counts_what_is_computed(model, scans, tmp_path):
    plan = plan_inference(model, scans, tmp_path / "out")
    cost = estimate_inference(model, plan, device="cpu")
    predictor, seen = load_model(model, "cpu"), []
    predictor.predict(scans / "b.nii.gz", on_batch=lambda _done, of: seen.append(of))
    assert cost.scans == 3
    assert cost.windows == 3 * seen[-1]
    flops = window_flops(predictor.network, predictor.config.data.size, predictor.config.partition.window)
    assert cost.gflop == pytest.approx(cost.windows * flops / 1e9)
    assert cost.seconds > 0
    assert cost.memory_mib is None or cost.memory_mib > 10


def test_less_context_costs_less(model, scans, tmp_path):
    plan = plan_inference(model, scans, tmp_path / "out")
    whole, less = (
        estimate_inference(model, plan, device="cpu", overrides=[f"infer.context={context}"])
        for context in ("slice", 0)
    )
    assert less.windows == whole.windows
    assert 0.1 * whole.gflop < less.gflop < 0.5 * whole.gflop


def test_finished_scans_cost_nothing(model, scans, tmp_path):
    (scans / "a.nii.gz").unlink()
    infer(model, scans, tmp_path / "out", device="cpu")
    cost = estimate_inference(model, plan_inference(model, scans, tmp_path / "out"), device="cpu")
    assert (cost.scans, cost.windows, cost.seconds) == (0, 0, 0.0)


def test_no_usable_scan_is_an_error(model, scans, tmp_path):
    plan = plan_inference(model, scans / "a.nii.gz", tmp_path / "out")
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        estimate_inference(model, plan, device="cpu")


def test_the_cost_without_a_network_is_not_estimated(tiny, scans, tmp_path):
    model = tmp_path / "untrained"
    save_model(model, Intensity().state_dict(), tiny("method=intensity"), None, "# Intensity\n")
    assert estimate_inference(model, plan_inference(model, scans, tmp_path / "out"), device="cpu") is None
