"""NIfTI files as real tools leave them: read with the right voxels and a note, or refused with the reason."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from maediff.errors import InputError
from maediff.volume import read_nifti

DATA = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def raw(kind=nib.Nifti1Image, offset=None, gap=4):
    """Bytes of a file whose header states an offset, with a gap before the voxels."""
    image = kind(DATA, np.eye(4))
    header = image.header.copy()
    content = image.to_bytes()
    size = len(header.binaryblock)
    header["vox_offset"] = header.single_vox_offset if offset is None else offset
    header["magic"] = image.header["magic"]
    return header.binaryblock + bytes(gap) + content[-DATA.nbytes :], size


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("gap", [0, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_an_offset_of_zero_means_behind_the_header(tmp_path, kind, gap, packed):
    content, _ = raw(kind, 0, gap)
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.data, DATA)
    assert any("byte 0" in note for note in volume.notes)


@pytest.mark.parametrize("offset", [1, 100, -352, np.nan])
def test_an_offset_inside_the_header_is_refused(tmp_path, offset):
    (tmp_path / "a.nii").write_bytes(raw(offset=offset)[0])
    with pytest.raises(InputError, match="says that its voxels start at byte"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize(("name", "packed"), [("a.nii", True), ("a.nii.gz", False)])
def test_bytes_not_names_tell_whether_a_file_is_gzipped(tmp_path, name, packed):
    content = raw()[0]
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    volume = read_nifti(tmp_path / name)
    np.testing.assert_array_equal(volume.data, DATA)
    assert any("other than its name says" in note for note in volume.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"is empty \(no bytes\)"),
        (gzip.compress(b""), r"is empty \(no bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"/annex/objects/MD5E-s1--0.nii.gz\n", "pointer of git-annex"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page"),
    ],
)
def test_what_is_no_scan_is_named(tmp_path, content, said):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_nifti(tmp_path / "a.nii.gz")


def test_a_link_to_content_that_was_not_fetched_is_named(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/x/MD5E-s1--0.nii.gz")
    with pytest.raises(InputError, match="git annex get"):
        read_nifti(tmp_path / "a.nii.gz")
