from __future__ import annotations

import csv
import importlib
import json
import math
import os
import re

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from maediff.cli import app
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from maediff.config import ScoreConfig
from maediff.errors import ConfigError, InputError
from maediff.evaluation import (
    bootstrap_ci,
    case_auroc,
    detection_at,
    dice,
    dice_oracle,
    evaluate,
    lesion_metrics,
    measure,
    voxel_metrics,
)
from maediff.evaluation.bootstrap import histogram, paired_p_value, pooled
from maediff.evaluation.case import case_auroc_estimate, resampled_auroc
from maediff.evaluation.method_metrics import method_metrics
from maediff.evaluation.outputs import read_outputs
from maediff.evaluation.reference import Reference
from maediff.evaluation.strata import Stratum
from maediff.methods.intensity import intensity_map, relative_intensity
from maediff.methods.zscore import HealthyStatistics, fit_zscore, zscore_map
from maediff.scoring import filter_map, postprocess
from maediff.volume import Volume

tied_scores = arrays(np.float32, 40, elements=st.integers(-3, 3).map(lambda n: n / 4))
truths = arrays(np.bool_, 40)
ALL = np.ones(40, bool)


# The definitions, spelt out; maediff computes them with scikit-learn, its pooled metrics with code of its own.


def pair_auroc(scores, truth):
    lesion, healthy = np.asarray(scores)[truth][:, None], np.asarray(scores)[~np.asarray(truth)]
    return ((lesion > healthy) + (lesion == healthy) / 2).mean()


def precision_at(scores, truth, value):
    return truth[scores >= value].mean()


def step_auprc(scores, truth):
    # the mean, over lesion voxels, of the precision at their score
    return np.mean([precision_at(scores, truth, value) for value in scores[truth]])


def overlap(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def best_dice(scores, truth):
    return max(overlap(scores >= value, truth) for value in np.unique(scores))


@given(tied_scores, truths)
def test_voxel_metrics_are_their_definitions_ties_included(scores, truth):
    found = voxel_metrics(scores, ALL, truth, 0.25)
    if not truth.any():
        assert all(math.isnan(value) for value in (found.auroc, found.auprc, found.dice, found.dice_oracle))
        return
    assert found.auprc == pytest.approx(step_auprc(scores, truth))
    assert found.dice == pytest.approx(overlap(scores > 0.25, truth))
    assert found.dice_oracle == pytest.approx(best_dice(scores, truth))
    if truth.all():
        assert math.isnan(found.auroc)
    else:
        assert found.auroc == pytest.approx(pair_auroc(scores, truth))


@given(tied_scores, truths, arrays(np.bool_, 40))
def test_only_the_brain_counts(scores, truth, brain):
    inside = voxel_metrics(scores[brain], np.ones(int(brain.sum()), bool), truth[brain], 0.25)
    whole = voxel_metrics(scores, brain, truth, 0.25)
    assert repr(inside) == repr(whole)
    assert repr(dice_oracle(scores, truth, brain)) == repr(whole.dice_oracle)


@given(tied_scores, truths)
def test_rank_metrics_do_not_change_under_a_rising_transform(scores, truth):
    found, moved = (voxel_metrics(s, ALL, truth, None) for s in (scores, np.exp(scores.astype(np.float64)) * 7))
    assert repr(found) == repr(moved)
    assert math.isnan(found.dice)


def test_perfect_and_inverted_maps():
    truth = np.arange(40) >= 30
    perfect = voxel_metrics(truth.astype(np.float32), ALL, truth, 0.5)
    assert (perfect.auroc, perfect.auprc, perfect.dice, perfect.dice_oracle) == (1, 1, 1, 1)
    assert voxel_metrics(-truth.astype(np.float32), ALL, truth, 0.5).auroc == 0
    assert dice(truth, ~truth) == 0


def test_a_given_mask_takes_the_place_of_the_threshold():
    truth = np.arange(40) >= 30
    assert voxel_metrics(np.zeros(40, np.float32), ALL, truth, 0.5, anomalous=truth).dice == 1


def test_bad_maps_are_refused():
    with pytest.raises(InputError, match="not finite"):
        voxel_metrics(np.full(40, np.nan), ALL, np.arange(40) > 3, 0.5)
    with pytest.raises(InputError, match="differ in shape"):
        voxel_metrics(np.zeros(39), ALL, ALL, 0.5)


@given(tied_scores, arrays(np.bool_, 40))
def test_case_auroc_is_the_share_of_pairs_in_order(scores, kinds):
    if kinds.any() and not kinds.all():
        assert case_auroc(scores, kinds) == pytest.approx(pair_auroc(scores, kinds))
    else:
        assert math.isnan(case_auroc(scores, kinds))


@given(tied_scores, arrays(np.bool_, 40), arrays(np.int64, (5, 40), elements=st.integers(0, 3)))
def test_auroc_of_resamples_is_that_of_scikit_learn(scores, kinds, weights):
    found = resampled_auroc(scores, kinds, weights)
    for value, drawn in zip(found, weights, strict=True):
        present = kinds[drawn > 0]
        if present.any() and not present.all():
            assert value == pytest.approx(roc_auc_score(kinds, scores, sample_weight=drawn))
        else:
            assert math.isnan(value)


def test_case_interval_resamples_patients():
    rng = np.random.default_rng(0)
    kinds = np.arange(60) % 2 == 0
    scores = rng.normal(size=60) + kinds
    found = case_auroc_estimate(scores, kinds, [str(i) for i in range(60)], 500, 0)
    assert found.mean == pytest.approx(pair_auroc(scores, kinds))
    assert found.n == 60
    drawn = []
    for _ in range(250):
        chosen = rng.integers(0, 60, 60)
        drawn.append(pair_auroc(scores[chosen], kinds[chosen]))
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)


def test_bootstrap_interval_of_the_mean_agrees_with_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap_ci(values, 4000, 0)
    half = 1.96 * values.std(ddof=0) / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.ci_low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.ci_high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == bootstrap_ci(values, 4000, 0)
    assert found != bootstrap_ci(values, 4000, 1)


def test_paired_p_value_agrees_with_the_normal_test():
    """For many patients it is that of a z-test of the mean difference, whatever the patients' own level."""
    rng = np.random.default_rng(3)
    level, gap = rng.normal(0, 5, 200), rng.normal(0.1, 1, 200)
    z = gap.mean() / (gap.std() / math.sqrt(gap.size))
    found = paired_p_value(level + gap, level)
    assert found == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.03)
    assert found == paired_p_value(level, level + gap)


def test_paired_p_value_at_its_ends():
    assert paired_p_value([1, 2, 3], [0, 1, 2], n=99) == 2 / 100
    assert paired_p_value([1, 2, float("nan")], [1, 2, 0]) == 1.0
    assert math.isnan(paired_p_value([1.0, float("nan")], [0.0, 0.0]))
    with pytest.raises(ValueError, match="3 and 2 patients cannot be paired"):
        paired_p_value([1, 2, 3], [1, 2])


def test_bootstrap_draws_a_patients_scans_together():
    values = np.repeat([0.0, 1.0], 50)
    together = bootstrap_ci(values, 500, 0, patients=["a"] * 50 + ["b"] * 50)
    assert (together.ci_low, together.ci_high) == (0, 1)
    apart = bootstrap_ci(values, 500, 0)
    assert apart.ci_low > 0.3
    assert together.n == apart.n == 100


def test_bootstrap_of_little_or_nothing():
    one = bootstrap_ci([0.5, math.nan])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.ci_low)
    assert bootstrap_ci([math.nan]).to_dict() == {"mean": None, "ci_low": None, "ci_high": None, "n": 0}
    assert math.isnan(bootstrap_ci([1.0, 2.0], 0).ci_low)


def pooled_scans(seed=0, n=6):
    rng = np.random.default_rng(seed)
    for index in range(n):
        truth = rng.random(3000) < (0.05 if index else 0)
        values = (rng.gamma(2, 0.1, 3000) + 0.2 * truth) * rng.choice([0.9, 1.1])
        yield values.astype(np.float32), truth


def test_pooled_metrics_are_those_of_all_voxels_together():
    scans = list(pooled_scans())
    hist = [histogram(v, np.ones(v.shape, bool), t, v > 0.5) for v, t in scans]
    found = pooled(hist, [str(i) for i in range(len(scans))], 300, 0)
    values, truth = (np.concatenate(parts) for parts in zip(*scans, strict=True))
    assert found["auroc"].mean == pytest.approx(roc_auc_score(truth, values), abs=1e-4)
    assert found["auprc"].mean == pytest.approx(average_precision_score(truth, values), abs=1e-3)
    assert found["dice"].mean == pytest.approx(f1_score(truth, values > 0.5))
    assert found["dice_oracle"].mean == pytest.approx(best_dice(values.round(2), truth), abs=5e-3)
    assert all(e.n == 6 and e.ci_low <= e.mean <= e.ci_high for e in found.values())


def test_pooled_interval_agrees_with_a_plain_bootstrap():
    scans = list(pooled_scans(3))
    hist = [histogram(v, np.ones(v.shape, bool), t, v > 0.5) for v, t in scans]
    found = pooled(hist, list("abcdef"), 300, 0)["auprc"]
    rng = np.random.default_rng(9)
    drawn = []
    for _ in range(150):
        values, truth = (np.concatenate(p) for p in zip(*(scans[i] for i in rng.integers(0, 6, 6)), strict=True))
        if truth.any():
            drawn.append(average_precision_score(truth, values))
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)


@given(arrays(np.float32, 30, elements=st.floats(-8, 8, width=32)))
def test_bins_keep_the_order_and_zero_has_no_sign(values):
    order = np.argsort(values)
    single = [int(histogram(v[None], np.ones(1, bool), np.zeros(1, bool)).bins[0]) for v in values[order]]
    assert single == sorted(single)
    zeros = histogram(np.array([-0.0, 0.0], np.float32), np.ones(2, bool), np.zeros(2, bool))
    assert len(zeros.bins) == 1


def test_pooled_without_lesions_or_threshold():
    values, nothing = np.random.default_rng(0).random(50).astype(np.float32), np.zeros(50, bool)
    healthy = histogram(values, ~nothing, nothing)
    assert pooled([healthy], ["a"])["auprc"].n == 0
    some = histogram(values, ~nothing, values > 0.5)
    found = pooled([some, healthy], ["a", "b"], 20)
    assert math.isnan(found["dice"].mean)
    assert found["auroc"].n == 2


def test_lesion_metrics_count_components():
    label, found, brain = np.zeros((3, 12, 12, 12), bool)
    brain[:, :, :11] = True
    label[1:3, 1, 1] = label[5, 5, 5] = label[9, 9, 9] = label[6, 6, 11] = True  # the last lies outside the brain
    found[2:4, 2, 2] = found[9, 9, 8:10] = found[0, 9, 0] = True  # touching only at a corner does not overlap
    result = lesion_metrics(found, label, brain)
    assert (result.n_lesions, result.n_false) == (3, 2)
    assert result.detection_rate == pytest.approx(1 / 3)
    assert result.precision == pytest.approx(1 / 3)
    assert result.f1 == pytest.approx(2 / 6)
    assert math.isnan(lesion_metrics(found, np.zeros_like(label), brain).f1)


def test_detection_at_a_rate_of_false_findings_is_that_of_scipys_components():
    """Blobs of noise on two scans; components, hits and the falling threshold counted by hand."""
    rng = np.random.default_rng(0)
    scans = []
    for _ in range(2):
        values = ndimage.gaussian_filter(rng.standard_normal((14, 14, 8)), 1.2).astype(np.float32)
        label = ndimage.gaussian_filter(rng.standard_normal(values.shape), 1.5) > 0.2
        scans.append((values + 0.1 * label, label, np.pad(np.ones((11, 14, 7), bool), ((1, 2), (0, 0), (1, 0)))))
    corners, thresholds = np.ones((3, 3, 3)), np.linspace(0.5, -0.1, 25)

    def count(threshold, values, label, brain):
        findings, lesions = (ndimage.label(part & brain, corners) for part in (values > threshold, label))
        touching = {(int(a), int(b)) for a, b in zip(findings[0].ravel(), lesions[0].ravel(), strict=True) if a and b}
        return findings[1] - len({a for a, _ in touching}), len({b for _, b in touching}) / lesions[1]

    for allowed in (0.5, 2.0, 3.5):
        expected = None
        for threshold in thresholds:
            counts = [count(threshold, *scan) for scan in scans]
            if np.mean([wrong for wrong, _ in counts]) > allowed:
                break
            expected = threshold, [rate for _, rate in counts]
        best, found = detection_at(scans, rng.permutation(thresholds), allowed)
        assert best == pytest.approx(expected[0])
        assert [metrics.detection_rate for metrics in found] == pytest.approx(expected[1])
        assert 0 < np.mean(expected[1]) < 1
    assert count(-10, *scans[0]) == (0, 1)  # one finding that covers all would be perfect, and is not reached
    nothing, none = detection_at(scans, [0.0], 0.0)
    assert nothing == np.inf
    assert [metrics.detection_rate for metrics in none] == [0, 0]


def test_evaluate_writes_the_documented_keys_and_means(cohort):
    metrics = evaluate(cohort.out, cohort.reference, cohort.root / "metrics", bootstrap=50)
    assert metrics == json.loads((cohort.root / "metrics" / "metrics.json").read_text())
    per_scan = [voxel_metrics(s.map, cohort.brain, s.label, cohort.threshold) for s in cohort.scans.values()]
    for name in ("auroc", "auprc", "dice", "dice_oracle", "lesion_share"):
        expected = np.nanmean([getattr(m, name) for m in per_scan])
        assert metrics[f"voxel.{name}"]["mean"] == pytest.approx(expected)
        assert metrics[f"voxel.{name}"]["n"] == 2  # healthy scans have none
        assert metrics[f"voxel_pooled.{name}"]["n"] == 4  # but count here
        assert set(metrics[f"voxel.{name}"]) == {"mean", "ci_low", "ci_high", "n"}
    scores = [float(s.map.max()) for s in cohort.scans.values()]
    kinds = [bool(s.kind) for s in cohort.scans.values()]
    assert metrics["case.auroc"]["mean"] == pytest.approx(pair_auroc(scores, np.array(kinds)))
    assert set(metrics["by_lesion"]) == {"tumour", "ms"}
    assert metrics["by_lesion"]["ms"]["voxel.auprc"]["n"] == 1
    shares = [s.label[cohort.brain].mean() for s in cohort.scans.values() if s.kind]
    frame = metrics.to_frame()  # chance: half for an AUROC, the share of lesion voxels for an AUPRC
    assert frame.loc["voxel.auroc", "chance"] == 0.5
    assert frame.loc["voxel.auprc", "chance"] == pytest.approx(np.mean(shares))
    every = [s.label[cohort.brain].mean() for s in cohort.scans.values()]
    assert frame.loc["voxel_pooled.auprc", "chance"] == pytest.approx(np.mean(every))
    assert frame.loc["voxel.dice", "chance"] is None or np.isnan(frame.loc["voxel.dice", "chance"])
    assert metrics["by_lesion"]["ms"]["case.auroc"]["n"] == 3
    assert metrics["cases"]["not_scored"] == [
        {"case": "e_T2w", "status": "failed", "message": "e_T2w.nii.gz holds <NaN>"}
    ]


def test_per_case_table_lists_every_scan(cohort):
    evaluate(cohort.out, cohort.reference, cohort.root / "m", bootstrap=0)
    rows = list(csv.DictReader((cohort.root / "m" / "metrics_per_case.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == [*cohort.scans, "e_T2w"]
    assert [row["status"] for row in rows] == ["scored"] * 4 + ["failed"]
    assert rows[2]["auprc"] == ""
    assert float(rows[0]["lesion_ml"]) == pytest.approx(27 * 9 / 1000)
    assert rows[0]["brain_from"] == "reference"


def test_whatever_a_scan_raises_the_rest_is_scored(cohort, monkeypatch):
    module = importlib.import_module("maediff.evaluation.evaluate")
    right = module._compare

    def fail(output, truth):
        if output.case == "b_T2w":
            raise LookupError("no such thing")
        return right(output, truth)

    monkeypatch.setattr(module, "_compare", fail)
    metrics = evaluate(cohort.out, cohort.reference, cohort.root / "m", bootstrap=0)
    (missing,) = [item for item in metrics["cases"]["not_scored"] if item["case"] == "b_T2w"]
    assert missing["message"] == "unexpected LookupError: no such thing"
    assert metrics["cases"]["scored"] == 3


@pytest.mark.parametrize(("failed", "code"), [(True, 3), (False, 0)])
def test_the_command_exits_with_3_if_a_scan_is_not_scored(cohort, failed, code):
    if not failed:
        table = cohort.out / "cases.tsv"
        table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith("e_T2w")))
    command = f"evaluate -q -i {cohort.out} -r {cohort.reference} -o {cohort.root}/m --bootstrap 1"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == code, result.output
    assert ("e_T2w is not scored (failed): e_T2w.nii.gz holds <NaN>" in result.output) == failed
    assert (cohort.root / "m" / "metrics.json").is_file()


def test_a_map_of_zeros_is_scored(cohort):
    image = nib.load(cohort.out / "c_T2w_anomaly.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), cohort.out / "c_T2w_anomaly.nii.gz")
    metrics = evaluate(cohort.out, cohort.reference, cohort.root / "m", bootstrap=0)
    assert metrics["cases"]["scored"] == 4


def test_scans_without_usable_reference_are_reported_and_the_rest_scored(cohort):
    text = cohort.reference.read_text().splitlines()
    text[1] = text[1].replace("a_T2w_lesion", "absent")
    cohort.reference.write_text("\n".join(line for line in text if not line.startswith("c_T2w")) + "\n")
    found = measure(cohort.out, cohort.reference, bootstrap=0)
    assert [case.status for case in found.cases] == ["unusable", "scored", "no reference", "scored", "failed"]
    assert "absent.nii.gz" in found.cases[0].message
    assert found.metrics["cases"]["scored"] == 2
    assert len(found.metrics["cases"]["not_scored"]) == 3


def test_a_lesion_kind_without_a_label_is_not_taken_for_healthy(cohort):
    cohort.reference.write_text(cohort.reference.read_text().replace("b_T2w_lesion.nii.gz", ""))
    found = measure(cohort.out, cohort.reference, bootstrap=0)
    assert found.cases[1].status == "unusable"
    assert "names no label" in found.cases[1].message


def test_reference_folder_of_label_files(cohort):
    labels = cohort.root / "labels"
    labels.mkdir()
    for name in ("a_T2w_lesion.nii.gz", "b_T2w_lesion.nii.gz", "c_T2w_lesion.nii.gz"):
        (labels / name).write_bytes((cohort.root / name).read_bytes())
    (labels / "a_T2w_brainmask.nii.gz").write_bytes((cohort.root / "brain.nii.gz").read_bytes())
    found = measure(cohort.out, labels, bootstrap=0)
    assert [case.status for case in found.cases] == ["scored"] * 3 + ["no reference", "failed"]
    assert [case.brain_from for case in found.cases[:2]] == ["reference", "reconstruction"]
    by_table = measure(cohort.out, cohort.reference, bootstrap=0)
    assert found.cases[1].voxel == by_table.cases[1].voxel  # the same brain, found another way
    assert found.cases[2].has_lesion is False


def test_reference_in_bids_names_and_unmatched_prefixes(cohort):
    folder = cohort.root / "bids"
    (folder / "derivatives").mkdir(parents=True)
    for name in ("sub-1", "sub-10"):
        (folder / "derivatives" / f"{name}_label-lesion_mask.nii.gz").write_bytes(b"")
        (folder / "derivatives" / f"{name}_desc-brain_mask.nii.gz").write_bytes(b"")
    (folder / "participants.tsv").write_text("participant_id\tlesion\nsub-1\tms\nsub-10\thealthy\n")
    case = read_outputs(cohort.out)[0]
    reference = Reference(folder)
    truth = reference.find(type(case)("sub-1_T2w", "done", "", 0, 0, 0))
    assert (truth.label.name, truth.mask.name) == ("sub-1_label-lesion_mask.nii.gz", "sub-1_desc-brain_mask.nii.gz")
    assert (truth.patient, truth.lesion) == ("sub-1", "ms")
    assert reference.find(type(case)("sub-10_T2w", "done", "", 0, 0, 0)).lesion is None
    with pytest.raises(InputError, match="no reference for sub-2_T2w"):
        reference.find(type(case)("sub-2_T2w", "done", "", 0, 0, 0))


def test_scans_beside_labels_of_any_name_are_never_taken_for_labels(cohort):
    labels = cohort.root / "labels"
    labels.mkdir()
    for name in ("a_T2w", "b_T2w"):
        (labels / f"{name}.nii.gz").write_bytes((cohort.root / f"{name}.nii.gz").read_bytes())
        (labels / f"{name}_wmh.nii.gz").write_bytes((cohort.root / f"{name}_lesion.nii.gz").read_bytes())
    found = measure(cohort.out, labels, bootstrap=0)
    by_table = measure(cohort.out, cohort.reference, bootstrap=0)
    assert [case.voxel.dice for case in found.cases[:2]] == [case.voxel.dice for case in by_table.cases[:2]]
    for path in labels.glob("*_wmh.nii.gz"):
        path.unlink()
    with pytest.raises(InputError, match="no lesion masks"):
        measure(cohort.out, labels, bootstrap=0)


def test_segmentations_of_tissues_are_no_lesions(cohort):
    folder = cohort.root / "bids"
    folder.mkdir()
    for name in ("sub-1_dseg", "sub-1_label-lesion_mask", "sub-2_dseg"):
        (folder / f"{name}.nii.gz").write_bytes(b"")
    reference, kind = Reference(folder), type(read_outputs(cohort.out)[0])
    assert reference.find(kind("sub-1_T2w", "done", "", 0, 0, 0)).label.name == "sub-1_label-lesion_mask.nii.gz"
    with pytest.raises(InputError, match="no reference for sub-2_T2w"):
        reference.find(kind("sub-2_T2w", "done", "", 0, 0, 0))


def test_the_latest_of_several_tables_counts(cohort):
    """A part of the run that was mended later says how a scan stands."""
    failed = next(case.case for case in read_outputs(cohort.out) if case.status == "failed")
    other = cohort.out / "cases-2-of-2.tsv"
    other.write_text(f"case\tstatus\n{failed}\tdone\n")
    written = (cohort.out / "cases.tsv").stat().st_mtime_ns
    for moved, status in ((10**9, "done"), (-(10**9), "failed")):
        os.utime(other, ns=(written + moved, written + moved))
        assert next(case.status for case in read_outputs(cohort.out) if case.case == failed) == status


def test_results_of_another_run_below_do_not_count(cohort):
    before = measure(cohort.out, cohort.reference, bootstrap=0)
    nested = cohort.out / "strict"
    nested.mkdir()
    for path in cohort.out.glob("a_T2w*"):
        (nested / path.name).write_bytes(path.read_bytes())
    (nested / "cases.tsv").write_text("case\tstatus\na_T2w\tdone\n")
    blank = nib.load(nested / "a_T2w_anomaly.nii.gz")
    nib.save(nib.Nifti1Image(0 * blank.get_fdata(), blank.affine), nested / "a_T2w_anomaly.nii.gz")
    assert measure(cohort.out, cohort.reference, bootstrap=0).cases[0].voxel == before.cases[0].voxel


def test_bids_outputs_are_found_by_name(tmp_path):
    names = ("desc-anomaly_T2w.json", "desc-anomaly_T2w.nii.gz", "desc-reconstruction_T2w.nii.gz")
    for name in (*names, "label-anomaly_mask.nii.gz"):
        (tmp_path / f"sub-1_{name}").write_text('{"case": "sub-1_T2w", "threshold": 0.5}')
    (tmp_path / "cases.tsv").write_text("case\tstatus\nsub-1_T2w\tdone\n")
    (case,) = read_outputs(tmp_path)
    assert sorted(case.files) == ["anomaly", "mask", "reconstruction"]
    assert case.files["mask"].name == "sub-1_label-anomaly_mask.nii.gz"
    assert (case.finished, case.threshold) == (True, 0.5)


def test_without_a_threshold_dice_is_undefined(cohort):
    for path in cohort.out.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": None}))
    metrics = measure(cohort.out, cohort.reference, bootstrap=20).metrics
    assert metrics["voxel.dice"] == {"mean": None, "ci_low": None, "ci_high": None, "n": 0}
    assert metrics["voxel_pooled.dice"]["mean"] is None
    assert metrics["voxel.auprc"]["n"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: (c.out / "cases.tsv").unlink(), "has no cases.tsv"),
        (lambda c: (c.out / "cases.tsv").write_text("name\nx\n"), "no column case, status"),
        (lambda c: c.reference.unlink(), "does not exist"),
        (lambda c: c.reference.write_text("image\nx\n"), "no column label"),
        (lambda c: c.reference.write_text("scan,label\nx,y\n"), "column image"),
        (lambda c: c.reference.write_text("image,label\nother.nii.gz,\n"), "none of the 5 scans"),
    ],
)
def test_unusable_folders_and_tables_say_so(cohort, change, message):
    change(cohort)
    with pytest.raises(InputError, match=message):
        measure(cohort.out, cohort.reference)


def test_negative_bootstrap_is_refused(cohort):
    with pytest.raises(ConfigError, match="bootstrap -1"):
        measure(cohort.out, cohort.reference, bootstrap=-1)


def volume(data, affine=None):
    image = nib.Nifti1Image(data.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine)
    return Volume(np.asarray(data, np.float32), np.asarray(image.affine), image.header)


def healthy_scans(n=12, shape=(8, 9, 7)):
    rng = np.random.default_rng(4)
    anatomy, brain = 50 + 50 * rng.random(shape), np.zeros(shape, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    for _ in range(n):
        yield volume(np.where(brain, anatomy + rng.normal(0, 2, shape), 0)), brain


def test_relative_intensity_does_not_see_gain_or_offset():
    scan, brain = next(healthy_scans())
    assert np.allclose(relative_intensity(scan.data, brain), relative_intensity(scan.data * 7 + 30, brain), atol=1e-4)
    assert np.median(relative_intensity(scan.data, brain)[brain]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match="no contrast"):
        relative_intensity(np.ones((3, 3, 3)), np.ones((3, 3, 3), bool))


def test_intensity_map_ranks_bright_dark_and_either():
    scan, brain = next(healthy_scans())
    inside = scan.data[brain]
    bright, dark, either = (intensity_map(scan.data, brain, sign)[brain] for sign in ("bright", "dark", "abs"))
    assert np.corrcoef(inside, bright)[0, 1] > 0.999
    assert np.corrcoef(inside, dark)[0, 1] < -0.9
    assert np.allclose(either, np.abs(bright - 1))


def test_zscore_finds_what_no_healthy_scan_has():
    scan, brain = next(healthy_scans())
    healthy = fit_zscore(healthy_scans())
    changed = scan.data.copy()
    changed[4, 4, 3] += 20
    scores = zscore_map(volume(changed), brain, healthy)
    assert np.unravel_index(scores.argmax(), scores.shape) == (4, 4, 3)
    assert zscore_map(volume(changed), brain, healthy, "dark")[4, 4, 3] == 0
    assert not scores[~brain].any()


def test_zscore_of_a_scan_on_another_grid_follows_the_affine():
    scan, brain = next(healthy_scans())
    healthy = fit_zscore(healthy_scans())
    plain = zscore_map(scan, brain, healthy)
    flip = np.diag([-2.0, 2.0, 2.0, 1.0])
    flip[0, 3] = 2.0 * (brain.shape[0] - 1)
    flipped = zscore_map(volume(scan.data[::-1], flip), brain[::-1], healthy)
    assert np.allclose(flipped[::-1], plain, atol=1e-4)


def graded(shift=0.0, spacing=2.0):
    """A ball of intensities that rise evenly along x (mm), on a grid that may lie elsewhere."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = shift
    x, y, z = np.indices((16, 16, 16)) * spacing + shift
    brain = (x - 15) ** 2 + (y - 15) ** 2 + (z - 15) ** 2 < 11**2
    return volume(np.where(brain, 100 + x, 0), affine), brain


def test_zscore_does_not_change_where_the_healthy_scans_end():
    """Half a voxel away, a constant mean stays constant up to the edge of what is known: it is not mixed with 0."""
    scan, covered = graded()
    statistics = HealthyStatistics(
        *(np.where(covered, value, 0).astype(np.float32) for value in (2, 0.5, 5)), scan.affine
    )
    moved, brain = graded(shift=1.0)
    scores = zscore_map(moved, brain, statistics)
    expected = np.abs(relative_intensity(moved.data, brain) - 2) / 0.5
    known = brain & (scores > 0)
    assert known.sum() > 0.9 * brain.sum()
    np.testing.assert_allclose(scores[known], expected[known], rtol=1e-3)


def test_healthy_scans_of_several_grids_do_not_differ_at_the_edge_of_the_brain():
    healthy = fit_zscore([graded(), graded(), graded(shift=1.0), graded(shift=-1.0)])
    assert healthy.std[healthy.count >= 3].max() < 0.2


def test_zscore_needs_three_scans():
    with pytest.raises(InputError, match="at least 3"):
        fit_zscore(list(healthy_scans(2)))


def test_filtering_a_volume_is_filtering_its_slices():
    values = np.random.default_rng(0).random((6, 7, 5)).astype(np.float32)
    mask, config = np.ones(values.shape, bool), ScoreConfig(median_mm=3, erode_mm=1)
    expected = postprocess(np.moveaxis(values, 2, 0), np.moveaxis(mask, 2, 0), (1, 1, 1), config)
    assert np.array_equal(filter_map(values, mask, (1, 1, 1), config), np.moveaxis(expected, 0, 2))


def test_method_metrics_average_over_scans_of_a_kind(cohort):
    scans = list(cohort.scans.values())
    healthy = [(s.map, cohort.brain) for s in scans if not s.kind]
    table = method_metrics(healthy, [(s.map, cohort.brain, s.label, s.kind or "healthy") for s in scans], 0.01)
    assert set(table["healthy"]) == {"auroc", "auprc", "dice", "dice_oracle", "lesion_share"}
    assert set(table["healthy"].values()) == {None}
    expected = voxel_metrics(scans[0].map, cohort.brain, scans[0].label, None)
    assert table["tumour"]["auprc"] == pytest.approx(expected.auprc)
    assert table["tumour"]["lesion_share"] == pytest.approx(expected.lesion_share)


class TestStrata:
    @pytest.fixture
    def people(self, cohort):
        """Ages and sexes of the subjects a to d; the reference table knows none of it."""
        (cohort.root / "participants.tsv").write_text(
            "participant_id\tage\tsex\na\t30\tF\nb\t50\tM\nc\t50.5\tF\nd\tn/a\tM\n"
        )
        return cohort

    def test_a_group_has_the_metrics_of_its_scans_alone(self, people):
        found = measure(people.out, people.reference, bootstrap=0, strata=["sex", "age:40"]).metrics["by_stratum"]
        assert list(found["sex"]) == ["F", "M"]
        assert list(found["age"]) == ["< 40", ">= 40", "n/a"]
        assert [group["scans"] for group in found["age"].values()] == [1, 2, 1]
        rows = people.reference.read_text().splitlines()
        women = people.root / "women.csv"
        women.write_text("\n".join([rows[0], rows[1], rows[3]]) + "\n")
        alone = measure(people.out, women, bootstrap=0).metrics
        assert found["sex"]["F"] == {key: alone[key] for key in found["sex"]["F"] if key != "scans"} | {"scans": 2}

    def test_columns_of_the_table_count_too(self, people):
        found = measure(people.out, people.reference, bootstrap=0, strata=["lesion"]).metrics["by_stratum"]["lesion"]
        assert list(found) == ["ms", "tumour", "n/a"]

    def test_without_strata_nothing_changes(self, people):
        assert "by_stratum" not in measure(people.out, people.reference, bootstrap=0).metrics

    @pytest.mark.parametrize(
        ("stratum", "said"),
        [("site", "no.*column site; they have age, lesion, sex"), ("sex:40", "'F', which is no number")],
    )
    def test_what_cannot_be_grouped_is_told(self, people, stratum, said):
        with pytest.raises(InputError, match=said):
            measure(people.out, people.reference, bootstrap=0, strata=[stratum])

    @pytest.mark.parametrize("text", ["", "age:", "age:60,40", "age:a", "age:nan", ":4"])
    def test_a_stratum_that_cannot_be_read(self, text):
        with pytest.raises(ConfigError, match="COLUMN:EDGE"):
            Stratum.parse(text)

    def test_too_many_groups_ask_for_ranges(self):
        with pytest.raises(InputError, match=r"age has 21 values.*age:40,60"):
            Stratum("age").split([(k, {"age": str(k)}) for k in range(21)])


def test_a_brain_mask_that_is_gone_is_never_replaced_by_another_brain(cohort):
    path = cohort.out / "a_T2w_anomaly.json"
    sidecar = json.loads(path.read_text())
    path.write_text(json.dumps(sidecar | {"mask": "../gone_brain.nii.gz"}))
    cohort.reference.write_text(re.sub(r",[^,\n]*brain.nii.gz,", ",,", cohort.reference.read_text()))
    first = measure(cohort.out, cohort.reference, bootstrap=0).cases[0]
    assert (first.case, first.status) == ("a_T2w", "unusable")
    assert "../gone_brain.nii.gz that infer used is not where it was" in first.message
