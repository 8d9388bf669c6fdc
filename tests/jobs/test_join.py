"""Side networks from training to joining: their folders, what they leave alone, and what refuses."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from maediff.cli import app

from maediff.errors import ConfigError, InputError, ModelError
from maediff.inference.load import load_model
from maediff.jobs.adapt import adapt_model
from maediff.jobs.join import join_adapted
from maediff.model_folder import describe_model, load_model_folder, merge_adapter, verify_model_folder
from maediff.training.tune import Schedule

AFFINE = np.diag([4.0, 4.0, 8.0, 1.0]) - np.array([[0, 0, 0, 64], [0, 0, 0, 80], [0, 0, 0, 48], [0] * 4])
SHORT = Schedule(max_steps=4, lr=2e-2, every=2, patience=10)


@pytest.fixture(scope="module")
def table(tmp_path_factory, make_scan):
    """FLAIR and T1 of four subjects: the second image is another one on the same grid."""
    folder = tmp_path_factory.mktemp("site")
    rows = ["image_flair,image_t1,subject"]
    for seed in range(4):
        for name, shift in (("flair", 0), ("t1", 50)):
            nib.save(make_scan(AFFINE, (32, 40, 12), seed=seed + shift), folder / f"s{seed}_{name}.nii.gz")
        rows.append(f"s{seed}_flair.nii.gz,s{seed}_t1.nii.gz,s{seed}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny, make_model):
    return make_model(tmp_path_factory.mktemp("base") / "model", tiny("partition.stride=16"))


def adapted(base, table, out, **options):
    return adapt_model(base, table, out, schedule=SHORT, device="cpu", channel="flair", **options)


@pytest.fixture(scope="module")
def by_edges(tmp_path_factory, base, table):
    return adapted(base, table, tmp_path_factory.mktemp("edges") / "e", kind="controlnet").folder


@pytest.fixture(scope="module")
def by_t1(tmp_path_factory, base, table):
    return adapted(base, table, tmp_path_factory.mktemp("t1") / "t", kind="t2i", guide="t1").folder


@pytest.fixture(scope="module")
def joined(tmp_path_factory, by_edges, by_t1):
    folder = tmp_path_factory.mktemp("joined") / "j"
    join_adapted([by_edges, by_t1], folder)
    return folder


def images(table, subject=3):
    return [table.parent / f"s{subject}_{name}.nii.gz" for name in ("flair", "t1")]


def maps(model, scan, *overrides):
    result = load_model(model, "cpu", overrides).predict(scan)
    return np.stack([result.anomaly, result.reconstruction])


def test_it_is_stored_beside_a_reference_to_its_base_whose_weights_stay(by_edges, by_t1, base):
    for folder, guide in ((by_edges, "edges"), (by_t1, "t1")):
        assert not (folder / "model.safetensors").exists()
        stored, plain = load_model_folder(folder), load_model_folder(base)
        assert stored.base == base
        assert all(torch.equal(stored.weights[name], value) for name, value in plain.weights.items())
        assert {name.split(".")[0] for name in stored.weights.keys() - plain.weights.keys()} == {"structure"}
        assert stored.calibration["n_scans"] == 1
        facts = describe_model(folder)["adapter"]
        assert facts["guide"] == guide
        assert facts["parameters"] == sum(
            value.numel() for name, value in stored.weights.items() if name.startswith("structure.")
        )
    assert load_model_folder(by_t1).config.data.channels == ("flair", "t1")
    assert "t1 only steers the reconstruction" in load_model_folder(by_t1).card
    assert load_model_folder(by_edges).config.data.channels == ()


def test_training_lowers_the_loss_of_the_held_out(base, table, tmp_path):
    tuned = adapted(base, table, tmp_path / "a", kind="t2i").tuned
    assert tuned.best_step > 0
    assert tuned.loss_after < tuned.loss_before


def test_omega_zero_and_switched_off_are_the_base(by_edges, by_t1, base, table):
    flair, t1 = images(table)
    plain = maps(base, flair)
    assert np.array_equal(maps(by_edges, flair, "structure.omega=[0]"), plain)
    assert np.array_equal(maps(by_t1, [flair, t1], "structure.omega=[0]"), plain)
    assert np.array_equal(maps(by_t1, flair, "infer.adapter=false"), plain)
    assert not np.array_equal(maps(by_edges, flair), plain)
    assert not np.array_equal(maps(by_t1, [flair, t1]), maps(by_t1, [flair, flair]))
    changed = load_model(by_edges, "cpu", ("structure.omega=[0.5]",))
    assert changed.calibration is None  # its threshold belongs to other maps


def test_joined_each_alone_is_what_it_was(joined, by_edges, by_t1, table):
    flair, t1 = images(table)
    assert load_model_folder(joined).calibration is None
    assert np.array_equal(maps(joined, [flair, t1], "structure.omega=[1, 0]"), maps(by_edges, flair))
    assert np.array_equal(maps(joined, [flair, t1], "structure.omega=[0, 1]"), maps(by_t1, [flair, t1]))
    both = maps(joined, [flair, t1])
    assert not np.array_equal(both, maps(joined, [flair, t1], "structure.omega=[1, 0.5]"))


def test_merged_it_stands_alone_with_the_same_maps(by_t1, table, tmp_path):
    merge_adapter(by_t1, tmp_path / "m")
    assert load_model_folder(tmp_path / "m").base is None
    assert np.array_equal(maps(tmp_path / "m", images(table)), maps(by_t1, images(table)))


# What refuses


def test_a_missing_contrast_is_told(by_t1, base, table, tmp_path):
    with pytest.raises(InputError, match="the 2 channels flair, t1 and was given 1"):
        load_model(by_t1, "cpu").predict(images(table)[0])
    with pytest.raises(InputError, match="image_pd"):
        adapted(base, table, tmp_path / "a", kind="t2i", guide="pd")
    with pytest.raises(ConfigError, match=r"'t1' must be another channel .* does not name its channel; .*--channel"):
        adapt_model(base, table, tmp_path / "a", kind="t2i", guide="t1", device="cpu")
    with pytest.raises(ConfigError, match=r"'flair' must be another channel .* reconstructs flair"):
        adapted(base, table, tmp_path / "a", kind="t2i", guide="flair")
    assert not (tmp_path / "a").exists()


def test_side_networks_of_another_base_and_other_models_are_not_joined(
    by_edges, base, table, tiny, make_model, tmp_path
):
    other = make_model(tmp_path / "other", tiny("partition.stride=16"), seed=7)
    stranger = adapted(other, table, tmp_path / "s", kind="t2i").folder
    with pytest.raises(ModelError, match=r"is an adapter of another base .* only side networks of one base"):
        join_adapted([by_edges, stranger], tmp_path / "j")
    lora = adapted(base, table, tmp_path / "l", rank=2).folder
    for wrong in (base, lora):
        with pytest.raises(ModelError, match="holds no side network to join"):
            join_adapted([by_edges, wrong], tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_other_methods_cannot_be_steered(tiny, make_model, table, tmp_path):
    baseline = make_model(tmp_path / "dae", tiny("method=dae"))
    with pytest.raises(ConfigError, match="structure goes with method maediff, not 'dae'"):
        adapted(baseline, table, tmp_path / "a", kind="controlnet")


# The command


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_adapt_join_calibrate_and_infer(base, by_edges, table, tmp_path):
    out, both = tmp_path / "t", tmp_path / "both"
    done = run("adapt", "-m", base, "-i", table, "--channel", "flair", "--kind", "t2i", "--guide", "t1", "-o", out,
               "--steps", 2, "-d", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    joined = run("adapt", "-m", by_edges, "--join", out, "-o", both)
    assert joined.exit_code == 0, joined.output
    assert "next: maediff calibrate" in joined.output
    assert run("calibrate", "-m", both, "-i", table, "-d", "cpu").exit_code == 0
    scored = run("infer", "-m", both, "-i", table, "-o", tmp_path / "out", "-d", "cpu")
    assert scored.exit_code == 0, scored.output
    assert "parameters" in run("info", both, "--json").output
    assert verify_model_folder(both)
    assert run("adapt", "-m", base, "-i", table, "--guide", "t1", "-o", tmp_path / "x").exit_code == 2
