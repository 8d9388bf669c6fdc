from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff.calibration import RATES, Calibration, calibrate, false_positive_share, with_threshold
from maediff.errors import ConfigError, InputError, ModelError

samples = st.lists(
    st.lists(st.floats(0, 8, width=16), min_size=1, max_size=30).map(lambda v: np.array(v, np.float32)),
    min_size=1,
    max_size=4,
)


def scans(values):
    return [(v, np.ones(v.shape, bool), float(v.max())) for v in values]


def share_above(values, threshold):
    return np.mean([np.mean(v > threshold) for v in values])


@given(samples, st.floats(0.01, 0.9))
def test_threshold_is_the_smallest_observed_value_that_keeps_the_rate(values, rate):
    threshold = calibrate(scans(values), rate).threshold
    observed = np.unique(np.concatenate(values))
    assert threshold in observed
    assert share_above(values, threshold) <= rate + 1e-9
    lower = observed[observed < threshold]
    if lower.size:
        assert share_above(values, lower[-1]) > rate - 1e-9


def test_for_one_scan_it_is_numpys_inverted_cdf_quantile():
    values = np.random.default_rng(0).random(1009).astype(np.float32)
    found = calibrate(scans([values]), 0.05)
    assert found.threshold == np.quantile(values, 0.95, method="inverted_cdf")
    assert found.quantiles["0.1"] == np.quantile(values, 0.9, method="inverted_cdf")


def test_scans_weigh_the_same_however_many_voxels_they_have():
    rng = np.random.default_rng(1)
    small, large = rng.random(1000).astype(np.float32), 1 + rng.random(100_000).astype(np.float32)
    threshold = calibrate(scans([small, large]), 0.25).threshold
    assert threshold == pytest.approx(1.5, abs=0.01)  # all of the large scan's upper half: a quarter by weight
    assert false_positive_share([np.sort(small), np.sort(large)], threshold) == pytest.approx(0.25, abs=1e-5)


def test_only_brain_voxels_count_and_the_facts_are_kept():
    values = np.array([[0.0, 9.0], [0.1, 0.2]], np.float32)
    mask = np.array([[True, False], [True, True]])
    found = calibrate([(values, mask, 0.2)], 0.01, origin="here")
    assert found.threshold == np.float32(0.2)
    assert (found.n_scans, found.n_voxels, found.case_scores, found.origin) == (1, 3, (0.2,), "here")
    assert list(found.quantiles) == [f"{rate:g}" for rate in RATES]
    assert found.percentile_of(0.3) == 1.0


def test_thresholds_rise_as_the_rate_falls():
    found = calibrate(scans([np.random.default_rng(2).random(5000).astype(np.float32)]), 0.01)
    ordered = [found.quantiles[f"{rate:g}"] for rate in RATES]
    assert ordered == sorted(ordered)
    assert found.threshold == found.quantiles["0.01"]


def test_json_and_back():
    found = calibrate(scans([np.arange(50, dtype=np.float32)]), 0.1)
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("damage", [{"threshold": None}, {"quantiles": 3}, {"n_scans": "x"}])
def test_damaged_calibration_is_refused(damage):
    values = calibrate(scans([np.arange(50, dtype=np.float32)]), 0.1).to_dict()
    with pytest.raises(ModelError, match="damaged"):
        Calibration.from_dict(values | damage)
    with pytest.raises(ModelError, match="threshold"):
        Calibration.from_dict({})


def test_bad_input_is_refused():
    good = scans([np.arange(5, dtype=np.float32)])
    for rate in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="outside"):
            calibrate(good, rate)
    with pytest.raises(InputError, match="no healthy scan"):
        calibrate([], 0.1)
    values, mask, score = good[0]
    with pytest.raises(InputError, match="scan 2 has an empty"):
        calibrate([*good, (values, ~mask, score)], 0.1)
    with pytest.raises(InputError, match="not finite"):
        calibrate([(values * np.float32("nan"), mask, score)], 0.1)
    with pytest.raises(InputError, match="differ in shape"):
        calibrate([(values, mask[:-1], score)], 0.1)


def test_a_rate_of_ones_own_is_recorded_and_in_force():
    found = calibrate(scans([np.random.default_rng(5).random(5000).astype(np.float32)]), 0.0123456789)
    assert found.threshold == found.quantiles["0.0123456789"]
    assert len([line for line in found.promises() if "in force" in line]) == 1
    assert len(found.quantiles) == len(RATES) + 1


def test_promises_name_every_recorded_rate_and_the_one_in_force():
    lines = calibrate(scans([np.random.default_rng(4).random(5000).astype(np.float32)]), 0.01).promises()
    assert len(lines) == len(RATES)
    assert [line for line in lines if "in force" in line] == [line for line in lines if "10,000 voxels" in line]
    assert "1 ml per litre" in lines[2]


def by_contrast():
    rng = np.random.default_rng(6)
    values = [rng.random(500).astype(np.float32) * (1 if kind == "t1" else 3) for kind in KINDS]
    return calibrate(scans(values), 0.01, origin="here", contrasts=KINDS), values


KINDS = ["t1", "flair", "t1", "t1", "flair", "t1", "flair", "", "", "", ""]


def test_a_contrast_with_scans_enough_has_the_threshold_of_its_own_scans():
    found, values = by_contrast()
    alone = calibrate(scans([v for v, kind in zip(values, KINDS, strict=True) if kind == "t1"]), 0.01)
    assert list(found.contrasts) == ["t1"]  # three of flair are too few, and no kind is none
    assert found.of_contrast("t1").quantiles == alone.quantiles
    assert found.of_contrast("t1").case_scores == alone.case_scores
    assert found.of_contrast("t1").origin == "here, of which the 4 that read as t1"
    assert found.of_contrast("flair") is found
    assert found.threshold == calibrate(scans(values), 0.01).threshold
    assert len(found.promises()) == 2 * len(RATES)


FORMED = [("t1", "volume")] * 4 + [("flair", "stack")] * 5 + [("t1", "stack")] * 2 + [("", "volume"), ("t2", "volume")]


def by_form():
    rng = np.random.default_rng(7)
    values = [rng.random(300).astype(np.float32) * (1 + index) for index in range(len(FORMED))]
    kinds, forms = zip(*FORMED, strict=True)
    return calibrate(scans(values), 0.01, origin="here", contrasts=kinds, forms=forms), values


@pytest.mark.parametrize(
    ("kind", "form", "own", "origin"),
    [
        ("t1", "volume", range(4), "here, of which the 6 scored as volumes and of these the 4 that read as t1"),
        ("flair", "stack", range(4, 9), "here, of which the 7 scored as stacks and of these the 5 that read as flair"),
        ("t1", "stack", [0, 1, 2, 3, 9, 10], "here, of which the 6 that read as t1"),  # two stacks are too few
        ("flair", "volume", range(4, 9), "here, of which the 5 that read as flair"),
        ("t2", "volume", [0, 1, 2, 3, 11, 12], "here, of which the 6 scored as volumes"),
        ("", "stack", range(4, 11), "here, of which the 7 scored as stacks"),
        ("t1", "", [0, 1, 2, 3, 9, 10], "here, of which the 6 that read as t1"),  # a model of one orientation
        ("", "", range(13), "here"),
    ],
)
def test_a_scan_follows_the_scans_of_its_contrast_and_form_or_wider_ones(kind, form, own, origin):
    found, values = by_form()
    alone = calibrate(scans([values[index] for index in own]), 0.01)
    part = found.of_contrast(kind, form)
    assert (part.quantiles, part.case_scores, part.origin) == (alone.quantiles, alone.case_scores, origin)


def test_a_threshold_that_was_given_has_no_rate_in_json_either():
    given = with_threshold(calibrate(iter([(np.linspace(0, 1, 100), np.ones(100, bool), 0.9)]), 0.01), 0.7)
    stored = {**given.to_dict(), "false_positive_rate": None}  # JSON has no NaN
    assert np.isnan(Calibration.from_dict(stored).false_positive_rate)
    assert Calibration.from_dict(stored).threshold == 0.7


def test_forms_are_kept_in_json_and_follow_a_threshold_and_are_absent_from_earlier_calibrations():
    found, values = by_form()
    stored = json.loads(json.dumps(found.to_dict()))
    assert Calibration.from_dict(stored) == found
    assert with_threshold(found, 0.7).of_contrast("flair", "stack").threshold == 0.7
    assert with_threshold(found, rate=0.1).of_contrast("", "stack").threshold == found.forms["stack"].quantiles["0.1"]
    earlier = Calibration.from_dict({name: value for name, value in stored.items() if name != "forms"})
    assert earlier == calibrate(scans(values), 0.01, origin="here", contrasts=[kind for kind, _ in FORMED])
    assert earlier.of_contrast("flair", "stack") == earlier.contrasts["flair"]


def test_scans_of_one_form_need_no_calibration_of_it():
    values = [np.random.default_rng(8).random(100).astype(np.float32)] * 5
    assert not calibrate(scans(values), 0.01, forms=["stack"] * 5).forms


def test_thresholds_of_contrasts_are_kept_in_json_and_follow_a_rate_and_a_threshold_that_is_given():
    found, _ = by_contrast()
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    other = with_threshold(found, rate=0.1)
    assert other.of_contrast("t1").threshold == found.contrasts["t1"].quantiles["0.1"]
    assert other.threshold == found.quantiles["0.1"]
    given = with_threshold(found, 0.7)
    assert given.threshold == given.of_contrast("t1").threshold == 0.7
    assert given.of_contrast("t1").case_scores == found.contrasts["t1"].case_scores
