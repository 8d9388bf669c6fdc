"""Reading label maps of heads."""

from __future__ import annotations

import numpy as np
import pytest

from maediff.errors import InputError
from maediff.heads.labels import NAMES, TISSUES, class_index, find_heads, outside_brain, parenchyma, read_head


def test_left_and_right_share_a_class():
    for tissue in TISSUES:
        for left, right in ((2, 41), (3, 42), (4, 43), (10, 49), (17, 53), (136, 163)):
            assert (left in tissue.labels) == (right in tissue.labels)


def test_each_label_has_one_class_and_the_brain_is_not_outside():
    labels = [label for tissue in TISSUES for label in tissue.labels]
    assert len(labels) == len(set(labels))
    assert not set(outside_brain()) & set(parenchyma())
    assert class_index("sulcal CSF") not in parenchyma()


def test_depth_is_the_signed_distance_to_the_tissue(head_folder):
    head = read_head(head_folder / "head_1.nii.gz")
    middle = tuple(side // 2 for side in head.classes.shape)
    assert head.depth[middle] < -15  # the ventricle lies inside the brain
    assert head.depth[0, 0, 0] > 10
    assert ((head.depth < 0) == head.tissue).all()


def test_holes_between_structures_are_fluid(tmp_path, labels, write):
    labels = labels.copy()
    labels[20:22, 36, 30] = 0  # inside white matter
    head = read_head(write(tmp_path / "hole.nii.gz", labels))
    assert head.classes[20, 36, 30] == class_index("sulcal CSF")
    assert head.classes[0, 0, 0] == class_index("background")


def test_orientation_does_not_matter(tmp_path, head_folder):
    import nibabel as nib

    image = nib.load(head_folder / "head_1.nii.gz")
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert (read_head(tmp_path / "turned.nii.gz").classes == read_head(head_folder / "head_1.nii.gz").classes).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: np.where(labels == 3, 777, labels), "unknown labels 777"),
        (lambda labels: np.where(labels == 0, 202, labels), "no background"),
        (lambda labels: np.where(labels < 200, 0, labels), "no brain tissue"),
        (lambda labels: np.zeros_like(labels), "no brain tissue"),
        (lambda labels: labels.astype(np.float32) + 0.5, "unknown labels"),
        (lambda labels: np.stack([labels, labels], -1), "4 dimensions"),
    ],
)
def test_unusable_label_maps_are_named(tmp_path, labels, write, change, message):
    path = write(tmp_path / "odd.nii.gz", change(labels))
    with pytest.raises(InputError, match=message) as caught:
        read_head(path)
    assert "odd.nii.gz" in str(caught.value)


def test_other_voxel_sizes_are_refused(tmp_path, labels, write):
    with pytest.raises(InputError, match="1 mm isotropic"):
        read_head(write(tmp_path / "coarse.nii.gz", labels, spacing=2.0))


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"text\.nii\.gz"):
        read_head(tmp_path / "text.nii.gz")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no label maps"):
        find_heads(tmp_path)


def test_the_pool_spreads_over_brain_and_surroundings(head):
    names = {NAMES[index] for index in head.pool[0].unique().tolist()}
    assert {"white matter", "cortex", "sulcal CSF", "lateral ventricle"} <= names
