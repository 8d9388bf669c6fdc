"""Cases whose files cannot be read are told before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from maediff.data.cases import find_cases
from maediff.data.check import fault


@pytest.fixture
def case(tmp_path):
    for name in ("s1_flair", "s1_t1"):
        image = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "s1_mask.nii.gz")
    (tmp_path / "cases.csv").write_text(
        "image_flair,image_t1,mask\ns1_flair.nii.gz,s1_t1.nii.gz,s1_mask.nii.gz\n", encoding="utf-8"
    )
    return find_cases(tmp_path / "cases.csv", channels=("flair", "t1"))[0]


def test_a_case_that_can_be_read_has_no_fault(case):
    assert fault(case) is None
    assert fault(replace(case, mask=None)) is None


@pytest.mark.parametrize("name", ["s1_flair", "s1_t1", "s1_mask"])
def test_each_of_its_files_is_read(case, tmp_path, name):
    (tmp_path / f"{name}.nii.gz").write_bytes(b"no scan")
    wrong = fault(case)
    assert wrong is not None
    assert name in wrong
    assert "\n" not in wrong


def test_an_empty_mask_and_a_missing_file_are_faults(case, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "s1_mask.nii.gz")
    assert fault(case) is not None
    (tmp_path / "s1_flair.nii.gz").unlink()
    assert "s1_flair" in (fault(case) or "")
