"""The MONAI Bundle: verified and run by MONAI's own command, with the maps of ``maediff infer``."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff import export_bundle, infer
from maediff.bundle import HealthySlices
from maediff.errors import ConfigError, ModelError, OutputError
from maediff.model_folder import load_model_folder, save_model, verify_model_folder

# MONAI's own schema is fetched from the network, which tests do without: this one says what its specification
# (docs.monai.io, "MONAI Bundle Specification") demands of metadata.json.
TEXT, TEXTS = {"type": "string", "minLength": 1}, {"type": "object", "additionalProperties": {"type": "string"}}
TENSOR = {
    "type": "object",
    "required": [
        "type",
        "format",
        "num_channels",
        "spatial_shape",
        "dtype",
        "value_range",
        "is_patch_data",
        "channel_def",
    ],
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "format": TEXT,
        "modality": TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1},
        "dtype": TEXT,
        "value_range": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": TEXTS,
    },
}
TENSORS = {"type": "object", "additionalProperties": TENSOR, "minProperties": 1}
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        **dict.fromkeys(
            ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "intended_use"), TEXT
        ),
        **dict.fromkeys(("task", "description", "authors", "copyright", "data_source", "data_type"), TEXT),
        **dict.fromkeys(("changelog", "required_packages_version"), TEXTS),
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": TENSORS, "outputs": TENSORS},
        },
    },
}


needs_command = pytest.mark.skipif(
    not all(find_spec(name) for name in ("fire", "jsonschema")), reason="MONAI's bundle command needs the extra bundle"
)


@pytest.fixture(scope="module")
def model(make_model, tiny, tmp_path_factory):
    calibration = {"threshold": 0.1, "false_positive_rate": 0.01, "n_scans": 2, "n_voxels": 9, "quantiles": {}}
    calibration |= {"case_scores": [0.1, 0.2], "origin": "a test"}
    return make_model(tmp_path_factory.mktemp("m") / "model", tiny("model.mirror=true"), calibration)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return export_bundle(model, tmp_path_factory.mktemp("b") / "bundle")


def monai(monkeypatch, *arguments):
    """Run ``python -m monai.bundle`` in this process, which has MONAI loaded."""
    monkeypatch.setattr(sys, "argv", ["monai.bundle", *map(str, arguments)])
    runpy.run_module("monai.bundle", run_name="__main__")


def configs(bundle):
    folder = bundle / "configs"
    return [
        "--meta_file",
        folder / "metadata.json",
        "--config_file",
        folder / "inference.json",
        "--bundle_root",
        bundle,
    ]


@needs_command
@pytest.mark.filterwarnings("default")  # MONAI's own
def test_monai_verifies_the_metadata(bundle, tmp_path, monkeypatch):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    meta = bundle / "configs" / "metadata.json"
    monai(monkeypatch, "verify_metadata", "--meta_file", meta, "--filepath", schema)
    spoilt = json.loads(meta.read_text())
    del spoilt["network_data_format"]["outputs"]["pred"]["dtype"]
    (tmp_path / "metadata.json").write_text(json.dumps(spoilt))
    with pytest.raises(ValueError, match="Failed validating"):
        monai(monkeypatch, "verify_metadata", "--meta_file", tmp_path / "metadata.json", "--filepath", schema)


@needs_command
@pytest.mark.filterwarnings("default")  # MONAI's own
def test_monai_verifies_what_the_network_takes_and_gives(bundle, monkeypatch):
    monai(monkeypatch, "verify_net_in_out", "network_def", *configs(bundle), "--device", "cpu")
    wrong = ["--_meta_#network_data_format#outputs#pred#num_channels", 2]
    with pytest.raises(ValueError, match="channel number"):
        monai(monkeypatch, "verify_net_in_out", "network_def", *configs(bundle), "--device", "cpu", *wrong)


@needs_command
@pytest.mark.slow
def test_monai_runs_it_with_the_maps_of_infer(bundle, model, make_scan, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(make_scan(np.diag([4.0, 4.0, 6.0, 1.0]) + np.eye(4, k=3) * -70, (36, 40, 20)), scans / "a.nii.gz")
    command = [sys.executable, "-m", "monai.bundle", "run", *configs(bundle), "--dataset_dir", scans]
    command += ["--output_dir", tmp_path / "theirs", "--device", "cpu"]
    as_here = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # bytes are those of one number of threads
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=300, env=as_here)
    infer(model, scans, tmp_path / "ours", device="cpu")
    names = sorted(path.name for path in (tmp_path / "ours").glob("*.nii.gz"))
    assert names == ["a_anomaly-mask.nii.gz", "a_anomaly.nii.gz", "a_reconstruction.nii.gz"]
    for name in names:
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    assert np.any(nib.load(tmp_path / "theirs" / "a_anomaly.nii.gz").get_fdata())


def test_the_bundle_holds_the_whole_model(bundle, model):
    inside = bundle / "models" / "maediff"
    assert verify_model_folder(inside) == verify_model_folder(model)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network = HealthySlices(inside)
    network.load_state_dict(state)
    weights = load_model_folder(model).weights
    assert all(torch.equal(network.network.state_dict()[name], value) for name, value in weights.items())
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {"configs/metadata.json", "configs/inference.json", "docs/README.md", "docs/license.txt"} < files
    assert "monai.bundle run" in (bundle / "docs" / "README.md").read_text()
    assert "Research use only" in (bundle / "configs" / "metadata.json").read_text()
    assert not list(bundle.parent.glob(".*"))


def test_slices_are_those_of_the_engine(bundle, model):
    network = HealthySlices(model).eval()
    slices = torch.full((2, 1, 32, 32), -1.0)
    slices[:, :, 8:24, 8:24] = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    healthy = network(slices)
    assert healthy.shape == slices.shape
    assert not torch.equal(healthy, slices)
    assert torch.equal(network(slices), healthy)


def test_a_method_without_a_network_is_refused(make_model, tiny, tmp_path):
    save_model(tmp_path / "model", {}, tiny("method=intensity"), None, "# Card\n")
    with pytest.raises(ConfigError, match="no network"):
        export_bundle(tmp_path / "model", tmp_path / "out")


def test_nothing_is_overwritten_and_a_bad_model_leaves_nothing(bundle, model, tmp_path):
    with pytest.raises(OutputError, match="already"):
        export_bundle(model, bundle)
    with pytest.raises(ModelError):
        export_bundle(tmp_path / "absent", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    assert (export_bundle(model, tmp_path / "empty") / "configs").is_dir()
