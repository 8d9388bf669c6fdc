"""Models that see several co-registered channels: shapes, laws that tie them to one channel, and the whole job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from maediff.cli import app

from maediff.bundle import export_bundle
from maediff.config import Config, dump_yaml, override
from maediff.data.cases import find_cases
from maediff.data.slices import healthy_slices
from maediff.diffusion.noise import generator, noise_field
from maediff.errors import ConfigError, GeometryError, InputError
from maediff.files import read_json
from maediff.inference.cohort import input_hash
from maediff.inference.load import load_model
from maediff.jobs.infer import infer
from maediff.methods.maediff.loss import Reconstruction
from maediff.methods.maediff.sliding import SlidingReconstructor
from maediff.scoring import anomaly_map
from maediff.training.augment import augment
from maediff.training.pseudo_lesions import add_pseudo_lesions
from maediff.training.stream import SampleStream
from maediff.volume import read_nifti
from maediff.working import prepare

AFFINE, SHAPE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -80], [0, 0, 10, -55], [0, 0, 0, 1]]), (17, 20, 12)
TWO = "data.channels=[t1, t2]"
MSLUB = Path(__file__).parents[3] / "shared" / "data" / "mslub"


def write_table(folder, make_scan, subjects=3):
    """Write a table of scans of two channels."""
    rows = ["image_t1,image_t2,subject"]
    for k in range(subjects):
        for name, seed in (("t1", k), ("t2", 10 + k)):
            nib.save(make_scan(AFFINE, SHAPE, seed=seed), folder / f"s{k}_{name}.nii.gz")
        rows.append(f"s{k}_t1.nii.gz,s{k}_t2.nii.gz,s{k}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory, make_scan):
    return write_table(tmp_path_factory.mktemp("channels"), make_scan)


@pytest.fixture(scope="module")
def model(tmp_path_factory, make_model, tiny):
    return make_model(tmp_path_factory.mktemp("model") / "m", tiny(TWO))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.channels=[t1]"], "needs no name"),
        (["data.channels=[t1, t1]"], "name one twice"),
        (["data.channels=[T1 w, t2]"], "pattern"),
        ([TWO, "method=ae"], "takes one"),
    ],
)
def test_impossible_channels_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), settings)


def test_cases_hold_their_channels_in_order(table):
    cases = find_cases(table, channels=("t2", "t1"))
    assert [path.name for path in cases[0].images] == ["s0_t2.nii.gz", "s0_t1.nii.gz"]
    assert find_cases(table.parent, channels=("t2", "t1")) == cases
    assert find_cases(table, channel="t1")[0].others == ()
    one, both = find_cases(table, channel="t1")[0], find_cases(table, channels=("t1", "t2"))[0]
    assert len({input_hash(case) for case in (one, both, replace(both, others=both.others * 2))}) == 3


def test_missing_channels_are_named(table, tmp_path):
    with pytest.raises(InputError, match="no column image_flair"):
        find_cases(table, channels=("t1", "flair"))
    with pytest.raises(InputError, match="leave out channel 't1'"):
        find_cases(table, channel="t1", channels=("t1", "t2"))
    with pytest.raises(InputError, match="columns image_t1,image_t2"):
        find_cases(table.parent / "s0_t1.nii.gz", channels=("t1", "t2"))
    (tmp_path / "gap.csv").write_text("image_t1,image_t2\na.nii.gz,\n")
    with pytest.raises(InputError, match="row 1 has no image_t2"):
        find_cases(tmp_path / "gap.csv", channels=("t1", "t2"))


def test_each_channel_is_prepared_as_if_alone_within_the_first_ones_brain(table, tiny):
    first, second = (read_nifti(path) for path in find_cases(table, channels=("t1", "t2"))[0].images)
    both = prepare(first, None, tiny().data, [second])
    alone, other = prepare(first, None, tiny().data), prepare(second, both.native_mask, tiny().data)
    assert both.slices.shape == (len(both.mask), 2, *both.mask.shape[1:])
    np.testing.assert_array_equal(both.slices[:, 0], alone.slices)
    np.testing.assert_array_equal(both.slices[:, 1], other.slices)
    assert (both.scale, both.scale == other.scale) == (alone.scale, False)


@pytest.mark.parametrize("kind", ["gaussian", "simplex", "coarse"])
def test_noise_of_channels_starts_like_that_of_one(kind):
    one, three = noise_field(kind, (16, 16), generator(1)), noise_field(kind, (16, 16), generator(1), 3)
    assert torch.equal(three[:1], one)
    assert len({float(field.sum()) for field in three}) == 3


def test_channels_move_together_and_share_the_shapes_of_lesions(discs):
    slices = discs()
    image = torch.from_numpy(slices.images[:1]).float()
    mask = torch.from_numpy(slices.masks[:1])
    moved, brain = augment(image.expand(3, -1, -1), mask, 1.5, generator(4))
    assert moved.shape == (3, 32, 32)
    assert brain.shape == mask.shape
    assert (moved[:, ~brain[0]] == -1).all()
    inside = moved[:, brain[0]]
    assert np.corrcoef(inside.numpy())[0, 1] > 0.9  # the same picture in the same place, otherwise shaded
    assert not torch.equal(inside[0], inside[1])
    flat = torch.where(mask, 0.0, -1.0).expand(2, -1, -1)
    changed = [
        (add_pseudo_lesions(flat, mask, flat, 1.5, generator("lesion", k)) - flat).abs().amax((1, 2)) for k in range(20)
    ]
    assert sum(bool((change > 0.05).all()) for change in changed) > 10
    assert any(float(change[0]) != float(change[1]) for change in changed)


def test_samples_hold_all_channels(table, tiny):
    config = tiny(TWO, "lesions.share=1")
    slices = healthy_slices(find_cases(table, channels=("t1", "t2")), config.data)
    assert slices.images.shape[1:] == (2, 32, 32)
    sample = SampleStream(slices, config, 4, augmented=True)[0]
    assert {name: tuple(sample[name].shape) for name in ("image", "clean", "mask", "noise")} == {
        "image": (2, 32, 32),
        "clean": (2, 32, 32),
        "mask": (1, 32, 32),
        "noise": (2, 32, 32),
    }


class Unmixed:
    """A stand-in for the network that predicts for each channel the same function of it."""

    def features(self, image, mask):
        return None

    def __call__(self, perturbed, window, steps):
        return Reconstruction(0.5 * perturbed + 0.1 * window, None)


def test_the_engine_treats_each_channel_like_a_slice_alone(tiny, discs):
    """With the same noise, a network that does not mix channels returns for each what it returns for it alone."""
    slices = discs(4)
    first, mask = torch.from_numpy(slices.images).float(), torch.from_numpy(slices.masks)
    device = torch.device("cpu")
    one = SlidingReconstructor(Unmixed(), tiny("infer.draws=2"), device, bf16=False)
    both = SlidingReconstructor(Unmixed(), tiny(TWO, "infer.draws=2"), device, bf16=False)
    stack = torch.stack([first, first.flip(2)], 1)
    alone, together = one(first, mask, ("a",)), both(stack, mask, ("a",))
    assert together.mean.shape == together.deviation.shape == stack.shape
    assert torch.equal(together.mean[:, 0], alone.mean)  # the first channel's noise is drawn first
    assert torch.equal(together.deviation[:, 0], alone.deviation)
    assert not torch.equal(together.mean[:, 1], alone.mean)


def test_the_map_is_the_mean_of_the_channels_residuals(tiny):
    rng = np.random.default_rng(0)
    x, healthy = (rng.normal(size=(3, 2, 8, 8)).astype(np.float32) for _ in range(2))
    mask, config = np.ones((3, 8, 8), bool), tiny("score.sign=bright").score
    each = [anomaly_map(x[:, c], healthy[:, c], mask, (1.0, 1.0, 1.0), config) for c in range(2)]
    found = anomaly_map(x, healthy, mask, (1.0, 1.0, 1.0), config)
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-6)


def test_a_scan_of_channels_is_scored_in_its_own_space(table, model):
    predictor = load_model(model, "cpu", ("infer.draws=2",))
    images = find_cases(table, channels=("t1", "t2"))[0].images
    result = predictor.predict(images)
    assert result.anomaly.shape == result.reconstruction.shape == result.uncertainty.shape == SHAPE
    assert (predictor.predict([str(path) for path in images]).anomaly == result.anomaly).all()
    swapped = predictor.predict((images[0], images[0]))
    assert not np.array_equal(swapped.anomaly, result.anomaly)  # the second channel counts


def test_another_number_of_channels_or_another_grid_is_refused(table, model, make_scan, tiny, make_model, tmp_path):
    predictor = load_model(model, "cpu")
    scan = make_scan(AFFINE, SHAPE)
    for wrong in (scan, [scan], [scan] * 3):
        with pytest.raises(InputError, match="the 2 channels t1, t2"):
            predictor.predict(wrong)
    with pytest.raises(InputError, match="sees one channel and was given 2"):
        load_model(make_model(tmp_path / "one", tiny()), "cpu").predict([scan, scan])
    with pytest.raises(GeometryError, match="shape"):
        predictor.predict([scan, make_scan(AFFINE, (17, 20, 11))])
    shifted = AFFINE + np.array([[0, 0, 0, 4.0], *np.zeros((3, 4))])
    with pytest.raises(GeometryError, match=r"channel .* mm away"):
        predictor.predict([scan, make_scan(shifted, SHAPE)])
    with pytest.raises(ConfigError, match="t1, t2 cannot be a MONAI bundle"):
        export_bundle(model, tmp_path / "bundle")
    with pytest.raises(ConfigError, match="trained as"):
        load_model(model, "cpu", ("data.channels=[t1, t2, flair]",))


def test_one_bad_channel_fails_its_scan_alone(model, make_scan, tmp_path):
    table = write_table(tmp_path, make_scan)
    (tmp_path / "s0_t2.nii.gz").unlink()
    nib.save(make_scan(AFFINE, (17, 20, 11)), tmp_path / "s1_t2.nii.gz")
    found = {outcome.case: outcome for outcome in infer(model, table, tmp_path / "out", device="cpu").cases}
    assert [found[f"s{k}_t1"].status for k in range(3)] == ["failed", "failed", "done"]
    assert "s0_t2.nii.gz" in found["s0_t1"].message
    assert "shape" in found["s1_t1"].message
    assert read_json(tmp_path / "out" / "s2_t1_anomaly.json")["further_channels"][0].endswith("s2_t2.nii.gz")
    nib.save(make_scan(AFFINE, SHAPE, seed=99), tmp_path / "s2_t2.nii.gz")
    again = infer(model, table, tmp_path / "out", device="cpu")
    assert again.done == 1  # another second channel is another scan


def command(*arguments):
    """Run a command line that must succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="maediff")
    assert result.exit_code == 0, result.output
    return result


def whole_job(table, config, folder, names):
    """Train, infer (with its plan) and report by the command line."""
    (folder / "config.yaml").write_text(config)
    channels = f"data.channels=[{', '.join(names)}]"
    command(
        "train", "-c", folder / "config.yaml", "--set", channels, "-i", table, "-o", folder / "run", "--device", "cpu"
    )
    scored = ("-m", folder / "run", "-i", table, "-o", folder / "out", "--device", "cpu")
    assert "windows" in command("infer", *scored, "--dry-run").output
    command("infer", *scored, "--report")
    assert "esearch use only" in (folder / "out" / "report.html").read_text()
    return find_cases(table, channels=names)


def test_train_calibrate_infer_and_report_by_the_command_line(table, tiny, tmp_path):
    cases = whole_job(table, dump_yaml(tiny()), tmp_path, ("t1", "t2"))
    command("calibrate", "-m", tmp_path / "run", "-i", table, "--device", "cpu")
    sidecar = read_json(tmp_path / "out" / f"{cases[0].id}_anomaly.json")
    assert sidecar["threshold"] is not None
    assert load_model(tmp_path / "run", "cpu").calibration.n_scans == 3
    assert "Input: the channels t1, t2 of a brain MRI" in command("info", tmp_path / "run").output


@pytest.mark.slow
@pytest.mark.skipif(not (MSLUB / "cases.csv").is_file(), reason="the MSLUB scans are not here")
def test_real_t1_t2_and_flair(tiny, tmp_path):
    cases = whole_job(MSLUB, dump_yaml(tiny("data.align=voxel")), tmp_path, ("t1", "t2", "flair"))
    scan = nib.load(cases[0].image)
    found = nib.load(tmp_path / "out" / f"{cases[0].id}_anomaly.nii.gz")
    assert found.shape == scan.shape
    np.testing.assert_array_equal(found.affine, scan.affine)
    assert np.asanyarray(found.dataobj).max() > 0
