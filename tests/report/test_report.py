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
from PIL import Image
from skimage.measure import label
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from maediff.calibration import Calibration
from maediff.errors import ConfigError, InputError
from maediff.evaluation import Choice, dice, evaluate, measure
from maediff.evaluation.bootstrap import histogram
from maediff.evaluation.choice import read_chosen
from maediff.evaluation.curves import scan_curves, voxel_curves
from maediff.evaluation.outputs import read_anomaly_mask
from maediff.findings import locate
from maediff.notes import Information, notes_record
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
    round_up,
    scale_top,
)
from maediff.report.html import format_number
from maediff.report.sheets import LEVELS
from maediff.tables import read_table
from maediff.volume import read_map

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


def cards(text):
    """What the page draws, by scan."""
    found = re.findall(r'data-case="([^"]+)">(?:(?!<article).)*?class="data">(.*?)</script>', text, re.DOTALL)
    return {case: json.loads(data) for case, data in found}


def sheet(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


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


def test_a_scan_is_drawn_among_the_healthy_scans_it_is_compared_with(cohort):
    flair = {"case_scores": [0.1, 0.2, 0.3], "threshold": 0.5, "contrasts": {}}
    stacks = {"case_scores": [0.1, 0.2], "threshold": 0.4, "contrasts": {}}
    parts = {"contrasts": {"flair": flair}, "forms": {"stack": stacks}}
    calibration = {"case_scores": [0.1, 0.2, 0.3, 0.4, 0.5], "threshold": 0.6, **parts}
    record = {"hashes": {"model": "ab" * 32}, "calibration": calibration}
    (cohort.out / "run.json").write_text(json.dumps(record))
    path = cohort.out / "a_T2w_anomaly.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"contrast": "flair", "form": "stack"}))
    other = cohort.out / "b_T2w_anomaly.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"form": "stack"}))
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    drawn = re.findall(r'data-case="(\w+)">.*?healthy scans \((\d)\)', text, re.DOTALL)
    expected = {"a_T2w": "3", "b_T2w": "2"}  # its contrast in any form, and its form in any contrast
    assert dict(drawn) == {case: expected.get(case, "5") for case, _ in drawn}
    assert expected.keys() <= dict(drawn).keys()
    assert "healthy, calibration (5)" in text  # the cohort has scans of several contrasts
    assert "<h3>calibration, flair</h3>" in text
    assert "<h3>calibration, stack</h3>" in text
    assert "case_scores" not in text


def test_whatever_a_scan_raises_the_rest_is_shown_and_a_map_of_zeros_is_too(cohort, monkeypatch):
    right = pictures.read_layers

    def fail(case, volume, reference):
        if case.case == "b_T2w":
            raise LookupError("no such thing")
        return right(case, volume, reference)

    monkeypatch.setattr(pictures, "read_layers", fail)
    nifti = nib.load(cohort.out / "c_T2w_anomaly.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(nifti.shape, np.float32), nifti.affine), cohort.out / "c_T2w_anomaly.nii.gz")
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    assert text.count("No pictures") == 1
    assert "unexpected LookupError: no such thing" in text


def test_uncertainty_is_drawn_where_there_is_one(cohort):
    assert "Uncertainty is" not in write_report(cohort.out, cohort.root / "r.html").read_text()
    spread = nib.load(cohort.out / "a_T2w_anomaly.nii.gz")
    nib.save(spread, cohort.out / "a_T2w_uncertainty.nii.gz")
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    check(text)
    assert [case for case, card in cards(text).items() if "uncertainty" in card["planes"]["axial"]["sheets"]] == [
        "a_T2w"
    ]
    top = re.search(r"same colours, from 0 to ([\d.]+):", text)[1]
    values = cohort.scans["a_T2w"].map
    assert float(top) == round_up(float(np.percentile(values[values > 0], 99.9)))


def test_warnings_and_settings_are_readable(cohort):
    path = cohort.out / "a_T2w_anomaly.json"
    notes = notes_record([Information("read as T2"), "sheared <affine>"])
    path.write_text(json.dumps(json.loads(path.read_text()) | notes))
    record = {"calibration": {"quantiles": {"0.1": 0.1234567890123}, "threshold": 0.6}, "arguments": {"overrides": []}}
    (cohort.out / "run.json").write_text(json.dumps(record))
    metrics = {"by_lesion": {"tumour": {"voxel.auroc": {"mean": 0.9}}}}
    text = write_report(cohort.out, cohort.root / "r.html", metrics=metrics).read_text()
    check(text)
    assert text.lower().count("sheared &lt;affine&gt;") == 2  # at the top of the card and in the table
    card = text.split('data-case="a_T2w">')[1]
    assert card.index("Sheared &lt;affine&gt;") < card.index('class="planes"')
    lists = re.findall(r'<ul class="notes (\w+)"><li>(.*?)</li></ul>', card)
    assert lists == [("warning", "Sheared &lt;affine&gt;"), ("information", "Read as T2")]
    assert "with warnings (1)" in text
    assert "<dd>0.1: 0.123457</dd>" in text
    assert "<h2>By lesion kind</h2>" in text


def test_charts_escape_names():
    text = strip_chart([Group("<b>", [("&", 0.5)], "scan")], "unit <x>")
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


def test_large_pictures_are_thinned():
    planes = np.zeros((1, 900, 700), np.float32)
    frame = frame_around(planes > 1, 0, (1.0, 1.0))
    assert frame.step == 2
    assert frame.cut(planes).shape == (450, 350)


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


@pytest.mark.parametrize(
    ("tops", "threshold", "top"),
    [([0.3], 1.0, 3.0), ([], None, 1.0), ([123.4], 0.1, 0.3), ([82.1, float("nan")], None, 130.0)],
)
def test_scale_ends_at_three_thresholds_else_beyond_the_highest_score(tops, threshold, top):
    assert scale_top(tops, threshold) == top


def test_report_is_whole_and_needs_nothing_else(cohort):
    (cohort.out / "run.json").write_text(json.dumps({"command": "infer", "versions": {"maediff": "9.9"}, "seed": 3}))
    table = {"maediff": {"ms": {"auprc": 0.7, "auroc": None}}, "zscore": {"ms": {"auprc": 0.2, "auroc": float("nan")}}}
    path = write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference, table=table, title="A <b> & c")
    text = path.read_text(encoding="utf-8")
    checker = check(text)
    assert all(source.startswith("#") for source in checker.sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert "A &lt;b&gt; &amp; c" in text
    assert "e_T2w.nii.gz holds &lt;NaN&gt;" in text  # the failed scan and its reason
    assert "Research use only" in text
    assert "ab" * 32 in text  # model hash
    assert "9.9" in text
    assert "above 75 % of the healthy scans" in text
    assert '<td class="n best">0.700</td>' in text
    drawn = cards(text)
    assert len(drawn) == 4
    for card in drawn.values():
        assert set(card["planes"]) == set(PLANES)
        assert set(card["planes"]["axial"]["sheets"]) == {"scan", "reconstruction", "map", "labels"}
    assert text.count("The reference marks no lesion in this scan.") == 2
    assert not list(cohort.root.glob(".*"))


def test_report_without_reference_asks_for_one(cohort):
    text = write_report(cohort.out, cohort.root / "r.html").read_text(encoding="utf-8")
    check(text)
    assert "maediff evaluate" in text
    page = re.sub(r"<footer>.*", "", text, flags=re.DOTALL).split("<main>")[1].split("<script>")[0]
    assert "truth" not in re.sub(r"<script type.*?</script>", "", page, flags=re.DOTALL)  # no legend for what is absent
    assert "Lesions of the reference" not in page


def test_metrics_can_be_given_as_folder_or_values(cohort):
    metrics = evaluate(cohort.out, cohort.reference, cohort.root / "m", bootstrap=20)
    auprc = f"{metrics['voxel.auprc']['mean']:.3f}"
    from_folder = write_report(cohort.out, cohort.root / "a.html", metrics=cohort.root / "m").read_text()
    from_values = write_report(cohort.out, cohort.root / "b.html", metrics=metrics).read_text()
    share = f"{metrics['voxel.lesion_share']['mean']:.3f}"  # a random map has this AUPRC
    assert f"voxel AUPRC (chance {share})" in from_folder
    assert f'{auprc}</td><td class="n soft">{share}</td>' in from_folder
    assert auprc in from_folder
    assert auprc in from_values
    of_ms = metrics["by_lesion"]["ms"]["voxel.lesion_share"]["mean"]
    assert f"{of_ms:.3f}" in from_values.split('title="chance"')[1].split("</tr>")[0]
    assert "Oracle Dice ↕" not in from_values
    with pytest.raises(InputError, match="cannot read metrics"):
        write_report(cohort.out, cohort.root / "c.html", metrics=cohort.root / "absent.json")


def test_a_chosen_threshold_moves_masks_volumes_and_dice_and_the_page_says_so(cohort):
    before = {path: path.read_bytes() for path in cohort.out.iterdir()}
    low = Choice(threshold=0.3)
    text = write_report(cohort.out, cohort.root / "a.html", choice=low, reference=cohort.reference).read_text()
    assert {path: path.read_bytes() for path in cohort.out.iterdir()} == before  # results stay as infer wrote them
    voxel_ml = abs(np.linalg.det(cohort.affine[:3, :3])) / 1000
    drawn = cards(text)
    for case, scan in cohort.scans.items():
        volume = (scan.map > 0.3).sum() * voxel_ml
        assert drawn[case]["maskMl"] == pytest.approx(volume)
        assert f'data-case="{case}" data-score' in text
        assert f'<span class="ml">{volume:.1f} ml</span>' in text
    assert "A person chose the threshold (given as 0.3" in text
    assert "Dice at the chosen threshold" in text
    assert "best of each column" not in text  # one method beside chance
    assert "chosen threshold" in text
    assert "calibrated threshold</span>" not in text
    measured = measure(cohort.out, cohort.reference, bootstrap=0, choice=low).metrics
    expected = [dice((s.map > 0.3)[cohort.brain], s.label[cohort.brain]) for s in cohort.scans.values() if s.kind]
    assert measured["voxel.dice"]["mean"] == pytest.approx(np.mean(expected))
    assert f"{np.mean(expected):.3f}" in text
    plain = write_report(cohort.out, cohort.root / "b.html").read_text()
    assert "A person chose" not in plain
    assert '<ul class="notes' not in plain  # there are no notes on these scans
    assert "with warnings" not in plain


def test_a_smallest_finding_and_a_rate_can_be_chosen(cohort):
    size = 3.5 * abs(np.linalg.det(cohort.affine[:3, :3]))
    for case in read_chosen(cohort.out, Choice(min_size_mm3=size)):
        if case.finished:
            mask = read_anomaly_mask(case, read_map(case.files["anomaly"]))
            parts = label(cohort.scans[case.case].map > cohort.threshold, connectivity=3)
            assert (mask == np.isin(parts, [n for n, c in enumerate(np.bincount(parts.flat)) if n and c > 3])).all()
    with pytest.raises(InputError, match=r"run\.json does not describe the model"):
        read_chosen(cohort.out, Choice(rate=0.01))
    calibration = Calibration(0.6, 0.01, 3, 300, {"0.01": 0.6, "0.1": 0.4}, (0.2,), "3 healthy scans").to_dict()
    record = {"hashes": {"model": "ab" * 32}, "calibration": calibration | {"healthy": 3}}  # as infer stores it
    (cohort.out / "run.json").write_text(json.dumps(record))
    first = read_chosen(cohort.out, Choice(rate=0.1))[0]
    assert first.threshold == 0.4
    assert first.sidecar["threshold_origin"] == "3 healthy scans, rate 0.1 given for this run"
    of_t1 = Calibration(0.7, 0.01, 4, 400, {"0.01": 0.7, "0.1": 0.5}, (0.2,), "4 healthy scans read as t1").to_dict()
    record["calibration"]["contrasts"] = {"t1": of_t1}
    (cohort.out / "run.json").write_text(json.dumps(record))
    sidecar = cohort.out / f"{first.case}_anomaly.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"contrast": "t1"}))
    thresholds = [case.threshold for case in read_chosen(cohort.out, Choice(rate=0.1)) if case.finished]
    assert thresholds == [0.5] + [0.4] * (len(thresholds) - 1)  # a scan follows the calibration of its contrast
    for wrong, said in (({"rate": 0.5}, "recorded: 0.1, 0.01"), ({"rate": 0.1, "threshold": 1}, "not both")):
        with pytest.raises(ConfigError, match=said):
            read_chosen(cohort.out, Choice(**wrong))
    with pytest.raises(ConfigError, match="the reference alone"):
        write_report(cohort.out, cohort.root / "r.html", metrics={}, choice=Choice(threshold=1))


def test_scans_of_several_thresholds_open_at_their_own(cohort, browser):
    sidecar = cohort.out / "a_T2w_anomaly.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"threshold": 0.4}))
    path = write_report(cohort.out, cohort.root / "r.html")
    assert 'data-calibrated="0.400 to 0.600"' in path.read_text()
    browser.send("Page.navigate", url=path.as_uri())
    browser.wait_for("document.readyState == 'complete' && !!document.querySelector('article.case')")
    assert browser.value("view.step") is None  # the masks of infer are shown, not those of one slider
    assert browser.value("document.getElementById('cut').textContent") == "0.400 to 0.600"
    browser.value("t = document.getElementById('threshold'); t.value = 20; t.dispatchEvent(new Event('input'))")
    assert browser.value("view.step") == 20
    browser.value("document.getElementById('calibrated').click()")
    assert browser.value("[...document.querySelectorAll('.now')].every(now => now.hidden)")


def test_the_page_repeats_what_the_model_is_for(cohort):
    unstated = write_report(cohort.out, cohort.root / "a.html").read_text()
    assert unstated.count("not stated</dd>") == 3
    for path in cohort.out.glob("*_anomaly.json"):
        model = {"trained_on": "9 <healthy> people", "finds": "tumours", "misses": "infarcts"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model}))
    text = write_report(cohort.out, cohort.root / "b.html").read_text()
    top = text.split("<nav>")[0]
    for said in ("9 &lt;healthy&gt; people", "<dt>Shown to find</dt><dd>tumours", "infarcts"):
        assert said in top
    assert "not stated</dd>" not in text


def test_large_cohorts_show_the_highest_scores_only(cohort):
    text = write_report(cohort.out, cohort.root / "r.html", max_pictures=1).read_text()
    assert text.count("<article") == 1
    assert "Shown: 1 scan of 4, the highest scores first" in text
    assert write_report(cohort.out, cohort.root / "r.html", max_pictures=None).read_text().count("<article") == 4
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
    assert all("scan" not in card["planes"]["axial"]["sheets"] for card in cards(text).values())
    assert all(card["threshold"] == cohort.threshold and card["maskMl"] is None for card in cards(text).values())


def test_a_scan_that_was_moved_since_is_not_shown_under_its_map(cohort):
    for path in cohort.root.glob("*_T2w.nii.gz"):
        scan = nib.load(path)
        affine = scan.affine.copy()
        affine[0, 3] += scan.header.get_zooms()[0]  # the same voxels, at another place
        nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), affine), path)
    text = write_report(cohort.out, cohort.root / "r.html").read_text()
    check(text)
    assert "grid is not that of its map" in text
    assert all("scan" not in card["planes"]["axial"]["sheets"] for card in cards(text).values())


def test_uncalibrated_models_are_told_to_calibrate(cohort):
    for path in cohort.out.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": None}))
    assert "maediff calibrate" in write_report(cohort.out, cohort.root / "r.html").read_text()


def test_sheets_hold_the_scan_and_thresholds_stay_exact(cohort):
    text = write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference).read_text()
    card, scan = cards(text)["a_T2w"], cohort.scans["a_T2w"]
    top = float(re.search(r'data-top="([\d.]+)"', text)[1])
    assert top == 1.8  # three calibrated thresholds
    mask, voxel_ml = scan.map > np.float32(cohort.threshold), 9 / 1000
    assert card["maskMl"] == pytest.approx(mask.sum() * voxel_ml)
    for k in (0, 10, 42, LEVELS - 1):
        assert card["above"][k] == pytest.approx((scan.map > k * top / LEVELS).sum() * voxel_ml, rel=1e-4)
    axial, planes = (
        card["planes"]["axial"],
        plane_slices(np.arange(scan.map.size).reshape(scan.map.shape), cohort.affine),
    )
    assert axial["slices"] == list(range(1, 9))  # all with brain: the scan is small
    (height, width), (row, column) = axial["size"], axial["origin"]
    levels, marks = sheet(axial["sheets"]["map"]), sheet(axial["sheets"]["labels"])
    for position, index in enumerate(axial["slices"]):
        voxels = planes[index, row : row + height, column : column + width]
        up, left = position // axial["across"] * height, position % axial["across"] * width
        tile = levels[up : up + height, left : left + width]
        assert ((tile > 42) == (scan.map.ravel()[voxels] > 42 * top / LEVELS)).all()
        expected = 85 * mask.ravel()[voxels] + 170 * scan.label.ravel()[voxels]
        assert (marks[up : up + height, left : left + width] == expected).all()


def test_pictures_go_through_the_largest_finding_lesion_and_missed_lesion(cohort):
    label = cohort.scans["a_T2w"].label.copy()
    label[12, 11, 8] = True  # a second, small lesion
    nib.save(nib.Nifti1Image(label.astype(np.uint8), cohort.affine), cohort.root / "a_T2w_lesion.nii.gz")
    mask = nib.load(cohort.out / "a_T2w_anomaly-mask.nii.gz")
    inside = np.asarray(mask.dataobj) > 0
    inside[11:14, 10:13, 7:10] = False  # missed
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), cohort.affine), cohort.out / "a_T2w_anomaly-mask.nii.gz")
    card = cards(write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference).read_text())["a_T2w"]
    names = [place["name"].split(",")[0] for place in card["places"]]
    assert names == ["Largest finding", "Largest lesion", "Largest missed lesion", "Highest values"]
    voxels = [(np.array(card["toVoxel"]) @ [*place["at"], 1])[:3].tolist() for place in card["places"]]
    assert voxels[1] == [5, 6, 4]
    assert voxels[2] == [12, 11, 8]
    assert voxels[0] == card["findings"][0]["voxel"]
    assert inside[tuple(int(v) for v in voxels[0])]
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        assert {place["at"][axis] for place in card["places"]} <= set(card["planes"][plane]["slices"])
    assert [lesion["share"] > 0 for lesion in card["lesions"]] == [True, False]


def test_the_report_completes_the_tables_of_findings(cohort):
    write_report(cohort.out, cohort.root / "r.html", max_pictures=1)
    assert len(list(cohort.out.glob("*_components.tsv"))) == 4  # older runs have none
    rows = read_table(cohort.out / "a_T2w_components.tsv").rows
    assert {row["truth_ml"] for row in rows} <= {"", "n/a"}
    write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference, max_pictures=1)
    mask, label = cohort.scans["a_T2w"].map > cohort.threshold, cohort.scans["a_T2w"].label
    shared = sum(float(row["truth_ml"]) for row in read_table(cohort.out / "a_T2w_components.tsv").rows)
    assert shared == pytest.approx((mask & label).sum() * 9 / 1000, rel=1e-4)


def test_many_scans_share_the_room(monkeypatch, cohort):
    """Each card has at least its first places, however little room there is."""
    monkeypatch.setattr("maediff.report.pictures._TOTAL_BYTES", 1)
    monkeypatch.setattr("maediff.report.pictures._CARD_BYTES", (1, 1))
    for card in cards(
        write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference).read_text()
    ).values():
        for axis, plane in enumerate(("sagittal", "coronal", "axial")):
            assert len(card["planes"][plane]["slices"]) <= 3
            assert card["places"][0]["at"][axis] in card["planes"][plane]["slices"]


def test_numbers_have_no_negative_zero_and_nouns_their_number(cohort):
    assert format_number(-0.04, 1) == "0.0"
    text = write_report(
        cohort.out, cohort.root / "r.html", max_pictures=1, warning="These maps mean nothing."
    ).read_text()
    assert '<p class="notice" role="note">These maps mean nothing.</p>' in text
    visible = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r">-0(\.0*)?[,<]|\b1 (scans|findings|lesions)\b", visible)


@pytest.mark.slow
def test_the_report_works_in_a_real_browser(cohort, browser):
    path = write_report(cohort.out, cohort.root / "r.html", reference=cohort.reference)
    card = cards(path.read_text())["a_T2w"]
    browser.send("Page.navigate", url=path.as_uri())
    browser.wait_for("document.readyState == 'complete' && !!document.querySelector('article.case')")
    browser.value("a = document.querySelector('article[data-case=a_T2w]'); a.scrollIntoView(); c = cardOf(a); 0")
    browser.wait_for("a.dataset.drawn > 0")
    assert browser.value("a.querySelectorAll('canvas').length") == 9  # three planes of scan, reconstruction and map
    assert browser.value(
        "[...a.querySelectorAll('.picture')].map(p => p.innerText.replace(/\\s/g, '')).join()"
    ) == ",".join(["RLAP"] * 3 + ["RLSI"] * 3 + ["APSI"] * 3)
    first = ", ".join(str(v) for v in card["findings"][0]["voxel"])
    assert browser.value("a.querySelector('.where code').textContent") == first

    browser.value("a.querySelectorAll('.goto button')[1].click()")  # the largest lesion
    lesion = ", ".join(str(v) for v in card["lesions"][0]["voxel"])
    browser.wait_for(f"a.querySelector('.where code').textContent == '{lesion}'")
    assert not browser.value("a.querySelector('.say').textContent.includes('no lesion')")
    browser.value("s = a.querySelector('.plane input'); s.value = 7; s.dispatchEvent(new Event('input'))")
    browser.wait_for("a.querySelector('.say').textContent.includes('slice 9 of 10')")
    assert browser.value("a.querySelector('.say').textContent.includes('no lesion in this slice')")

    browser.value("t = document.getElementById('threshold'); t.value = 20; t.dispatchEvent(new Event('input'))")
    assert browser.value("a.querySelector('.now b').textContent") == f"{card['above'][20]:.1f}"
    browser.value("document.getElementById('calibrated').click()")
    assert browser.value("a.querySelector('.now').hidden")
    browser.value("c.blink(); 0")
    browser.wait_for("a.querySelector('figcaption').textContent == 'Healthy reconstruction'")
    browser.value("c.blink(false); a.querySelector('tr[data-at]').click()")
    browser.wait_for(f"a.querySelector('.where code').textContent == '{first}'")
    browser.value("a.querySelector('.picture').click()")
    browser.wait_for(
        "document.getElementById('large').open && document.querySelector('dialog canvas').clientWidth > 300"
    )
    browser.value("document.getElementById('large').close()")

    listed = "[...document.querySelectorAll('#scans li:not([hidden])')].map(li => li.dataset.case).join()"
    assert len(browser.value(listed).split(",")) == 5
    browser.value("document.querySelector('[data-filter=failed]').click()")
    assert browser.value(listed) == "e_T2w"
    assert browser.value("[...document.querySelectorAll('article.case')].every(card => card.hidden)")
    browser.value("document.querySelector('[data-filter=failed]').click()")
    browser.value("f = document.getElementById('sort'); f.value = 'name'; f.dispatchEvent(new Event('change'))")
    assert browser.value(listed) == "a_T2w,b_T2w,c_T2w,d_T2w,e_T2w"

    scores = "[...document.querySelectorAll('table.sortable td:nth-child(3)')].map(cell => cell.textContent).join(' ')"
    falling = browser.value(scores)
    browser.value("[...document.querySelectorAll('th button')].find(b => b.textContent == 'Score').click()")
    assert browser.value(scores) == falling  # numbers fall at the first click, the failed scan last
    browser.value("[...document.querySelectorAll('th button')].find(b => b.textContent == 'Score').click()")
    assert browser.value(scores).split() == [*falling.split()[-2::-1], "–"]
    for width in (1200, 400):
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.value("[...document.querySelectorAll('td.told')].every(cell => cell.clientWidth > 250)")
        assert browser.value(
            "[...document.querySelectorAll('.below .chart')].every(c => c.clientWidth <= c.parentElement.clientWidth)"
        )
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("data:", path.as_uri())) for url in asked)
    assert [e for e in browser.events if e["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}] == []
