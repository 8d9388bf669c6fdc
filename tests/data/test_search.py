"""A folder is searched for scans: voxels decide as well as names, nothing is dropped or taken without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff.data.cases import find_cases, search_cases
from maediff.data.search import content_of
from maediff.data.walk import walk
from maediff.errors import InputError

GRID = np.indices((16, 16, 16)) - 7.5
INSIDE = (GRID**2).sum(0) < 49
RNG = np.random.default_rng(0)
SCAN = (INSIDE * RNG.integers(100, 900, (16,) * 3)).astype(np.int16)
PARTS = (INSIDE * (1 + (GRID[0] > 0) + 2 * (GRID[1] > 0))).astype(np.uint8)
POINT = np.zeros((16,) * 3, np.uint8)
POINT[8, 8, 8] = 1
SOFT = np.where(INSIDE, RNG.random((16,) * 3), 0).astype(np.float32)
SHARES = np.clip(3 * SOFT - 1, 0, 1)


def save(root, **files):
    for name, data in files.items():
        put(root, name.replace("__", "/") + ".nii.gz", data)
    return root


def put(root, name, data):
    path = Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (SCAN, "scan"),
        (SCAN.astype(np.float32) / 7, "scan"),
        ((SCAN // 4).astype(np.uint8), "scan"),
        (SCAN - 1024, "scan"),
        (PARTS, "labels"),
        (PARTS.astype(np.float32), "labels"),
        (PARTS.astype(np.int16) * 500, "labels"),
        (np.where(INSIDE & (abs(GRID[0]) < 1), 1.37, PARTS).astype(np.float32), "labels"),
        (POINT, "labels"),
        (SHARES, "shares"),
        (100 * SHARES, "shares"),
        ((255 * SHARES).astype(np.uint8), "shares"),
        (np.where(INSIDE, PARTS, np.nan).astype(np.float32), "labels"),
        (PARTS.astype(np.int16) - 1, "labels"),
        (np.where(GRID[0] > 5, -1024, SCAN).astype(np.float32), "scan"),
        (0 * POINT, "unknown"),
    ],
)
def test_voxels_tell_scans_from_labels(tmp_path, data, content):
    assert content_of(put(tmp_path, "a.nii.gz", data)) == content


def test_a_file_that_changed_is_judged_again(tmp_path):
    assert content_of(put(tmp_path, "a.nii", SCAN)) == "scan"
    put(tmp_path, "a.nii", PARTS)
    os.utime(tmp_path / "a.nii", ns=(1, 1))
    assert content_of(tmp_path / "a.nii") == "labels"


def test_labels_of_a_training_layout_are_paired_and_never_scans(tmp_path):
    save(tmp_path, imagesTr__a_0000=SCAN, imagesTr__b_0000=SCAN, labelsTr__a=PARTS, labelsTr__b=0 * PARTS)
    found = search_cases(tmp_path)
    assert [(c.id, c.label) for c in found.cases] == [
        (f"{name}_0000", tmp_path / "labelsTr" / f"{name}.nii.gz") for name in "ab"
    ]
    assert found.left_out == ()


@pytest.mark.parametrize("name", ["aseg", "aparc+aseg", "wmparc", "anything", "consensus", "sub-1_dseg"])
def test_label_maps_are_left_out_whatever_their_names(tmp_path, name, caplog):
    put(tmp_path, f"{name}.nii.gz", PARTS)
    put(tmp_path, "t1.nii.gz", SCAN)
    found = search_cases(tmp_path)
    assert [case.id for case in found.cases] == ["t1"]
    assert [item.path.name for item in found.left_out] == [f"{name}.nii.gz"]
    assert "label map by its voxels" in found.left_out[0].reason
    assert f"{name}.nii.gz (a mask or label map" in caplog.text


def test_shares_are_left_out_by_name_or_by_their_voxels(tmp_path):
    save(tmp_path, t1=SCAN, T1_brain_pve_0=SOFT, some_tissue=SHARES, scaled_t1=SOFT)
    assert [case.id for case in find_cases(tmp_path)] == ["scaled_t1", "t1"]


@pytest.mark.parametrize(
    "name",
    [
        "healthy_no_lesion",
        "brainmask",
        "mask_study_t1",
        "lesion-001_t1",
        "anomaly_t1",
        "uncertainty_01",
        "svr_reconstruction",
    ],
)
def test_scans_are_taken_whatever_their_names(tmp_path, name):
    put(tmp_path, f"{name}.nii.gz", SCAN)
    assert [case.id for case in find_cases(tmp_path)] == [name]


def test_a_pattern_overrules_and_says_what_there_is(tmp_path):
    save(tmp_path, a_t1=SCAN, b_t1=SCAN, sub__aseg=PARTS)
    assert [c.id for c in search_cases(tmp_path, pattern="*").cases] == ["a_t1", "b_t1", "aseg"]
    assert [c.id for c in search_cases(tmp_path, pattern="a_*").cases] == ["a_t1"]
    assert [c.id for c in search_cases(tmp_path, pattern="sub/*").cases] == ["aseg"]
    with pytest.raises(InputError, match="holds no scans"):
        search_cases(tmp_path, pattern="*_flair*")
    (tmp_path / "x.csv").write_text("image\na_t1.nii.gz\n")
    with pytest.raises(InputError, match="is for a folder of scans"):
        search_cases(tmp_path / "x.csv", pattern="*")


def test_a_folder_without_scans_says_what_it_holds(tmp_path):
    put(tmp_path, "aseg.nii.gz", PARTS)
    (tmp_path / "orig.mgz").touch()
    with pytest.raises(InputError, match=r"left out: aseg\.nii\.gz .*1 \.mgz files must be converted"):
        find_cases(tmp_path)


def test_links_are_followed_once_and_loops_end(tmp_path):
    put(tmp_path, "elsewhere/b.nii", SCAN)
    put(tmp_path, "root/a.nii", SCAN)
    root = tmp_path / "root"
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "alias.nii").symlink_to("a.nii")
    (root / "annexed_t1.nii").symlink_to(".git/annex/objects/MD5E-s1.nii")
    put(root, ".git/annex/objects/c.nii", SCAN)
    found = search_cases(root)
    assert [case.id for case in found.cases] == ["a", "b", "annexed_t1"]
    assert [(item.path.name, item.reason) for item in found.left_out] == [
        ("alias.nii", "a link to a.nii, which is listed itself")
    ]


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch, caplog):
    put(tmp_path, "a.nii", SCAN)
    put(tmp_path, "secret/b.nii", SCAN)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = search_cases(tmp_path)
    assert [item.reason for item in found.left_out] == ["cannot be read: Permission denied"]
    assert "secret (cannot be read: Permission denied)" in caplog.text


def test_results_below_the_scans_are_not_searched(tmp_path):
    save(tmp_path, a=SCAN, out__a_prepared=SCAN, mine__raw__c=SCAN)
    (tmp_path / "out" / "run.json").write_text(json.dumps({"command": "prepare", "versions": {}}))
    found = search_cases(tmp_path, exclude=[tmp_path / "mine"])
    assert [case.id for case in found.cases] == ["a"]
    assert [(item.path.name, item.reason) for item in found.left_out] == [("out", "results of maediff prepare")]


def test_prepare_into_a_folder_below_its_scans_can_be_repeated(tmp_path):
    mask = put(tmp_path, "raw/a_brainmask.nii.gz", INSIDE.astype(np.uint8))
    put(tmp_path, "raw/a.nii.gz", SCAN + 1)
    assert mask.is_file()
    step = f"prepare -i {tmp_path}/raw -o {tmp_path}/raw/prepared --bias none --register none".split()
    for said in ("1 done, 0 skipped", "0 done, 1 skipped"):
        result = CliRunner().invoke(app, step)
        assert result.exit_code == 0, result.output
        assert said in result.output


def test_names_that_are_not_utf8_are_read_and_written(tmp_path):
    try:
        put(tmp_path, os.fsdecode(b"M\xfcller_t1.nii.gz"), SCAN)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (case,) = find_cases(tmp_path)
    assert (case.id, case.subject, case.stem) == ("Müller_t1",) * 3
    assert case.image.is_file()


def test_walk_lists_a_file_as_it_is(tmp_path):
    put(tmp_path, "x.nii", SCAN)
    put(tmp_path, "__MACOSX/._x.nii", SCAN)
    assert walk(tmp_path).files == (tmp_path / "x.nii",)
