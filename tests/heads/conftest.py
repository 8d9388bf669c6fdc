"""A small head: nested ellipsoids with the labels of a real label map."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.heads.labels import read_head
from maediff.heads.lesions import read_masks


def toy_labels(shape=(64, 72, 60)):
    """Draw scalp, skull, CSF, cortex, white matter and ventricles, left and right apart."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    labels = np.zeros(shape, np.int16)
    left = grid[0] < 0
    for limit, (on_left, on_right) in (
        (0.95, (202, 202)),
        (0.88, (208, 208)),
        (0.80, (24, 24)),
        (0.75, (3, 42)),
        (0.60, (2, 41)),
        (0.18, (4, 43)),
    ):
        labels[radius < limit] = np.where(left, on_left, on_right)[radius < limit]
    return labels


def write_labels(path, labels, spacing=1.0):
    nib.save(nib.Nifti1Image(labels, np.diag([spacing] * 3 + [1.0])), path)
    return path


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    for number in (1, 2, 3):
        labels = toy_labels((64 + number, 72, 60))
        write_labels(folder / f"head_{number}.nii.gz", labels)
    return folder


@pytest.fixture(scope="session")
def head(head_folder):
    return read_head(head_folder / "head_1.nii.gz").around_brain()


@pytest.fixture(scope="session")
def mask_folder(tmp_path_factory):
    """A mask in MNI space: a ball of 12 mm in the left hemisphere."""
    folder = tmp_path_factory.mktemp("masks")
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-90, -126, -72]
    grid = np.indices((181, 217, 181)) + affine[:3, 3][:, None, None, None]
    ball = ((grid - np.array([-25.0, -16.0, 5.0])[:, None, None, None]) ** 2).sum(0) < 12**2
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), folder / "ball.nii.gz")
    return folder


@pytest.fixture(scope="session")
def masks(mask_folder):
    return read_masks(mask_folder, in_white=True)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def labels():
    """Labels of the small head."""
    return toy_labels()


@pytest.fixture(scope="session")
def write():
    """Write a label map and return its path."""
    return write_labels
