"""Slices to train on, and their neighbours, as they lie in the scans."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from maediff.data.cases import find_cases
from maediff.data.slices import fit_size, healthy_slices
from maediff.volume import read_nifti
from maediff.working import prepare

AFFINE, SHAPE = np.array([[8.0, 0, 0, -64], [0, 8, 0, -80], [0, 0, 10, -55], [0, 0, 0, 1]]), (17, 20, 12)
LESION = 6
"""Slice of the second scan that holds a lesion."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory, make_scan):
    """Two scans of one person; the second has a label."""
    folder = tmp_path_factory.mktemp("scans")
    label = np.zeros(SHAPE, np.uint8)
    label[8, 10, LESION] = 1
    for name, seed in (("a", 0), ("b", 1)):
        nib.save(make_scan(AFFINE, SHAPE, seed=seed), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(label, AFFINE), folder / "b_label.nii.gz")
    (folder / "cases.csv").write_text("image,label,subject\na.nii.gz,,s\nb.nii.gz,b_label.nii.gz,s\n")
    return find_cases(folder / "cases.csv")


def stacks(cases, config):
    for case in cases:
        prepared = prepare(read_nifti(case.image), None, config.data)
        yield prepared, fit_size(prepared.slices, config.data.size, -1.0).astype(np.float16)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_places_lead_to_the_slices_before_and_after_in_the_same_scan(tiny, cases, count):
    config = tiny(f"data.neighbours={count}", "data.min_brain_fraction=0.1")
    found = healthy_slices(cases, config.data)
    assert len(found) == len(found.subjects) == len(found.places)
    assert found.places.shape[1] == 1 + 2 * count
    rows = iter(found.places)
    left_out = without_brain = 0
    for number, (prepared, images) in enumerate(stacks(cases, config)):
        has_brain = prepared.mask.mean((1, 2)) >= 0.1
        for index in np.flatnonzero(has_brain):
            if number == 1 and abs(index - LESION) <= count:
                left_out += 1
                continue
            row = next(rows)
            for place, offset in zip(row, (0, *config.data.offsets), strict=True):
                if not 0 <= index + offset < len(images):
                    assert place == -1
                    continue
                np.testing.assert_array_equal(found.images[place], images[index + offset])
                without_brain += not has_brain[index + offset]
    assert next(rows, None) is None
    assert found.left_out == left_out > 0
    assert without_brain > 0  # slices that are not trained on are seen as neighbours


def test_without_neighbours_every_image_is_trained_on(tiny, cases):
    found = healthy_slices(cases, tiny().data)
    assert found.places is None
    assert len(found) == len(found.images) == len(found.subjects)
    assert found.left_out == 1


def test_the_cache_holds_the_places_and_is_not_shared_with_another_number(tiny, cases, tmp_path):
    read = []
    for count in (1, 1, 0, 2, 0, 2):
        config = tiny(f"data.neighbours={count}").data
        stored, fresh = healthy_slices(cases, config, tmp_path, read.append), healthy_slices(cases, config)
        for name in ("images", "masks", "places"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(fresh, name))
        assert (stored.subjects, stored.left_out) == (fresh.subjects, fresh.left_out)
    assert len(read) == 2 * 3


def test_the_cache_tells_a_mask_from_a_label(tiny, cases, tmp_path):
    scan = nib.load(cases[1].image)
    path = tmp_path / "brain.nii.gz"
    nib.save(nib.Nifti1Image((scan.get_fdata() > 0).astype(np.uint8), scan.affine), path)
    masked, labelled = (replace(cases[1], mask=mask, label=label) for mask, label in ((path, None), (None, path)))
    whole = healthy_slices([cases[0], masked], tiny().data, tmp_path)
    assert whole.left_out == 0
    assert healthy_slices([cases[0], labelled], tiny().data, tmp_path).left_out > 0


def test_the_cache_is_not_shared_with_another_version(tiny, cases, tmp_path, monkeypatch):
    read = []
    for version in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr("maediff.data.slices.__version__", version)
        healthy_slices(cases[:1], tiny().data, tmp_path, read.append)
    assert read == ["a", "a"]
