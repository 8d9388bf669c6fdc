from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image
from nilearn.datasets import load_mni152_brain_mask
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from maediff.errors import InputError
from maediff.evaluation import evaluate
from maediff.evaluation.bootstrap import histogram
from maediff.evaluation.curves import scan_curves, voxel_curves
from maediff.findings import locate
from maediff.report import pictures, write_report
from maediff.report.charts import Group, strip_chart
from maediff.report.figures import (
    PLANES,
    data_uri,
    frame_around,
    grey,
    heat,
    most_anomalous_place,
    most_anomalous_slice,
    overlay,
    plane_slices,
    plane_spacing_mm,
    scale_top,
)

VOID = {"meta", "img", "br", "link", "input"}


class Checker(HTMLParser):
    """Collects links and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    return checker


@pytest.mark.parametrize("codes", ["RAS", "LPI", "ASR", "SLP", "PIR"])
def test_pictures_are_radiological_whatever_the_voxel_order(codes):
    shape = (6, 8, 5)
    world = np.zeros(shape, np.float32)
    world[-1, :, :] += 1  # the patient's right-hand... RAS: the last index of x is the right side
    world[:, -1, :] += 2  # front
    world[:, :, -1] += 4  # top
    ras = nib.Nifti1Image(world, np.diag([1.0, 2.0, 3.0, 1.0]))
    turned = ras.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    )
    planes = plane_slices(np.asarray(turned.dataobj), turned.affine)
    assert planes.shape == (5, 8, 6)
    assert planes[2, 4, 0] == 1  # right side on the left of the picture
    assert planes[2, 0, 3] == 2  # front on top
    assert planes[-1, 4, 3] == 4  # slices from the feet up
    assert plane_spacing_mm(turned.affine) == pytest.approx((2.0, 1.0))


def test_most_anomalous_slice_and_crop():
    planes = np.full((9, 60, 50), 0.1, np.float32)
    planes[6, 20:30, 20:30] = 1
    assert most_anomalous_slice(planes) == 6
    assert most_anomalous_slice(np.zeros((9, 4, 4))) == 4
    brain = np.zeros(planes.shape, bool)
    brain[3:, 20:40, 10:40] = True
    frame = frame_around(brain, 6, (2.0, 1.0))
    assert frame.cut(planes).shape == (20 + 8, 30 + 16)
    assert frame.aspect == pytest.approx(46 / 56)
    assert frame_around(~brain & brain, 0, (1.0, 1.0)).cut(planes).shape == (60, 50)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "ASR", "SLP"])
def test_three_planes_hang_radiologically_and_meet_in_one_place(codes):
    world = np.zeros((16, 20, 12), np.float32)
    world[11:14, 3:6, 7:10] = 1  # right, back, high
    ras = nib.Nifti1Image(world, np.diag([3.0, 2.0, 4.0, 1.0]))
    turned = ras.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    )
    data, affine = np.asarray(turned.dataobj), turned.affine
    place = most_anomalous_place(data, affine)
    assert place == {"axial": 8, "coronal": 4, "sagittal": 12}
    centres = {
        plane: np.argwhere(plane_slices(data, affine, plane)[place[plane]]).mean(axis=0).tolist() for plane in PLANES
    }
    assert centres == {"axial": [15, 3], "coronal": [3, 3], "sagittal": [3, 15]}
    assert plane_spacing_mm(affine, "coronal") == pytest.approx((4.0, 3.0))
    assert plane_spacing_mm(affine, "sagittal") == pytest.approx((4.0, 2.0))


def test_an_empty_map_is_shown_at_its_middle():
    assert most_anomalous_place(np.zeros((4, 6, 8)), np.eye(4)) == {"axial": 4, "coronal": 2, "sagittal": 1}


def test_findings_measure_components_and_tell_sides_in_template_space_only():
    template = load_mni152_brain_mask(resolution=2)
    brain, affine = np.asarray(template.dataobj) > 0, template.affine
    mask = np.zeros(brain.shape, bool)
    for centre, radius in (((-30, 0, 20), 3), ((40, -20, 30), 1)):
        i, j, k = np.rint(np.linalg.inv(affine) @ [*centre, 1]).astype(int)[:3]
        mask[i - radius : i + radius + 1, j - radius : j + radius + 1, k - radius : k + radius + 1] = True
    found = locate(mask, brain, affine)
    assert found.template_dice == pytest.approx(1.0)
    assert found.count == 2
    assert found.volume_ml == pytest.approx((7**3 + 3**3) * 0.008)
    assert (found.left_ml, found.right_ml) == (pytest.approx(7**3 * 0.008), pytest.approx(3**3 * 0.008))
    assert [part.side for part in found.largest] == ["left", "right"]
    assert np.allclose(found.largest[0].centre_mm, (-30, 0, 20), atol=1)
    moved = affine.copy()
    moved[:3, 3] += 60
    elsewhere = locate(mask, brain, moved)
    assert not elsewhere.in_template_space
    assert {part.side for part in elsewhere.largest} == {None}
    assert elsewhere.volume_ml == pytest.approx(found.volume_ml)


def test_findings_list_the_largest_only_and_nothing_of_an_empty_mask():
    mask = np.zeros((40, 4, 4), bool)
    mask[::4, 0, 0] = True
    found = locate(mask, mask, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert found.count == 10
    assert len(found.largest) == 5
    assert locate(~mask & mask, mask, np.eye(4)).largest == ()


def test_curves_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 9, 60) / 8  # with ties
    truth = rng.random(60) < 0.3
    curves = scan_curves(scores, truth)
    rate, recall, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert np.allclose(curves.false_positive_rate, rate)
    assert np.allclose(curves.recall, recall)
    precision, _, _ = precision_recall_curve(truth, scores)
    assert np.allclose(curves.precision[1:], precision[:-1][::-1])
    assert curves.prevalence == truth.mean()
    assert scan_curves([1.0, 2.0], [True, True]) is None


def test_voxel_curves_pool_scans_and_keep_their_area_when_thinned():
    rng = np.random.default_rng(3)
    values = rng.gamma(2.0, 0.1, (2, 40, 40)).astype(np.float32)
    label = rng.random(values.shape) < 0.1
    values += 0.2 * label
    brain = np.ones(values.shape[1:], bool)
    curves = voxel_curves([histogram(v, brain, t) for v, t in zip(values, label, strict=True)])
    assert len(curves.recall) < 300
    area = np.trapezoid(curves.recall, curves.false_positive_rate)
    assert area == pytest.approx(roc_auc_score(label.ravel(), values.ravel()), abs=2e-3)
    assert voxel_curves([]) is None


def test_report_draws_curves_distributions_and_the_place_among_healthy_scans(cohort):
    record = {"hashes": {"model": "ab" * 32}, "calibration": {"case_scores": [0.2, 0.4], "threshold": 0.6}}
    (cohort.out / "run.json").write_text(json.dumps(record))
    text = write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference).read_text()
    check(text)
    assert text.count('class="curve"') == 4  # ROC and precision-recall, of voxels and of scans
    assert text.count("this scan (1)") == 4
    assert "healthy, calibration (2)" in text
    assert "case_scores" not in text
    (cohort.out / "run.json").write_text(json.dumps(record | {"hashes": {"model": "other"}}))
    assert "this scan (1)" not in write_report(cohort.out, cohort.root / "r.html").read_text()


def test_whatever_a_scan_raises_the_rest_is_shown_and_a_map_of_zeros_is_too(cohort, monkeypatch):
    right = pictures._extract

    def fail(case, reference):
        if case.case == "b_T2w":
            raise LookupError("no such thing")
        return right(case, reference)

    monkeypatch.setattr(pictures, "_extract", fail)
    nifti = nib.load(cohort.out / "c_T2w_anomaly.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(nifti.shape, np.float32), nifti.affine), cohort.out / "c_T2w_anomaly.nii.gz")
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    assert text.count("No pictures") == 1
    assert "unexpected LookupError: no such thing" in text


def test_uncertainty_is_drawn_where_there_is_one(cohort):
    assert "Uncertainty" not in write_report(cohort.out, cohort.root / "r.html").read_text()
    spread = nib.load(cohort.out / "a_T2w_anomaly.nii.gz")
    nib.save(spread, cohort.out / "a_T2w_uncertainty.nii.gz")
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    check(text)
    assert text.count("<figcaption>Uncertainty") == 1
    top = re.search(r"<figcaption>Uncertainty, 0 to ([\d.]+)<", text)[1]
    values = cohort.scans["a_T2w"].map
    assert float(top) == scale_top([float(np.percentile(values[values > 0], 99.9))], None)


def test_warnings_and_settings_are_readable(cohort):
    path = cohort.out / "a_T2w_anomaly.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notes": ["sheared <affine>"]}))
    record = {"calibration": {"quantiles": {"0.1": 0.1234567890123}, "threshold": 0.6}, "arguments": {"overrides": []}}
    (cohort.out / "run.json").write_text(json.dumps(record))
    metrics = {"by_lesion": {"tumour": {"voxel.auroc": {"mean": 0.9}}}}
    text = write_report(cohort.out, cohort.root / "r.html", metrics=metrics).read_text()
    check(text)
    assert text.count("sheared &lt;affine&gt;") == 2  # beside the pictures and in the table
    assert "<dd>0.1: 0.123457</dd>" in text
    assert "<h2>By lesion kind</h2>" in text


def test_charts_escape_names():
    text = strip_chart([Group("<b>", [("&", 0.5)], "scan")], "unit <x>")
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


def test_large_pictures_are_thinned():
    planes = np.zeros((1, 900, 700), np.float32)
    assert max(frame_around(planes > 1, 0, (1.0, 1.0)).cut(planes).shape) <= 320


def test_colours():
    assert grey(np.array([[-1.0, 0.0, 5.0]]), 0, 1)[0, :, 0].tolist() == [0, 0, 255]
    ramp = heat(np.array([[0.0, 0.5, 1.0, 3.0]]), 1.0).astype(int).sum(axis=2)[0]
    assert ramp[0] < ramp[1] < ramp[2] == ramp[3]
    tinted = overlay(np.zeros((1, 2, 3), np.uint8), np.array([[True, False]]), (255, 0, 0))
    assert tinted[0, 0, 0] > 100
    assert not tinted[0, 1].any()


def test_data_uri_is_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    encoded = data_uri(picture).removeprefix("data:image/png;base64,")
    back = image.imread(io.BytesIO(base64.b64decode(encoded)))
    assert np.array_equal((back[..., :3] * 255).round(), picture)


@pytest.mark.parametrize(("tops", "threshold", "top"), [([0.3], 1.0, 1.5), ([], None, 1.0), ([123.4], 0.1, 130.0)])
def test_scale_ends_on_a_round_number_beyond_the_threshold(tops, threshold, top):
    assert scale_top(tops, threshold) == top


def test_report_is_whole_and_needs_nothing_else(cohort):
    (cohort.out / "run.json").write_text(json.dumps({"command": "infer", "versions": {"maediff": "9.9"}, "seed": 3}))
    table = {"maediff": {"ms": {"auprc": 0.7, "auroc": None}}, "zscore": {"ms": {"auprc": 0.2, "auroc": float("nan")}}}
    path = write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference, table=table, title="A <b> & c")
    text = path.read_text(encoding="utf-8")
    checker = check(text)
    assert all(source.startswith(("data:image/png", "#")) for source in checker.sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert "A &lt;b&gt; &amp; c" in text
    assert "e_T2w.nii.gz holds &lt;NaN&gt;" in text  # the failed scan and its reason
    assert "Research use only" in text
    assert "ab" * 32 in text  # model hash
    assert "9.9" in text
    assert "above <b>75 %</b> of the healthy calibration scans" in text
    assert '<td class="n best">0.700</td>' in text
    for caption in ("Scan", "Healthy reconstruction", "Anomaly map", "Anomaly mask", "Truth"):
        assert text.count(f"<figcaption>{caption}") >= 4
    assert "Truth: no lesion here" in text
    assert not list(cohort.root.glob(".*"))


def test_report_without_reference_asks_for_one(cohort):
    text = write_report(cohort.out, cohort.root / "r.html").read_text(encoding="utf-8")
    check(text)
    assert "maediff evaluate" in text
    assert "Truth" not in re.sub(r"<footer>.*", "", text, flags=re.DOTALL).split("<main>")[1].split("<script>")[0]
    assert text.count("<img ") == 4 * 4 * 3  # scans, pictures and planes


def test_metrics_can_be_given_as_folder_or_values(cohort):
    metrics = evaluate(cohort.out, cohort.reference, cohort.root / "m", bootstrap=20)
    auprc = f"{metrics['voxel.auprc']['mean']:.3f}"
    from_folder = write_report(cohort.out, cohort.root / "a.html", metrics=cohort.root / "m").read_text()
    from_values = write_report(cohort.out, cohort.root / "b.html", metrics=metrics).read_text()
    assert auprc in from_folder
    assert auprc in from_values
    assert "Oracle Dice ↕" not in from_values
    with pytest.raises(InputError, match="cannot read metrics"):
        write_report(cohort.out, cohort.root / "c.html", metrics=cohort.root / "absent.json")


def test_large_cohorts_show_the_highest_scores_only(cohort):
    text = write_report(cohort.out, cohort.root / "r.html", max_pictures=1).read_text()
    assert text.count("<article") == 1
    assert "the 1 highest of 4 scans" in text
    highest = max(cohort.scans, key=lambda case: cohort.scans[case].map.max())
    assert f"<h3>{highest}</h3>" in text


def test_missing_scans_and_masks_leave_the_rest(cohort):
    for path in [*cohort.root.glob("*_T2w.nii.gz"), *cohort.out.glob("*-mask.nii.gz")]:
        path.unlink()
    (cohort.out / "a_T2w_reconstruction.nii.gz").write_bytes(b"broken")
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    check(text)
    assert "no longer where it was" in text
    assert "No pictures:" in text
    assert "<figcaption>Scan" not in text
    assert "<figcaption>Anomaly map" in text


def test_uncalibrated_models_are_told_to_calibrate(cohort):
    for path in cohort.out.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": None}))
    assert "maediff calibrate" in write_report(cohort.out, cohort.root / "r.html").read_text()


@pytest.mark.slow
def test_the_report_works_in_a_real_browser(cohort, browser):
    path = write_report(cohort.out, cohort.root / "r.html")
    browser.send("Page.navigate", url=path.as_uri())
    browser.wait_for("document.readyState == 'complete' && document.images.length == 48")
    assert browser.value("[...document.images].every(picture => picture.naturalWidth > 5)")
    scores = "[...document.querySelectorAll('table.sortable td:nth-child(3)')].map(cell => cell.textContent).join(' ')"
    falling = browser.value(scores)
    browser.value("[...document.querySelectorAll('th button')].find(b => b.textContent == 'Score').click()")
    assert browser.value(scores) == falling  # numbers fall at the first click, the failed scan last
    browser.value("[...document.querySelectorAll('th button')].find(b => b.textContent == 'Score').click()")
    assert browser.value(scores).split() == [*falling.split()[-2::-1], "–"]
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("data:", path.as_uri())) for url in asked)
    assert [e for e in browser.events if e["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}] == []
