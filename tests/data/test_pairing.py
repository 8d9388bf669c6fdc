"""Masks, labels and references belong to a scan of the same person, session and voxel grid, or to none."""

from __future__ import annotations

import json

import pytest

from maediff.data.cases import find_cases
from maediff.data.pairing import fits
from maediff.evaluation.reference import _names_scan

MNI = "space-MNI152NLin2009cAsym"


def data_set(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0"}))
    return {case.id: case for case in find_cases(root)}


@pytest.mark.parametrize(
    ("scan", "other", "expected"),
    [
        ("sub-1_T1w", "sub-1_desc-brain_mask", True),
        ("sub-1_desc-preproc_T1w", "sub-1_desc-brain_mask", True),
        ("sub-1_T1w", "sub-1_space-T1w_desc-brain_mask", True),
        ("sub-1_T1w", "sub-1_space-orig_desc-brain_mask", True),
        ("sub-1_FLAIR", "sub-1_space-T1w_desc-brain_mask", False),
        (f"sub-1_{MNI}_T1w", "sub-1_desc-brain_mask", False),
        ("sub-1_T1w", f"sub-1_{MNI}_desc-brain_mask", False),
        (f"sub-1_{MNI}_res-2_desc-preproc_T1w", f"sub-1_{MNI}_res-2_desc-brain_mask", True),
        (f"sub-1_{MNI}_res-2_T1w", f"sub-1_{MNI}_res-1_desc-brain_mask", False),
        (f"sub-1_{MNI}_res-2_T1w", f"sub-1_{MNI}_desc-brain_mask", False),
        ("sub-1_ses-1_T1w", "sub-1_ses-2_desc-brain_mask", False),
        ("sub-1_run-1_T1w", "sub-1_run-2_desc-brain_mask", False),
        ("sub-1_T1w", "sub-10_desc-brain_mask", False),
        ("sub-1_run-01_T1w", "sub-1_run-1_desc-brain_mask", True),
        ("sub-1_T1w", "sub-1_T1w_brainmask", True),
        ("sub-1_T1w", "sub-1_T2w_desc-brain_mask", False),
        ("sub-1_FLAIR", "sub-1_T1w_label-lesion_roi", False),
        ("sub-1_T1w", "sub-1_mod-T1w_desc-brain_mask", True),
        ("sub-1_T1w", "sub-1_mod-T2w_desc-brain_mask", False),
        ("sub-1_space-P_cohort-1_T1w", "sub-1_space-P_cohort-2_desc-brain_mask", False),
    ],
)
def test_names_fit_on_the_same_grid_only(scan, other, expected):
    assert fits(scan, other) is expected


def test_a_template_scan_never_gets_the_native_mask(tmp_path, caplog):
    cases = data_set(
        tmp_path,
        "sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
        f"sub-1/anat/sub-1_{MNI}_res-2_desc-preproc_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        "sub-1/anat/sub-1_label-lesion_mask.nii.gz",
    )
    native, template = cases["sub-1_desc-preproc_T1w"], cases[f"sub-1_{MNI}_res-2_desc-preproc_T1w"]
    assert native.mask.name == "sub-1_desc-brain_mask.nii.gz"
    assert native.label.name == "sub-1_label-lesion_mask.nii.gz"
    assert (template.mask, template.label) == (None, None)
    assert "is of another space, resolution or acquisition" in caplog.text


def test_each_grid_gets_its_own_mask_and_label(tmp_path):
    cases = data_set(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        f"sub-1/anat/sub-1_{MNI}_T1w.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        f"derivatives/x/sub-1/anat/sub-1_{MNI}_desc-brain_mask.nii.gz",
        f"derivatives/x/sub-1/anat/sub-1_{MNI}_label-L_desc-T1lesion_mask.nii.gz",
    )
    assert cases["sub-1_T1w"].mask.name == "sub-1_desc-brain_mask.nii.gz"
    assert cases["sub-1_T1w"].label is None
    assert cases[f"sub-1_{MNI}_T1w"].mask.name == f"sub-1_{MNI}_desc-brain_mask.nii.gz"
    assert cases[f"sub-1_{MNI}_T1w"].label.name == f"sub-1_{MNI}_label-L_desc-T1lesion_mask.nii.gz"


def test_a_mask_that_may_be_of_either_of_two_scans_is_of_none(tmp_path, caplog):
    cases = data_set(
        tmp_path,
        "sub-1/anat/sub-1_run-1_T1w.nii.gz",
        "sub-1/anat/sub-1_run-2_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-brain_mask.nii.gz",
    )
    assert [case.mask for case in cases.values()] == [None, None]
    assert "may belong to sub-1_run-1_T1w or to sub-1_run-2_T1w" in caplog.text


def test_a_mask_that_was_not_fetched_is_paired_and_fails_its_scan(tmp_path):
    path = tmp_path / "sub-1/anat/sub-1_desc-brain_mask.nii.gz"
    path.parent.mkdir(parents=True)
    path.symlink_to("../../.git/annex/objects/x.nii.gz")
    assert data_set(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")["sub-1_T1w"].mask == path


def test_a_scan_in_two_files_is_one(tmp_path, caplog):
    cases = data_set(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T1w.nii.gz")
    assert [case.image.name for case in cases.values()] == ["sub-1_T1w.nii.gz"]
    assert "the same scan is there as sub-1_T1w.nii.gz" in caplog.text


@pytest.mark.parametrize(
    ("label", "scan", "expected"),
    [
        ("p1", "p1_t1", True),
        ("p1", "p10_t1", False),
        ("case_001", "case_001_0000", True),
        ("BraTS-001", "BraTS-001-t2f", True),
        ("p1", "p1_followup_t1", False),
        ("sub-1", "sub-1_T1w", True),
        ("sub-1", f"sub-1_{MNI}_T1w", False),
        (f"sub-1_{MNI}", f"sub-1_{MNI}_desc-preproc_T1w", True),
        ("sub-1", "sub-1_ses-2_T1w", False),
    ],
)
def test_a_reference_names_its_scan_and_no_other(label, scan, expected):
    assert _names_scan(label, scan) is expected
