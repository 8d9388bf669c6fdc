"""A cohort drawn from label maps: files, splits, truth, and label maps that cannot be used."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff import MAEDiffError
from maediff.data.cases import find_cases
from maediff.data.head_cohort import HEAD_LESIONS, synthesise_heads
from maediff.errors import ConfigError, InputError, OutputError

SMALL = {"subjects": 8, "spacing_mm": 3.0, "seed": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, head_folder, mask_folder):
    folder = tmp_path_factory.mktemp("cohort") / "data"
    table = synthesise_heads(folder, head_folder, white_matter_masks=mask_folder, **SMALL)
    assert table == folder / "cases.csv"
    return folder


def rows(folder):
    return list(csv.DictReader((folder / "cases.csv").read_text(encoding="utf-8").splitlines()))


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_the_healthy_are_healthy_and_the_ill_have_exact_truth_in_their_brain(folder):
    assert {row["lesion"] for row in rows(folder)} == {"", "tumour", "ms"}
    for row in rows(folder):
        image, brain = voxels(folder / row["image"]), voxels(folder / row["mask"]) > 0
        assert image.dtype == np.int16
        assert not image[~brain].any()
        assert image[brain].std() > 20
        assert bool(row["label"]) == bool(row["lesion"])
        assert row["lesion"] == "" or row["split"] == "test"
        if row["label"]:
            label = voxels(folder / row["label"]) > 0
            assert label.any()
            assert not (label & ~brain).any()
            np.testing.assert_array_equal(
                nib.load(folder / row["label"]).affine, nib.load(folder / row["image"]).affine
            )


def test_it_is_a_data_set_in_scanner_space_that_maediff_reads_both_ways(folder):
    from_table, from_folder = find_cases(folder / "cases.csv"), find_cases(folder)
    assert {case.image.resolve() for case in from_table} == {case.image.resolve() for case in from_folder}
    assert {case.split for case in from_table} == {"train", "val", "test"}
    header = nib.load(from_table[0].image).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 1
    assert header.get_zooms() == (3.0, 3.0, 3.0)
    assert "label maps" in json.loads((folder / "dataset_description.json").read_text())["License"]


def test_training_subjects_share_no_head_with_the_others(folder, head_folder):
    heads = json.loads((folder / "synth.json").read_text())["heads"]
    assert not set(heads["train"]) & set(heads["test"])
    assert sorted([*heads["train"], *heads["test"]]) == sorted(path.name for path in head_folder.iterdir())


def test_the_seed_decides_the_bytes(folder, head_folder, mask_folder, tmp_path):
    for name, seed in (("again", 4), ("other", 5)):
        synthesise_heads(tmp_path / name, head_folder, white_matter_masks=mask_folder, **(SMALL | {"seed": seed}))
    files = [row["image"] for row in rows(folder)] + [row["label"] for row in rows(folder) if row["label"]]
    assert all((tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes() for name in files)
    assert not any((tmp_path / "other" / name).read_bytes() == (folder / name).read_bytes() for name in files)


@pytest.mark.parametrize(("modality", "brighter"), [("t1", False), ("t2", True)])
def test_tumours_are_dark_on_t1_and_bright_on_t2(head_folder, tmp_path, modality, brighter):
    synthesise_heads(tmp_path, head_folder, lesions=("tumour",), modality=modality, **SMALL)
    gaps = []
    for row in rows(tmp_path):
        if row["label"]:
            image, label = voxels(tmp_path / row["image"]), voxels(tmp_path / row["label"]) > 0
            gaps.append(image[label].mean() - np.median(image[(image > 0) & ~label]))
    assert gaps
    assert (np.mean(gaps) > 0) == brighter


def test_further_contrasts_show_the_same_brain_and_leave_the_first_as_it_is(folder, head_folder, mask_folder, tmp_path):
    synthesise_heads(tmp_path, head_folder, white_matter_masks=mask_folder, also=("flair", "t1"), **SMALL)
    for alone, row in zip(rows(folder), rows(tmp_path), strict=True):
        assert (tmp_path / row["image_t2"]).read_bytes() == (folder / alone["image"]).read_bytes()
        assert [row[name] for name in ("mask", "label", "split", "modality")] == [
            alone[name] for name in ("mask", "label", "split", "modality")
        ]
        brain = voxels(tmp_path / row["mask"]) > 0
        images = [voxels(tmp_path / row[f"image_{name}"]) for name in ("t2", "flair", "t1")]
        assert all(not image[~brain].any() for image in images)
        t2, flair, t1 = (image[brain] for image in images)
        assert np.corrcoef(t2, t1)[0, 1] < -0.2  # fluid is bright on one and dark on the other, at the same places
        assert abs(np.corrcoef(t2, flair)[0, 1]) < 0.99
    pairs = find_cases(tmp_path / "cases.csv", channels=("flair", "t1"))
    assert {len(case.images) for case in pairs} == {2}
    assert {path.name.split("_")[-1] for case in pairs for path in case.images} == {"FLAIR.nii.gz", "T1w.nii.gz"}


@pytest.mark.parametrize(
    ("modality", "also"),
    [("mixed", ("t1",)), ("t2", ("t2",)), ("t2", ("random",)), ("t1", ("pd",)), ("t1", ("t2",) * 2)],
)
def test_contrasts_that_cannot_be_told_apart_are_refused(head_folder, tmp_path, modality, also):
    with pytest.raises(ConfigError, match=f"{', '.join(also)} beside '{modality}' cannot be made"):
        synthesise_heads(tmp_path / "out", head_folder, modality=modality, also=also, **SMALL)
    assert not (tmp_path / "out").exists()


def test_kinds_without_masks_are_left_out_or_refused(head_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"'stroke' take their shapes from masks.*--stroke-masks"):
        synthesise_heads(tmp_path, head_folder, lesions=("stroke",), **SMALL)
    with pytest.raises(ConfigError, match="cyst are unknown for heads; use tumour, ms, stroke"):
        synthesise_heads(tmp_path, head_folder, lesions=("cyst",), **SMALL)
    assert HEAD_LESIONS == ("tumour", "ms", "stroke")


def test_other_peoples_subjects_are_left_alone(head_folder, tmp_path):
    (tmp_path / "sub-0001").mkdir()
    with pytest.raises(OutputError, match="no synthetic cohort"):
        synthesise_heads(tmp_path, head_folder, **SMALL)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda labels: np.where(labels == 3, 999, labels), "unknown labels 999"),
        (lambda labels: np.where(labels == 0, 202, labels), "has no background"),
        (lambda labels: np.zeros_like(labels), "holds no brain tissue"),
        (lambda labels: labels[..., None], "has 4 dimensions"),
    ],
)
def test_a_bad_label_map_is_named_before_anything_is_written(spoil, message, labels, write, tmp_path):
    write(tmp_path / "heads_good.nii.gz", labels)
    (tmp_path / "heads").mkdir()
    write(tmp_path / "heads" / "head_7.nii.gz", spoil(labels))
    with pytest.raises(InputError, match=message) as caught:
        synthesise_heads(tmp_path / "out", tmp_path / "heads", **SMALL)
    assert "head_7.nii.gz" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_coarse_label_maps_and_empty_folders_are_refused(labels, write, tmp_path):
    with pytest.raises(InputError, match="holds no label maps"):
        synthesise_heads(tmp_path / "out", tmp_path, **SMALL)
    write(tmp_path / "head.nii.gz", labels, spacing=2.0)
    with pytest.raises(MAEDiffError, match="label maps are 1 mm isotropic"):
        synthesise_heads(tmp_path / "out", tmp_path, **SMALL)


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["synth", *map(str, arguments)])


def test_the_command_writes_the_same_cohort(folder, head_folder, mask_folder, tmp_path):
    out = tmp_path / "out"
    masks = ("--ms-masks", mask_folder, "--contrast", "T2")
    result = run("-o", out, "--heads", head_folder, *masks, "--subjects", 8, "--spacing", 3, "--seed", 4)
    assert result.exit_code == 0, result.output
    assert all((out / row["image"]).read_bytes() == (folder / row["image"]).read_bytes() for row in rows(folder))


def test_the_command_names_the_contrast_to_train_on(head_folder, tmp_path):
    sizes = ("--subjects", 2, "--spacing", 8, "--healthy-only")
    result = run("-o", tmp_path / "out", "--heads", head_folder, "--contrast", "flair", "--also", "T1, t2", *sizes)
    assert result.exit_code == 0, result.output
    assert "cases.csv --channel flair -o RUN" in result.output
    assert (tmp_path / "out" / "cases.csv").read_text().startswith("image_flair,image_t1,image_t2,mask")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", "x", "--lesions", "dark"), "'dark' is no kind of lesion; choose from tumour, ms, stroke"),
        (("--lesions", "stroke", "--heads", "x"), "--stroke-masks"),
        (("--lesions", "stroke"), "choose from ms, tumour, dark"),
        (("--ms-masks", "x"), "go with --heads FOLDER"),
        (("--also", "t1"), "go with --heads FOLDER"),
        (("--contrast", "pd"), "'pd' is not one of"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path):
    result = run("-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output
