"""Healthy residuals by place: their moments, the maps measured by them, and the promise of a threshold from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import reduce
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load, save

from maediff import files, model_folder, staging
from maediff.calibration import calibrate
from maediff.config import load_config
from maediff.data.cases import Case, find_cases
from maediff.errors import ConfigError, GeometryError, InputError, ModelError
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.inference.locations import fit_locations, left_out_maps
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.infer import infer
from maediff.methods.build import check_trainable
from maediff.model_folder import describe_model, load_model_folder, update_calibration
from maediff.normative import CELL_MM, UNITS, Locations, residuals_by_place
from maediff.volume import from_image, read_nifti
from maediff.working.spatial import WorkingGrid, is_volumetric

SHAPE = (12, 14, 10)  # x, y, slice


def grid_of(affine, shape=SHAPE):
    return WorkingGrid(affine, shape, affine, shape)


def cells(first=(-24, -28, -20), step=CELL_MM):
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = first
    return affine


@pytest.fixture(scope="module")
def residuals():
    """Residuals of six scans, (S, H, W), that share a grid of the cells' own spacing, and their brain."""
    rng = np.random.default_rng(3)
    x, y, z = (np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2) / 5
    brain = np.moveaxis(x**2 + y**2 + z**2 < 1, 2, 0)
    return rng.gamma(2.0, 0.1, (6, *brain.shape)).astype(np.float32), brain


def total(residuals, brain, grid=None, **settings):
    grid = grid or grid_of(cells())
    return reduce(Locations.plus, (residuals_by_place(scan, brain, grid, **settings) for scan in residuals))


def apart(residuals, brain):
    """Moments of scans that lie side by side."""
    return [residuals_by_place(scan, brain, grid_of(cells((8 * k, -28, -20)))) for k, scan in enumerate(residuals)]


def on_grid(found, part):
    """Cut what a grid of scans like `residuals` covers out of the cells, (S, H, W)."""
    first = 20 + np.rint(np.array([-24, -28, -20]) / CELL_MM).astype(int) - found.corner
    box = tuple(slice(int(start), int(start) + n) for start, n in zip(first, SHAPE, strict=True))
    return np.moveaxis(np.pad(part, 20)[box], 2, 0)


# Moments


def test_on_a_shared_grid_they_are_numpys_mean_and_variance(residuals):
    scans, brain = residuals
    found = total(scans, brain, smooth_mm=0.0)
    weight = on_grid(found, found.weight)
    np.testing.assert_allclose(weight, len(scans) * brain)
    np.testing.assert_allclose(on_grid(found, found.mean)[brain], scans.mean(0)[brain], rtol=1e-6)
    variance = on_grid(found, found.squares)[brain] / weight[brain]
    np.testing.assert_allclose(variance, scans.var(0)[brain], rtol=1e-4, atol=1e-8)


def test_smoothed_they_hold_the_spread_within_scans_as_well(residuals):
    scans, brain = residuals
    found = total([scans[0]], brain, smooth_mm=150.0)  # a window that sees the whole brain alike
    inside = scans[0][brain]
    middle = found.weight > 0.9 * found.weight.max()
    np.testing.assert_allclose(found.mean[middle], inside.mean(), rtol=0.02)
    np.testing.assert_allclose(found.squares[middle] / found.weight[middle], inside.var(), rtol=0.05)


def test_the_order_of_scans_does_not_matter_though_their_boxes_differ(residuals):
    scans, brain = residuals
    parts = apart(scans[:3], brain)
    first, *others = (reduce(Locations.plus, order) for order in permutations(parts))
    for other in others:
        assert other.corner == first.corner
        for name in ("weight", "mean", "squares"):
            np.testing.assert_allclose(getattr(other, name), getattr(first, name), atol=1e-12)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_how_a_scan_is_stored_does_not_matter(residuals, axes):
    scans, brain = residuals
    affine = cells()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    turned = [np.flip(part, [(1, 2, 0)[axis] for axis in axes]) for part in (scans[0], brain)]
    straight, other = (
        residuals_by_place(scans[0], brain, grid_of(cells())),
        residuals_by_place(*turned, grid_of(affine)),
    )
    assert straight.corner == other.corner
    np.testing.assert_allclose(other.mean, straight.mean, atol=1e-6)
    np.testing.assert_allclose(other.squares, straight.squares, atol=1e-6)


def test_taking_a_scan_away_is_never_having_had_it(residuals):
    scans, brain = residuals
    parts = apart(scans, brain)
    left, wanted = reduce(Locations.plus, parts).minus(parts[2]), reduce(Locations.plus, parts[:2] + parts[3:])
    low, high = np.array(left.corner), np.add(left.corner, left.weight.shape)
    assert left.n_scans == wanted.n_scans == 5
    for one, two in zip(left._within(low, high), wanted._within(low, high), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-10)


# Maps


def test_where_all_places_are_alike_the_ranking_stays(residuals):
    scans, brain = residuals
    alike = total([np.full_like(scans[0], 0.3)] * 5, brain)
    found = alike.standardised(scans[1], brain, grid_of(cells()))
    assert (found[~brain] == 0).all()
    assert (np.argsort(found[brain]) == np.argsort(scans[1][brain])).all()


def test_a_place_where_healthy_residuals_are_high_and_vary_counts_less(residuals):
    scans, brain = residuals
    left = np.arange(brain.shape[1])[None, :, None] < brain.shape[1] // 2
    healthy = np.where(left, 4 * scans, scans)
    same = np.full_like(scans[0], 1.0)
    found = total(healthy, brain).standardised(same, brain, grid_of(cells()))
    assert found[brain & left].mean() < 0.4 * found[brain & ~left].mean()


def test_they_tell_standard_deviations_above_the_healthy_mean(residuals):
    scans, brain = residuals
    many = np.concatenate([scans, np.random.default_rng(4).gamma(2.0, 0.1, (60, *brain.shape))]).astype(np.float32)
    found = total(many[1:], brain).standardised(many[0], brain, grid_of(cells()))
    wanted = (many[0] - 0.2) / np.sqrt(2 * 0.1**2)  # of the gamma distribution
    np.testing.assert_allclose(found[brain], wanted[brain], atol=0.15, rtol=0.1)


def test_where_no_healthy_scan_reaches_the_whole_brain_speaks(residuals):
    scans, brain = residuals
    found = total(scans, brain)
    away = grid_of(cells((500, 500, 500)))
    values = found.standardised(scans[0], brain, away)
    mean = np.average(found.mean, weights=found.weight)
    spread = found.squares / np.maximum(found.weight, 1e-12) + (found.mean - mean) ** 2
    std = np.sqrt(np.average(spread, weights=found.weight))
    np.testing.assert_allclose(values[brain], (scans[0][brain] - mean) / std, rtol=1e-4, atol=1e-4)


# The file


def test_bytes_and_back(residuals):
    found = total(*residuals)
    again = Locations.from_bytes(found.to_bytes())
    assert (again.corner, again.n_scans, again.cell_mm, again.smooth_mm) == (found.corner, 6, 4.0, found.smooth_mm)
    np.testing.assert_allclose(again.mean, found.mean, atol=1e-6)
    assert again.to_bytes() == found.to_bytes()


DAMAGE = {
    "not finite": lambda parts: parts["mean"].fill(np.nan),
    "negative": lambda parts: parts["weight"].fill(-1),
    "empty": lambda parts: parts["weight"].fill(0),
    "shapes": lambda parts: parts.update(mean=parts["mean"][1:]),
    "corner": lambda parts: parts.update(corner=parts["corner"][1:]),
    "cells of no size": lambda parts: parts["cell_mm"].fill(0),
    "missing": lambda parts: parts.pop("squares"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_statistics_are_refused(residuals, damage):
    parts = {name: part.copy() for name, part in load(total(*residuals).to_bytes()).items()}
    DAMAGE[damage](parts)
    with pytest.raises(ModelError, match=r"by place are damaged .*run `maediff calibrate --locations` again"):
        Locations.from_bytes(save(parts))


def test_cut_off_statistics_are_refused(residuals):
    content = total(*residuals).to_bytes()
    for length in (0, 7, 40, len(content) - 1):
        with pytest.raises(ModelError, match="damaged"):
            Locations.from_bytes(content[:length])


# The promise


@dataclass(frozen=True)
class Told:
    """Stands for a predictor whose residuals are given."""

    residuals: Any
    brain: Any
    locations: Locations | None = None

    def prepare(self, images: Any, mask: Any) -> Any:
        prepared = SimpleNamespace(mask=self.brain, native_mask=self.brain, grid=grid_of(cells()))
        return SimpleNamespace(prepared=prepared, number=int(images[0].name))

    def residual(self, scan: Any) -> Any:
        return self.residuals[scan.number]

    def map_of(self, prepared: Any, residual: Any) -> Any:
        return self.locations.standardised(residual, prepared.mask, prepared.grid)


def test_the_threshold_keeps_its_promise_on_scans_to_come(residuals, tmp_path):
    """Statistics that hold a scan's own residual make it look more usual than it is, and the threshold too low."""
    brain, grid = residuals[1], grid_of(cells())
    rng = np.random.default_rng(0)
    scale = (0.05 + 0.3 * (np.arange(brain.shape[1]) < 4))[None, :, None]

    def scan():  # coarse, so that one scan moves the statistics of a place
        coarse = rng.gamma(1.0, 1.0, [n // 4 + 1 for n in brain.shape])
        fine = np.kron(coarse, np.ones((4, 4, 4)))[tuple(map(slice, brain.shape))]
        return (fine * scale).astype(np.float32)

    cases = [Case(str(k), Path(str(k)), None, None, str(k), None, None, str(k)) for k in range(5)]
    rates = []
    for _ in range(6):
        told = Told([scan() for _ in cases], brain)
        known = fit_locations(told, cases, tmp_path)
        found = calibrate(left_out_maps(told, cases, known, tmp_path), 0.05)
        own = calibrate(((known.standardised(values, brain, grid), brain, 0.0) for values in told.residuals), 0.05)
        assert own.threshold < found.threshold
        unseen = [known.standardised(scan(), brain, grid)[brain] for _ in range(30)]
        rates.append(np.mean([np.mean(values > found.threshold) for values in unseen]))
    assert np.mean(rates) == pytest.approx(0.05, rel=0.3)


# Whole jobs


@pytest.fixture(scope="module")
def place(make_model, make_scan, tiny, tmp_path_factory):
    """A model of random weights and five healthy scans of four subjects in MNI space, one of them with two sessions."""
    folder = tmp_path_factory.mktemp("place")
    rows = ["image,subject"]
    affine = np.array([[6.0, 0, 0, -63], [0, 6, 0, -78], [0, 0, 6, -54], [0, 0, 0, 1]])
    for number, subject in enumerate("aabcd"):
        nib.save(make_scan(affine, (22, 27, 19), (4, 4), seed=number), folder / f"{number}.nii.gz")
        rows.append(f"{number}.nii.gz,{subject}")
    (folder / "healthy.csv").write_text("\n".join(rows))
    nib.save(make_scan(affine, (22, 27, 19), (1, 1), seed=9), folder / "elsewhere.nii.gz")
    (folder / "new.csv").write_text("image\n0.nii.gz\nelsewhere.nii.gz\n")
    make_model(folder / "model", tiny("data.align=world", "partition.stride=16"))
    (folder / "plain.safetensors").write_bytes((folder / "model" / staging.WEIGHTS).read_bytes())
    make_model(folder / "before", tiny("data.align=world", "partition.stride=16"))
    calibrate_model(folder / "model", folder / "healthy.csv", device="cpu", locations=True)
    return folder


def test_calibration_by_place_is_part_of_the_model(place):
    stored, facts = load_model_folder(place / "model"), describe_model(place / "model")
    assert stored.config.score.locations is True
    assert stored.calibration["n_scans"] == 5
    assert facts["locations"] == {"scans": 5, "cell_mm": 4, "smooth_mm": 8}
    assert f"{UNITS}, known from 5 healthy scans" in stored.card
    assert Locations.from_bytes(stored.locations).n_scans == 5
    assert (place / "model" / staging.WEIGHTS).read_bytes() == (place / "plain.safetensors").read_bytes()


def test_a_scan_is_measured_without_any_scan_of_its_subject(place, tmp_path):
    predictor = load_model(place / "model", "cpu")
    predictor = replace(predictor, locations=None)
    cases = find_cases(place / "healthy.csv")
    known = fit_locations(predictor, cases, tmp_path)
    found = list(left_out_maps(predictor, cases, known, tmp_path))
    others = [residuals_by_place(predictor.residual(s), s.prepared.mask, s.prepared.grid) for s in
              (predictor.prepare(case.images) for case in cases[2:])]  # fmt: skip
    refitted = replace(predictor, locations=reduce(Locations.plus, others))
    for case, (values, brain, score) in zip(cases[:2], found, strict=False):
        wanted = refitted.predict(case.images)
        np.testing.assert_allclose(values, wanted.anomaly, atol=1e-4)
        assert (brain == wanted.brain_mask).all()
        assert score == pytest.approx(wanted.score, rel=1e-4)
    scores = calibrate(found, 0.01).case_scores
    assert scores == pytest.approx(load_model(place / "model", "cpu").calibration.case_scores)


def test_maps_say_their_units_and_a_scan_from_elsewhere_fails_alone(place, tmp_path):
    summary = infer(place / "model", place / "new.csv", tmp_path / "out", device="cpu")
    assert (summary.done, summary.failed) == (1, 1)
    assert "codes [1, 1]" in summary.cases[1].message
    assert "score.locations needs scans in a template's space" in summary.cases[1].message
    assert read_json(tmp_path / "out" / "0_anomaly.json")["units"] == UNITS
    values = read_nifti(tmp_path / "out" / "0_anomaly.nii.gz").data
    assert values.min() == 0
    assert values.max() > 1
    with pytest.raises(GeometryError, match=r"score\.locations needs"):
        load_model(place / "model", "cpu").predict(place / "elsewhere.nii.gz")


def test_switched_off_the_maps_are_those_of_before_without_a_threshold(place):
    off = load_model(place / "model", "cpu", ("score.locations=false",))
    before = load_model(place / "before", "cpu")
    found = off.predict(place / "elsewhere.nii.gz")
    assert (found.anomaly == before.predict(place / "elsewhere.nii.gz").anomaly).all()
    assert found.threshold is None
    assert "working units" in found.units


def test_settings_that_do_not_fit_are_refused(place, tiny):
    with pytest.raises(ConfigError, match=r"residuals by place do not apply; add score\.locations=false"):
        load_model(place / "model", "cpu", ("infer.draws=2",))
    assert load_model(place / "model", "cpu", ("score.median_mm=20",)).calibration is None
    with pytest.raises(ConfigError, match=r"this model does not have; run `maediff calibrate --locations`"):
        load_model(place / "before", "cpu", ("score.locations=true",))
    with pytest.raises(ConfigError, match="which a model gets after training"):
        check_trainable(tiny("score.locations=true"))
    with pytest.raises(ConfigError, match="methods that reconstruct, not with 'zscore'"):
        load_config("quick", ["method=zscore", "score.locations=true"])


def test_too_few_subjects_or_another_space_change_nothing(place, tmp_path):
    hashed = model_folder.verify_model_folder(place / "before")
    rows = [f"{place}/{number}.nii.gz,{subject}" for number, subject in enumerate("aabc")]
    (tmp_path / "few.csv").write_text("\n".join(["image,subject", *rows]))
    with pytest.raises(InputError, match="3 subjects are too few"):
        calibrate_model(place / "before", tmp_path / "few.csv", device="cpu", locations=True)
    rows = (place / "healthy.csv").read_text().replace("\n", f"\n{place}/")
    (tmp_path / "mixed.csv").write_text(f"{rows}\n{place}/elsewhere.nii.gz,e")
    with pytest.raises(GeometryError, match=r"score\.locations needs"):
        calibrate_model(place / "before", tmp_path / "mixed.csv", device="cpu", locations=True)
    assert model_folder.verify_model_folder(place / "before") == hashed


@pytest.fixture
def copy(place, tmp_path):
    (tmp_path / "model").mkdir()
    for path in (place / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model"


def test_a_calibration_without_places_removes_earlier_ones(place, copy):
    found = calibrate_model(copy, place / "healthy.csv", device="cpu")
    stored = load_model_folder(copy)
    assert stored.locations is None
    assert stored.config.score.locations is False
    assert sorted(path.name for path in copy.iterdir()) == sorted([*staging.FILES, staging.CHECKSUMS])
    assert "by place" not in stored.card
    assert load_model(copy, "cpu").predict(place / "0.nii.gz").threshold == found.threshold
    assert describe_model(copy)["locations"] is None


def test_statistics_that_were_edited_or_are_gone_are_refused(copy):
    content = (copy / staging.LOCATIONS).read_bytes()
    (copy / staging.LOCATIONS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match="does not fit its checksum"):
        load_model(copy, "cpu")
    (copy / staging.LOCATIONS).unlink()
    with pytest.raises(ModelError, match="is missing"):
        load_model(copy, "cpu")


def test_killed_at_any_moment_a_calibration_is_in_whole_or_not_at_all(copy, monkeypatch):
    """Threshold, statistics, configuration and card belong together: a mixture of two calibrations would lie."""
    old, real = load_model_folder(copy), os.replace
    states = []
    for cut in range(1, 20):
        calls = []

        def replaced(source, target, cut=cut, calls=calls):
            calls.append(target)
            if len(calls) == cut:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", replaced)
            try:
                update_calibration(copy, {"threshold": 0.5}, card="# New\n")
                break
            except KeyboardInterrupt:
                pass
        found = load_model_folder(copy)
        new = found.calibration == {"threshold": 0.5}
        assert found.calibration == ({"threshold": 0.5} if new else old.calibration)
        assert found.card == ("# New\n" if new else old.card)
        assert found.locations == (None if new else old.locations)
        assert found.config.score.locations is not new
        states.append(new)
        update_calibration(copy, old.calibration, card=old.card, locations=old.locations)
        assert sorted(path.name for path in copy.iterdir()) == sorted(
            [*staging.FILES, staging.LOCATIONS, staging.CHECKSUMS]
        )
    assert states == sorted(states)  # old until a moment, new from then on
    assert set(states) == {False, True}
    assert load_model_folder(copy).calibration == {"threshold": 0.5}


def test_residuals_by_place_take_the_first_of_several_orientations(place, make_model, make_scan, tiny, tmp_path):
    orientations = "infer.orientations=[axial, coronal, sagittal]"
    folder = make_model(tmp_path / "model", tiny("data.align=world", "partition.stride=16", orientations))
    calibrate_model(folder, place / "healthy.csv", device="cpu", locations=True)
    affine = np.array([[2.5, 0, 0, -63], [0, 2.5, 0, -78], [0, 0, 2.5, -54], [0, 0, 0, 1]])
    fine = make_scan(affine, (53, 65, 46), (4, 4))
    assert is_volumetric(from_image(fine), fine.get_fdata() > 0)
    found = load_model(folder, "cpu").predict(fine)
    assert (found.anomaly == load_model(place / "model", "cpu").predict(fine).anomaly).all()
    assert found.steps["orientations"] == ["axial"]
    assert found.form == "stack"
