"""A small form of `python -m benchmarks.robustness.fuzz`, and what it found, each held by a test of its own."""

from __future__ import annotations

import json
import struct
import warnings
from importlib import import_module

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from maediff import files, model_folder, staging, system
from maediff.config import METHODS, UNTRAINED, load_config, override
from maediff.data.cases import find_cases
from maediff.errors import ConfigError, GeometryError, InputError, MAEDiffError, ModelError
from maediff.evaluation.reference import Reference
from maediff.inference.load import load_model
from maediff.methods import build
from maediff.tables import listed, read_table
from maediff.volume import read_nifti
from maediff.working import prepare


@pytest.fixture(scope="module")
def mutations(benchmarks_importable):
    return import_module("benchmarks.robustness.mutations")


@pytest.fixture
def model(make_model, tiny, tmp_path):
    return make_model(tmp_path / "model", tiny("partition.stride=16"))


def sign_again(folder):
    """Make the checksums of a model folder fit what lies there."""
    sums = "".join(f"{files.file_sha256(folder / name)}  {name}\n" for name in sorted(staging.FILES))
    (folder / staging.CHECKSUMS).write_text(sums)


def outcome_of(border, source):
    """Feed an input; anything but an error of ours fails the test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="nibabel")
        try:
            border.feed(source)
        except MAEDiffError:
            return "refused"
    return "accepted"


@pytest.mark.parametrize("name", ["nifti", "manifest", "config", "model"])
def test_nothing_but_errors_of_ours_comes_out(mutations, name, tmp_path):
    border = mutations.BORDERS[name]
    border.prepare(tmp_path)
    outcomes = set()
    for number in range(120):  # a tenth of the changed configurations are accepted
        source = border.make(np.random.default_rng([5, number]), tmp_path)
        outcomes.add(outcome_of(border, source))
    assert outcomes == {"accepted", "refused"}


# Configurations


@pytest.mark.parametrize(
    "assignment",
    [
        "model.channels=[1000000000,1000000000,1000000000]",
        "model.channels=[0,8,16]",
        "model.channels=[-8,8,16]",
        "model.channels=[8,8,8,8,8,8,8,8,8]",
        "data.size=[1000000,1000000]",
        "data.size=[0,0]",
        "data.spacing_mm=.inf",
        "data.spacing_mm=1e-30",
        "data.percentiles=[99,1]",
        "data.percentiles=[-5,200]",
        "diffusion.timesteps=1000000000000",
        "model.mae_depth=1000000000",
        "baselines.latent_levels=1000000000",
        "train.seed=" + "9" * 400,
        "train.lr=.inf",
        "train.workers=1000000",
        "infer.draws=1000000000",
        "score.median_mm=1e9",
    ],
)
def test_a_value_beyond_all_use_is_refused_at_once(assignment):
    with pytest.raises(ConfigError) as caught:
        override(load_config("quick"), [assignment])
    assert len(str(caught.value)) < 500
    assert assignment.split("=")[0] in str(caught.value) or "percentiles" in str(caught.value)


def test_a_network_that_memory_cannot_hold_is_not_built(monkeypatch):
    config = load_config("quick", ["model.channels=[8192,8192,8192]", "model.mae_width=8192", "model.mae_depth=64"])
    with pytest.raises(ConfigError, match=r"the network has [\d,]+ parameters; to train them takes [\d,]+ GiB"):
        build.check_trainable(config)  # hundreds of GiB, in a moment
    small = load_config("quick")
    count = sum(parameter.numel() for parameter in build.build_network(small).parameters())
    monkeypatch.setattr(build, "memory_bytes", lambda: 20 * count)
    build.check_trainable(small)
    monkeypatch.setattr(build, "memory_bytes", lambda: 20 * count - 1)
    with pytest.raises(ConfigError, match="choose smaller"):
        build.check_trainable(small)
    build.check_trainable(load_config("quick", ["method=intensity"]))


@pytest.mark.parametrize("method", [method for method in METHODS if method not in UNTRAINED])
def test_shapes_without_memory_are_those_of_the_network(method):
    config = load_config("volumetric" if method == "volumetric" else "quick", [f"method={method}"])
    built = {name: tuple(value.shape) for name, value in build.build_network(config).state_dict().items()}
    assert build.network_shapes(config) == built


# Model folders


def test_a_config_of_another_size_than_the_weights_is_refused_before_it_is_built(model, monkeypatch):
    tree = yaml.safe_load((model / staging.CONFIG).read_text())
    tree["model"] |= {"channels": [8192, 8192], "mae_width": 8192}
    (model / staging.CONFIG).write_text(yaml.safe_dump(tree))
    sign_again(model)
    monkeypatch.setattr("maediff.inference.load.build_network", None)
    with pytest.raises(ModelError, match=r"tensors differ, the first is .* \(weights .*, config .*8192"):
        load_model(model, "cpu")


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 0, 10**9])
def test_a_weights_file_that_claims_a_long_header_is_refused(model, length):
    weights = model / staging.WEIGHTS
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    sign_again(model)
    for read in (model_folder.describe_model, model_folder.load_model_folder):
        with pytest.raises(ModelError, match="cannot be read"):
            read(model)


def test_a_weights_header_of_any_length_makes_a_short_message(model):
    header = json.dumps({"x" * 70_000: {"dtype": "y" * 70_000, "shape": "z" * 70_000}}).encode()
    (model / staging.WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    sign_again(model)
    for read in (model_folder.describe_model, model_folder.load_model_folder):
        with pytest.raises(ModelError) as caught:
            read(model)
        assert len(str(caught.value)) < 2000


def test_files_of_a_model_that_claim_any_size_are_refused_unread(model, monkeypatch):
    with (model / staging.CARD).open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no space
    with pytest.raises(ModelError, match=r"README.md has 1099511627776 bytes; at most 67108864"):
        model_folder.verify_model_folder(model)
    (model / staging.CARD).write_text("# A random model\n")
    monkeypatch.setattr(staging, "memory_bytes", lambda: 100)
    with pytest.raises(ModelError, match=r"model.safetensors has \d+ bytes; at most 100"):
        model_folder.verify_model_folder(model)


def test_maps_that_are_not_finite_are_refused(make_model, tiny, tmp_path, make_scan):
    config = tiny("partition.stride=16")
    folder = make_model(tmp_path / "model", config)
    stored = model_folder.load_model_folder(folder)
    weights = {name: torch.full_like(value, float("nan")) for name, value in stored.weights.items()}
    model_folder.save_model(folder, weights, config, None, "# NaN\n")
    with pytest.raises(ModelError, match="not finite"):
        load_model(folder, "cpu").predict(make_scan(np.diag([8.0, 8, 10, 1]), (17, 20, 12)))


# Tables


@pytest.mark.parametrize("read", [read_table, find_cases, Reference], ids=["table", "cases", "reference"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na\0b.nii,\n", "null bytes"),
        ("image,label\n" + "x" * 5000 + ",\n", "a cell of 5000 characters, at most 4096"),
        (",".join(f"c{k}" for k in range(1001)) + "\n", "1001 columns, at most 1000"),
    ],
    ids=["null", "long", "wide"],
)
def test_a_table_that_is_none_is_refused(tmp_path, read, text, message):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "cases.csv")


def test_messages_list_a_few_columns_only():
    assert listed([f"c{k}" for k in range(30)]).endswith("c19 and 10 more")
    assert len(listed(["x" * 4000] * 900)) < 2000


# Scans


def save(path, data, affine):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return read_nifti(path)


def test_a_scan_of_metres_is_refused_before_it_is_resampled(tmp_path):
    data = np.ones((60, 4, 4))
    data[0, 0, 0] = 2
    volume = save(tmp_path / "long.nii", data, np.diag([50.0, 50, 50, 1]))
    with pytest.raises(GeometryError, match=r"spans 3000 x 200 x 200 mm; at most 2000"):
        prepare(volume, data > 0, load_config("quick").data)


def test_a_working_grid_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    data = np.ones((8, 8, 8))
    data[0, 0, 0] = 2
    volume = save(tmp_path / "scan.nii", data, np.diag([4.0, 4, 4, 1]))
    monkeypatch.setattr("maediff.volume.checks.memory_bytes", lambda: 10**5)
    with pytest.raises(InputError, match=r"the working grid of .*scan.nii .* needs"):
        prepare(volume, None, load_config("quick").data)


@pytest.mark.parametrize("scale", [1e-44, 1e38])
def test_intensities_at_the_ends_of_float32_are_refused(tmp_path, scale):
    data = np.linspace(0, 3, 512).reshape(8, 8, 8) * scale
    with pytest.raises(InputError, match="the brain has no contrast"):
        prepare(save(tmp_path / "scan.nii", data, np.eye(4)), data >= 0, load_config("quick").data)


def test_forms_that_lie_worlds_apart_are_told(tmp_path):
    header = nib.Nifti2Header()
    image = nib.Nifti2Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4), header)
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.eye(4), 1)
    image.header["qoffset_x"] = 1e300
    nib.save(image, tmp_path / "far.nii")
    assert any("disagree" in note for note in read_nifti(tmp_path / "far.nii").notes)


@pytest.mark.parametrize("step", [1e200, 1e300, 1e308])
def test_an_affine_of_endless_voxels_is_refused(tmp_path, step):
    image = nib.Nifti2Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    image.header["srow_x"], image.header["pixdim"][1:4] = [step, 0, 0, 0], 1
    image.header["sform_code"] = 1
    (tmp_path / "far.nii").write_bytes(bytes(image.header.binaryblock) + bytes(4) + bytes(120))
    with pytest.raises(GeometryError, match=r"singular|plausible"):
        read_nifti(tmp_path / "far.nii")


def test_memory_is_told():
    assert system.memory_bytes() is None or system.memory_bytes() > 2**20
