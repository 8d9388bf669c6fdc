"""The synthetic cohort: seeds, anatomy, contrast, lesions and files."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maediff.data import lesions, phantom
from maediff.data.cases import find_cases
from maediff.data.lesions import KINDS, Site, make_lesion
from maediff.data.phantom import MIXED, MODALITIES, atlas, smooth_noise, subject
from maediff.data.synthesis import plan_cohort, synthesise
from maediff.errors import ConfigError

COARSE = 4.0  # mm; laws do not depend on the grid, and 4 mm is quick
REAL = Path(__file__).parents[2] / "../shared/data/mslub"
BRIGHT = ("t2", "flair")
FROZEN = [250196, 393.83, 112.01, 201.61, 382.15, 569.99]  # voxels of brain; mean, deviation, 5, 50, 95 % in it


@cache
def make(number=1, modality="t2", lesion=None, seed=70, spacing_mm=COARSE):
    return subject((seed, number), modality, lesion, spacing_mm)


@cache
def tissues(number, seed=70):
    """Masks of pure CSF, grey and white matter of a subject, from its own deformed tissue maps."""
    base = atlas(COARSE)
    coordinates = phantom._deformation(base, np.random.default_rng([seed, number, 1]))
    grey, white, brain = phantom._warp(np.stack([base.grey, base.white, base.brain]), coordinates)
    inside = ndimage.binary_erosion(brain > 0.5)
    return tuple(inside & (share > 0.8) for share in (brain - grey - white, grey, white))


def distance_mm(label, spacing_mm=COARSE):
    return ndimage.distance_transform_edt(~label) * spacing_mm


@pytest.fixture(scope="module")
def ball():
    """A head with known anatomy: white matter in a grey shell, a ventricle in the middle; 2 mm voxels."""
    shape, affine = (70, 70, 70), np.diag([2.0, 2.0, 2.0, 1.0])
    radius = np.sqrt(sum((axis - 34.5) ** 2 for axis in np.indices(shape))) * 2
    white = ((radius > 12) & (radius < 52)).astype(np.float32)
    grey = ((radius >= 52) & (radius < 62)).astype(np.float32)
    return Site(grey, white, radius < 62, affine, 2.0)


def draws(kind, site, count=6):
    return [make_lesion(kind, site, np.random.default_rng([8, k])) for k in range(count)]


class TestSeeds:
    @pytest.mark.parametrize(
        ("modality", "lesion"), [("t1", None), ("t2", "tumour"), ("flair", "ms"), ("random", "dark")]
    )
    def test_a_key_gives_the_same_subject_whatever_happened_before(self, modality, lesion):
        first = subject((70, 3), modality, lesion, COARSE)
        subject((70, 4), "t1", "tumour", COARSE)
        np.random.seed(0)  # noqa: NPY002 - the global state must not matter
        torch.manual_seed(0)
        again = subject((70, 3), modality, lesion, COARSE)
        for name in ("image", "brain", "label", "affine"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))

    def test_threads_do_not_matter(self):
        one = subject((70, 3), "t2", "tumour", COARSE)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two = subject((70, 3), "t2", "tumour", COARSE)
        finally:
            torch.set_num_threads(threads)
        np.testing.assert_array_equal(one.image, two.image)

    @pytest.mark.parametrize("other", [{"number": 2}, {"seed": 71}])
    def test_another_key_gives_another_brain(self, other):
        one, two = make(), make(**other)
        both = one.brain & two.brain
        assert (one.brain ^ two.brain).sum() > 0.02 * both.sum()
        assert np.corrcoef(one.image[both], two.image[both])[0, 1] < 0.95

    @pytest.mark.parametrize("modality", MODALITIES)
    @pytest.mark.parametrize("lesion", KINDS)
    def test_anatomy_depends_neither_on_modality_nor_on_lesion(self, modality, lesion):
        np.testing.assert_array_equal(make(5, modality, lesion).brain, make(5).brain)
        np.testing.assert_array_equal(make(5, modality, lesion).label, make(5, "t2", lesion).label)


class TestScan:
    @pytest.mark.parametrize("modality", MODALITIES)
    def test_contract(self, modality):
        scan = make(6, modality)
        assert scan.image.dtype == np.float32
        assert scan.image.shape == scan.brain.shape == scan.label.shape
        assert not scan.label.any()
        assert np.isfinite(scan.image).all()
        assert not scan.image[~scan.brain].any()
        assert scan.image[scan.brain].min() >= 0
        assert (scan.image[scan.brain] > 0).mean() > 0.999
        np.testing.assert_array_equal(np.abs(scan.affine.diagonal()), [COARSE, COARSE, COARSE, 1])

    @pytest.mark.parametrize("spacing_mm", [2.0, COARSE])
    def test_the_brain_is_one_piece_of_adult_size_about_the_mni_origin(self, spacing_mm):
        scan = make(6, spacing_mm=spacing_mm)
        pieces, count = ndimage.label(scan.brain)
        sizes = np.sort(ndimage.sum(scan.brain, pieces, range(1, count + 1)))
        assert sizes[-1] > 0.995 * scan.brain.sum()
        assert 1000 < scan.brain.sum() * spacing_mm**3 / 1000 < 2300
        centre = nib.affines.apply_affine(scan.affine, ndimage.center_of_mass(scan.brain))
        np.testing.assert_allclose(centre, [0, -18, 10], atol=15)

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_tissues_are_ordered_as_in_the_modality(self, number):
        regions = tissues(number)
        level = {m: [np.median(make(number, m).image[region]) for region in regions] for m in ("t1", "t2", "flair")}
        csf, grey, white = level["t1"]
        assert white > 1.15 * grey > 1.15 * csf
        csf, grey, white = level["t2"]
        assert csf > 1.15 * grey > 1.15 * white
        csf, grey, white = level["flair"]
        assert grey > 1.03 * white > csf

    def test_random_contrast_takes_every_order(self):
        orders = {tuple(np.argsort(phantom._levels("random", np.random.default_rng(k))[:3])) for k in range(60)}
        assert len(orders) == 6

    def test_subjects_differ_in_brightness(self):
        regions = [tissues(number) for number in range(1, 5)]
        ratios = [
            np.median(make(n).image[csf]) / np.median(make(n).image[white])
            for n, (csf, _, white) in enumerate(regions, start=1)
        ]
        assert np.std(ratios) > 0.02 * np.mean(ratios)

    @pytest.mark.slow
    @pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")
    @pytest.mark.parametrize("modality", ["t1", "t2", "flair"])
    def test_noise_and_edges_are_near_a_real_stripped_scan(self, modality):
        def measure(image, inside):
            image = image / np.percentile(image[inside], 99)
            deep = ndimage.binary_erosion(inside, iterations=3)
            fine = (image - ndimage.gaussian_filter(image, 1.0))[deep]
            edges = np.sqrt(sum(np.gradient(image, axis=a) ** 2 for a in range(3)))[deep]
            return np.array([np.median(np.abs(fine)), edges.mean()])

        def halve(path):
            data = np.asarray(nib.load(path).dataobj, np.float32)
            x, y, z = (n // 2 for n in data.shape)
            return data[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))

        real = measure(halve(REAL / f"patient26_{modality}.nii.gz"), halve(REAL / "patient26_brainmask.nii.gz") > 0.5)
        scan = make(6, modality, spacing_mm=2.0)
        synthetic = measure(scan.image, scan.brain)
        assert np.all(synthetic > 0.4 * real)
        assert np.all(synthetic < 2.0 * real)

    def test_the_appearance_that_the_packaged_model_was_trained_on_is_frozen(self):
        scan = subject((2026, 1), "t1", None, 2.0)
        values = scan.image[scan.brain]
        measured = [scan.brain.sum(), values.mean(), values.std(), *np.percentile(values, [5, 50, 95])]
        np.testing.assert_allclose(measured, FROZEN, rtol=5e-3)


class TestSmoothNoise:
    @pytest.mark.parametrize("sigma", [1.3, 4.0, 12.0])
    def test_unit_variance_and_gaussian_autocorrelation(self, sigma):
        field = smooth_noise((90, 80, 70), sigma, np.random.default_rng(0))
        assert field.shape == (90, 80, 70)
        assert abs(field.mean()) < 1e-4
        assert field.std() == pytest.approx(1, abs=1e-4)
        lag = round(sigma)
        turned = [np.moveaxis(field, axis, 0) for axis in range(3)]
        found = np.mean([np.corrcoef(f[lag:].ravel(), f[:-lag].ravel())[0, 1] for f in turned])
        assert found == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.12)


class TestLesions:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_label_lies_in_the_brain_and_holds_what_is_at_least_a_quarter_lesion(self, ball, kind):
        for lesion in draws(kind, ball):
            share = np.max([part.alpha for part in lesion.parts], axis=0)
            assert share.min() >= 0
            assert share.max() <= 1
            assert lesion.core_or_more.any()
            np.testing.assert_array_equal(lesion.core_or_more, share >= 0.25)
            assert ball.brain[lesion.core_or_more].all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_scans_carry_a_label_inside_the_brain(self, kind, number):
        scan = make(number, lesion=kind)
        assert scan.label.any()
        assert scan.brain[scan.label].all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("number", [1, 2])
    def test_the_scan_changes_where_it_is_lesion_and_nowhere_else(self, monkeypatch, kind, number):
        painted = []
        monkeypatch.setattr(lesions, "_push", lambda *_: None)  # mass effect apart
        monkeypatch.setattr(phantom, "make_lesion", lambda *a: painted.append(make_lesion(*a)) or painted[-1])
        for modality in ("t1", "t2", "flair"):
            ill, healthy = subject((70, number), modality, kind, COARSE), make(number, modality)
            share = np.max([part.alpha for part in painted[-1].parts], axis=0)
            np.testing.assert_array_equal(ill.label, (share >= 0.25) & ill.brain)
            change = np.abs(ill.image - healthy.image) / healthy.image[healthy.brain].std()
            assert np.median(change[ill.label]) > 0.5
            untouched = ~ndimage.binary_dilation(share > 0.01, np.ones((3, 3, 3)), iterations=2)  # point spread
            assert change[untouched].max() < 0.05

    def test_mass_effect_moves_tissue_around_a_tumour_only(self, monkeypatch):
        pushed, healthy = make(1, "t1", "tumour"), make(1, "t1")
        monkeypatch.setattr(lesions, "_push", lambda *_: None)
        still = subject((70, 1), "t1", "tumour", COARSE)
        np.testing.assert_array_equal(pushed.label, still.label)
        moved, distance = np.abs(pushed.image - still.image), distance_mm(pushed.label)
        near, far = (healthy.brain & (distance > a) & (distance < b) for a, b in ((4, 16), (60, 200)))
        assert moved[near].mean() > 5 * moved[far].mean()

    def test_displacement_points_outwards_and_fades(self, ball):
        centre = np.array([30.0, 36.0, 33.0])
        push = lesions._push(ball, centre, 12.0, 4.0)
        offset = (np.indices(ball.brain.shape) - centre[:, None, None, None]) * 2
        distance = np.linalg.norm(offset, axis=0)
        size = np.linalg.norm(push, axis=0) * 2
        assert (np.einsum("cxyz,cxyz->xyz", push, offset)[distance > 0] >= 0).all()
        assert abs(distance.ravel()[size.argmax()] - 12) < 6
        assert 2.5 < size.max() <= 4
        assert size[distance > 60].max() < 1e-3
        grown = distance.ravel()[np.argsort(distance, axis=None)] + size.ravel()[np.argsort(distance, axis=None)]
        assert np.diff(grown)[::50].min() > -0.5  # tissue does not fold over

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    @pytest.mark.parametrize("kind", ["ms", "tumour"])
    def test_ms_and_tumour_are_bright_on_t2_and_flair_and_dark_on_t1(self, kind, number):
        regions = tissues(number)
        for modality in ("t1", "t2", "flair"):
            scan, healthy = make(number, modality, kind), make(number, modality)
            csf, grey, white = (np.median(healthy.image[region]) for region in regions)
            change = np.abs(scan.image - healthy.image)
            inner = scan.label & (change >= np.median(change[scan.label]))  # soft edges apart
            lesion = np.median(scan.image[inner])
            if modality == "t2":
                assert grey < lesion < csf
            elif modality == "flair":
                assert lesion > max(grey, white) > csf
            else:
                assert csf < lesion < white
            brighter = (scan.image > healthy.image)[scan.label].mean()
            assert brighter > 0.8 if modality in BRIGHT else brighter < 0.2

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("modality", MODALITIES)
    def test_dark_is_darker_than_healthy_tissue_in_every_modality(self, modality, number):
        scan, healthy = make(number, modality, "dark"), make(number, modality)
        _, grey, white = (np.median(healthy.image[region]) for region in tissues(number))
        assert np.median(scan.image[scan.label]) < 0.9 * min(grey, white)

    def test_ms_is_many_small_spots_in_white_matter_near_the_ventricles(self, ball):
        radius = np.sqrt(sum((axis - 34.5) ** 2 for axis in np.indices(ball.brain.shape))) * 2
        counts, where, sizes = [], [], []
        for lesion in draws("ms", ball, 8):
            pieces, count = ndimage.label(lesion.core_or_more, np.ones((3, 3, 3)))
            counts.append(count)
            where.extend(radius[lesion.core_or_more])
            sizes.extend(ndimage.sum(lesion.core_or_more, pieces, range(1, count + 1)) * 8)
        assert min(counts) >= 1
        assert max(counts) <= 25
        assert np.mean(counts) > 8
        diameters = (6 * np.array(sizes) / np.pi) ** (1 / 3)
        assert 2 < np.median(diameters) < 10
        volumes_near, volumes_far = (((radius > a) & (radius < b)).sum() for a, b in ((12, 30), (30, 52)))
        near, far = (np.mean([(a < r < b) for r in where]) for a, b in ((12, 30), (30, 52)))
        assert near / volumes_near > 2 * far / volumes_far
        assert near + far > 0.85

    def test_tumours_have_a_core_in_an_oedema_and_the_documented_size(self, ball):
        for lesion in draws("tumour", ball):
            core, whole = lesion.parts[1].alpha >= 0.5, lesion.core_or_more
            assert core.sum() < whole.sum()
            extent = max(part.stop - part.start for part in ndimage.find_objects(whole.astype(int))[0]) * 2
            assert 20 < extent < 110
            assert lesion.push is not None

    def test_only_tumours_push(self, ball):
        assert all(lesion.push is None for kind in ("ms", "dark") for lesion in draws(kind, ball, 3))


class TestBadInput:
    def test_unknown_modality(self):
        with pytest.raises(ConfigError, match="'pd' is unknown; use t1, t2, flair, random"):
            subject((0, 1), "pd")

    def test_unknown_lesion(self):
        with pytest.raises(ConfigError, match="'abscess' is unknown; use ms, tumour, dark"):
            make(lesion="abscess")

    @pytest.mark.parametrize("spacing_mm", [2.5, 0.5, 0.0, -2.0, float("nan"), float("inf")])
    def test_a_spacing_that_the_template_does_not_come_in(self, spacing_mm, tmp_path):
        with pytest.raises(ConfigError, match="whole mm"):
            make(spacing_mm=spacing_mm)
        with pytest.raises(ConfigError, match="whole mm"):
            synthesise(tmp_path / "cohort", subjects=8, spacing_mm=spacing_mm)
        assert not (tmp_path / "cohort").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"subjects": 7}, "7 subjects are too few.*at least 8"),
            ({"subjects": 1, "healthy_only": True}, "at least 2"),
            ({"lesions": ["ms", "cyst"]}, "cyst are unknown; use ms, tumour, dark"),
            ({"lesions": []}, "use ms, tumour, dark"),
            ({"modality": "ct"}, "'ct' is unknown.*mixed"),
        ],
    )
    def test_a_plan_that_cannot_be(self, changes, message):
        arguments = {"subjects": 8, "lesions": KINDS, "modality": "t2", "seed": 0, **changes}
        with pytest.raises(ConfigError, match=message):
            plan_cohort(
                arguments.pop("subjects"),
                arguments.pop("lesions"),
                arguments.pop("modality"),
                arguments.pop("seed"),
                **arguments,
            )


class TestPlan:
    @given(
        st.integers(8, 200), st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True), st.integers(0, 9)
    )
    def test_splits(self, subjects, kinds, seed):
        plans = plan_cohort(subjects, kinds, "mixed", seed)
        assert [plan.number for plan in plans] == list(range(1, subjects + 1))
        assert len({plan.name for plan in plans}) == subjects
        groups = {name: [p.lesion for p in plans if p.split == name] for name in ("train", "val", "test")}
        assert sum(map(len, groups.values())) == subjects
        assert all(groups.values())
        assert set(groups["train"]) == set(groups["val"]) == {None}
        assert set(groups["test"]) <= {*kinds, None}
        counts = [groups["test"].count(kind) for kind in (*kinds, None)]
        assert max(counts) - min(counts) <= 1

    def test_mixed_modality_depends_on_seed_and_number_alone(self):
        few, many = (plan_cohort(n, KINDS, "mixed", 3) for n in (10, 400))
        assert [p.modality for p in few] == [p.modality for p in many[:10]]
        found = [p.modality for p in many]
        for name, share in MIXED:
            assert found.count(name) / len(found) == pytest.approx(share, abs=0.08)

    def test_healthy_only(self):
        plans = plan_cohort(5, KINDS, "t1", 0, healthy_only=True)
        assert {(p.split, p.lesion) for p in plans} == {("train", None), ("val", None)}


def rows(path, delimiter):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter=delimiter))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "data"
    seen = []
    table = synthesise(folder, subjects=10, modality="flair", seed=4, spacing_mm=COARSE, on_subject=seen.append)
    assert table == folder / "cases.csv"
    assert seen == [f"sub-{k:04d}" for k in range(1, 11)]
    return folder


class TestFiles:
    def test_files_hold_what_memory_holds(self, folder):
        for row in rows(folder / "cases.csv", ","):
            scan = subject((4, int(row["subject"][4:])), row["modality"], row["lesion"] or None, COARSE)
            image = nib.load(folder / row["image"])
            np.testing.assert_array_equal(np.asarray(image.dataobj), np.round(scan.image))
            np.testing.assert_array_equal(image.affine, scan.affine)
            assert image.get_data_dtype() == np.int16
            assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4
            np.testing.assert_array_equal(np.asarray(nib.load(folder / row["mask"]).dataobj), scan.brain)
            assert bool(row["label"]) == bool(row["lesion"])
            if row["label"]:
                np.testing.assert_array_equal(np.asarray(nib.load(folder / row["label"]).dataobj), scan.label)

    def test_table_and_bids_folder_list_the_same_cases(self, folder):
        from_table, from_folder = find_cases(folder / "cases.csv"), find_cases(folder)

        def facts(cases):
            return {
                (c.subject.removeprefix("sub-"), c.split, *(p and p.resolve() for p in (c.image, c.mask, c.label)))
                for c in cases
            }

        assert len(from_table) == 10
        assert facts(from_table) == facts(from_folder)
        assert all(case.bids is not None and case.bids.suffix == "FLAIR" for case in from_folder)
        assert {case.split for case in from_table} == {"train", "val", "test"}
        assert {c.image for c in find_cases(folder, split="val")} == {c.image for c in from_folder if c.split == "val"}

    def test_layout(self, folder):
        assert json.loads((folder / "dataset_description.json").read_text())["BIDSVersion"]
        assert (folder / "sub-0001/anat/sub-0001_FLAIR.nii.gz").is_file()
        people = rows(folder / "participants.tsv", "\t")
        assert [p["participant_id"] for p in people] == [f"sub-{k:04d}" for k in range(1, 11)]
        assert {p["lesion"] for p in people} == {*KINDS, "n/a"}
        assert not [path.name for path in folder.rglob("*") if "tmp" in path.name]

    def test_a_subject_does_not_depend_on_the_others_and_bytes_repeat(self, folder, tmp_path):
        synthesise(tmp_path, subjects=2, modality="flair", seed=4, spacing_mm=COARSE, healthy_only=True)
        for path in ("sub-0001/anat/sub-0001_FLAIR.nii.gz", "sub-0002/anat/sub-0002_FLAIR.nii.gz"):
            assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()
