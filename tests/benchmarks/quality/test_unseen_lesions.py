"""Lesions of the unseen families are what their names say, and lie where the truth says; no model runs here."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("benchmarks_importable")
SHAPE = (64, 80)


def module():
    return import_module("benchmarks.quality.unseen_lesions")


def brain_slice():
    """A disc of brain whose tissue is rough, brighter to the right, and as dark as fluid in the middle."""
    rows, columns = np.indices(SHAPE)
    brain = np.hypot(rows - 32, columns - 40) < 26
    tissue = 0.2 + (columns - 40) / 100 + np.random.default_rng(0).normal(0, 0.1, SHAPE)
    tissue[np.hypot(rows - 32, columns - 40) < 7] = -0.9
    return np.where(brain, tissue, -1).astype(np.float32), brain


def painted(family, seed=1):
    image, brain = brain_slice()
    changed, truth = module().paint(image, brain, family, np.random.default_rng(seed))
    return image, brain, changed, truth


@pytest.mark.parametrize("family", ["bright", "dark", "fluid", "misplaced", "squeezed", "smooth", "turned"])
@pytest.mark.parametrize("seed", range(5))
def test_only_the_lesion_and_its_soft_rim_change(family, seed):
    image, brain, changed, truth = painted(family, seed)
    change = np.abs(changed - image)
    assert truth.any()
    assert not (truth & ~brain).any()
    assert not change[~brain].any()
    assert (change[truth] > 1e-3).mean() > 0.8
    assert change[_distance(truth) > 5].max() < 0.05


def test_families_of_one_seed_share_place_and_shape():
    truths = [painted(family)[3] for family in module().FAMILIES]
    for truth in truths[1:]:
        np.testing.assert_array_equal(truth, truths[0])


def test_each_family_changes_what_its_name_says():
    def inside(family):
        image, brain, changed, truth = painted(family)
        return image, brain, changed, truth

    image, brain, changed, truth = inside("bright")
    assert (changed[truth] > image[truth]).all()
    image, brain, changed, truth = inside("dark")
    assert (changed[truth] <= image[truth]).all()
    image, brain, changed, truth = inside("fluid")
    core = _distance(~truth) > 2
    assert changed[core] == pytest.approx(np.quantile(image[brain], 0.05), abs=0.1)
    image, brain, changed, truth = inside("misplaced")
    assert changed[truth].mean() == pytest.approx(image[truth].mean(), abs=0.06)
    image, brain, changed, truth = inside("smooth")
    assert changed[core].std() < 0.6 * image[core].std()
    for family in ("squeezed", "turned"):  # no brightness that the brain does not have
        image, brain, changed, truth = inside(family)
        assert image[brain].min() - 1e-6 <= changed[core].min()
        assert changed[core].max() <= image[brain].max() + 1e-6


def test_turning_twice_is_the_identity():
    image, brain = brain_slice()
    unseen = module()
    spot = unseen.Spot(image, brain, (30, 50), np.ones(SHAPE, np.float32), np.random.default_rng(0))
    once = unseen.turned(spot)
    again = unseen.turned(unseen.Spot(once, brain, (30, 50), spot.alpha, spot.rng))
    inner = np.s_[5:55, 25:75]
    np.testing.assert_allclose(again[inner], image[inner], atol=1e-5)
    assert once[28, 47] == pytest.approx(image[32, 53], abs=1e-6)


def _distance(mask):
    from scipy import ndimage

    return ndimage.distance_transform_edt(~mask)


def scores_of(folder, subjects, monkeypatch, scored):
    """Stored scores of a run folder, where scoring a patient notes its name."""
    unseen = module()
    monkeypatch.setattr(unseen, "load", lambda *_: SimpleNamespace(residuals=None))
    monkeypatch.setattr(unseen, "scored", lambda case, _: scored.append(case.subject) or {"dark": {"t 30": 0.5}})
    return unseen.stored_scores(folder, (30,), [], [SimpleNamespace(subject=subject) for subject in subjects])


def test_a_patient_is_scored_once_until_the_weights_change(tmp_path, monkeypatch):
    weights, scored = tmp_path / "model" / "model.safetensors", []
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    scores_of(tmp_path, ["a"], monkeypatch, scored)
    found = scores_of(tmp_path, ["b", "a"], monkeypatch, scored)
    assert scored == ["a", "b"]
    assert list(found) == ["b", "a"]
    weights.write_bytes(b"second")
    scores_of(tmp_path, ["a"], monkeypatch, scored)
    assert scored == ["a", "b", "a"]


def test_rows_that_do_not_exist_are_refused():
    with pytest.raises(module().InputError, match=r"--row ddpm-lessons.seed1: there is no such row"):
        module()._row("ddpm-lessons.seed1")
    assert module()._row("ddpm-lesions.seed1").name == "ddpm-lesions"


def test_the_page_shows_what_is_stored():
    unseen = module()
    stored = unseen.RESULTS / unseen.BENCHMARK.results[0]
    page = (unseen.RESULTS.parents[1] / unseen.BENCHMARK.page).read_text(encoding="utf-8")
    shown = page.partition(unseen.BEGIN)[2].partition(unseen.END)[0].strip()
    assert shown == unseen.markdown(unseen.read_json(stored)["results"])
