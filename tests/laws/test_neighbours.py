"""Models that see neighbouring slices: the whole job, by the same commands, from the same model folder."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from maediff.cli import app

from maediff.bundle import export_bundle
from maediff.config import dump_yaml
from maediff.errors import ConfigError, ModelError
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.jobs.infer import estimate_inference, plan_inference
from maediff.jobs.train import train

AFFINE, SHAPE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -80], [0, 0, 8, -48], [0, 0, 0, 1]]), (17, 20, 13)
SHORT = ("train.max_steps=2", "train.val_every=2", "train.pictures=1", "partition.stride=16")


@pytest.fixture(scope="module")
def table(tmp_path_factory, make_scan):
    """Three scans of two channels."""
    folder = tmp_path_factory.mktemp("scans")
    rows = ["image_t1,image_t2,subject"]
    for k in range(3):
        for name, seed in (("t1", k), ("t2", 10 + k)):
            nib.save(make_scan(AFFINE, SHAPE, seed=seed), folder / f"s{k}_{name}.nii.gz")
        rows.append(f"s{k}_t1.nii.gz,s{k}_t2.nii.gz,s{k}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


@pytest.mark.parametrize("settings", [("data.channels=[t1, t2]",), ("method=ddpm",)])
def test_train_calibrate_infer_and_report_by_the_command_line(table, tiny, tmp_path, settings):
    def command(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="maediff")
        assert result.exit_code == 0, result.output
        return result.output

    config = tiny(*settings, *SHORT)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    where = ("-i", table, "--device", "cpu", *(() if config.data.channels else ("--channel", "t1")))
    command("train", "-c", tmp_path / "config.yaml", "--set", "data.neighbours=1", "-o", tmp_path / "run", *where)
    command("calibrate", "-m", tmp_path / "run", *where)
    command("infer", "-m", tmp_path / "run", "-o", tmp_path / "out", "--report", *where)
    assert read_json(tmp_path / "out" / "s0_t1_anomaly.json")["threshold"] is not None
    assert nib.load(tmp_path / "out" / "s0_t1_anomaly.nii.gz").shape == SHAPE
    assert (tmp_path / "run" / "pictures" / "step-000002.png").is_file()
    assert (
        "neighbours that the network also sees: 1 on each side"
        in (tmp_path / "run" / "model" / "README.md").read_text()
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory, make_model, tiny):
    return make_model(tmp_path_factory.mktemp("model") / "m", tiny("data.neighbours=1", "partition.stride=16"))


def test_a_map_depends_on_near_slices_of_the_scan_alone(model, make_scan):
    """The key of the noise is given, since that of a prediction follows the content of the whole scan."""
    predictor = load_model(model, "cpu")
    scan = predictor.prepare(make_scan(AFFINE, SHAPE))
    before = predictor.reconstruct(*_tensors(scan), ("a",)).mean
    slices, mask = _tensors(scan)
    slices[6] = slices[6].flip(0)
    found = predictor.reconstruct(slices, mask, ("a",)).mean
    changed = {k for k in range(len(found)) if float((found[k] - before[k]).abs().max()) > 1e-5}
    assert changed == {5, 6, 7}


def _tensors(scan):
    return torch.from_numpy(scan.prepared.slices.copy()), torch.from_numpy(scan.prepared.mask)


def test_the_map_follows_the_scan_stored_along_other_axes(model, make_scan):
    """Neighbours are those of the working grid, not those of the file."""
    predictor = load_model(model, "cpu")
    scan = make_scan(AFFINE, SHAPE)
    turned = scan.as_reoriented(np.array([[1, 1], [2, -1], [0, 1]]))
    first, second = predictor.predict(scan), predictor.predict(turned)
    back = nib.Nifti1Image(second.anomaly, turned.affine)
    again = nib.as_closest_canonical(back).get_fdata()
    np.testing.assert_allclose(again, first.anomaly, atol=1e-4)
    assert first.anomaly.max() > 0


def test_all_orientations_have_their_own_neighbours(model, make_scan):
    fine = np.diag([2.5, 2.5, 2.5, 1])
    fine[:3, 3] = [-65, -80, -50]
    scan = make_scan(fine, (52, 64, 40))
    maps = [
        load_model(model, "cpu", (f"infer.orientations=[{names}]",)).predict(scan).anomaly
        for names in ("axial", "axial, coronal")
    ]
    assert maps[0].shape == maps[1].shape == (52, 64, 40)
    assert not np.array_equal(maps[0], maps[1])


def test_the_cost_is_known_before(model, make_scan, tmp_path):
    nib.save(make_scan(AFFINE, SHAPE), tmp_path / "a.nii.gz")
    cost = estimate_inference(model, plan_inference(model, tmp_path, tmp_path / "out"), device="cpu")
    assert cost.windows > 0
    assert cost.gflop > 0


def test_what_a_model_with_neighbours_cannot_be_is_said(model, tiny, tmp_path, table):
    with pytest.raises(ConfigError, match="change what the network was trained as"):
        load_model(model, "cpu", ("data.neighbours=0",))
    with pytest.raises(ConfigError, match="neighbours=1 cannot be a MONAI bundle"):
        export_bundle(model, tmp_path / "bundle")
    config = tiny(f"train.init={model}", *SHORT)
    with pytest.raises(ModelError, match=r"neighbours, or leave train\.init empty"):
        train(config, table, tmp_path / "run", device="cpu", channel="t1")
