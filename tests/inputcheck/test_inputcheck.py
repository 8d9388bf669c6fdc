"""The input check: right on sixty good and sixty bad inputs that are made here, and its calibration's round trip."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from maediff.calibration import Calibration
from maediff.errors import InputError
from maediff.inputcheck import (
    HealthyScan,
    MapMeasures,
    compare,
    refuse,
    refuse_ct,
)
from maediff.inputcheck.template import build_template, template
from maediff.volume import Volume


@pytest.fixture(scope="module")
def made(benchmarks_importable):
    """The module that makes scans, good and bad."""
    from benchmarks.robustness import made_scans

    return made_scans


@pytest.fixture(scope="module")
def check(benchmarks_importable):
    """The benchmark of the input check."""
    from benchmarks.robustness import input_check

    return input_check


@pytest.fixture(scope="module")
def healthy(check):
    """What calibration stores of six FLAIR scans, through JSON."""
    scans = check.healthy_flair()
    stored = Calibration(0.3, 0.01, 6, 100, {"0.01": 0.3}, (0.1,) * 6, healthy=tuple(s.to_dict() for s in scans))
    back = Calibration.from_dict(json.loads(json.dumps(stored.to_dict())))
    return tuple(HealthyScan.from_dict(scan) for scan in back.healthy)


def test_sixty_good_inputs_pass_and_sixty_bad_ones_are_named(made, check, healthy):
    found = made.judge(healthy)
    assert (found["good"], found["bad"]) == (60, 60)
    assert len(found["alarms"]) <= 2, found["alarms"]
    assert len(found["missed"]) <= 2, found["missed"]
    stored = json.loads((check.ROOT / "benchmarks" / "results" / "input_check.json").read_text())["results"]["made"]
    assert found == stored  # the numbers that the page states


def test_the_page_states_what_the_benchmark_stored(check):
    stored = json.loads((check.ROOT / "benchmarks" / "results" / "input_check.json").read_text())["results"]
    page = check.PAGE.read_text(encoding="utf-8")
    assert check.with_results(page, stored) == page
    said = {"input": "x", "score": None, "standing": "", "flagged_ml": None, "said": []}
    other = check.with_results(page, stored | {"model": "m", "said": [said]})
    assert "| x | – | – | nothing |" in other
    with pytest.raises(InputError, match="no place for the results"):
        check.with_results("# Page", stored)


def test_a_map_that_is_high_everywhere_is_no_finding(made, healthy):
    scan = made.measured(*made.brain(3, "flair"))
    assert [note.code for note in compare(scan, MapMeasures(0.2, 0.3, 0.4), healthy)] == ["map-high"]
    assert compare(scan, MapMeasures(0.05, 0.3, 0.02), healthy) == []  # a lesion moves the tail, not the median
    assert compare(scan, MapMeasures(0.2, 0.3, 0.4), healthy[:4]) == []  # too few to compare with


def test_calibrations_of_earlier_versions_have_no_healthy_scans():
    stored = Calibration(0.3, 0.01, 1, 100, {"0.01": 0.3}, (0.1,)).to_dict()
    del stored["healthy"]
    assert Calibration.from_dict(stored).healthy == ()


def test_what_cannot_be_meant_is_refused_unless_accepted():
    def volume(data):
        return Volume(np.asarray(data, np.float32), np.diag([4, 4, 4, 1.0]), nib.Nifti1Header())

    rng = np.random.default_rng(0)
    inside = np.zeros((40, 40, 40), bool)
    inside[5:35, 5:35, 5:35] = True
    ct = volume(np.where(inside, rng.normal(35, 10, inside.shape), -1000))
    with pytest.raises(InputError, match=r"CT.*--accept ct"):
        refuse_ct(ct)
    refuse_ct(ct, {"ct"})
    refuse_ct(volume(np.where(inside, rng.normal(800, 200, inside.shape), -1024)))  # MR with a shifted background
    empty = volume(np.where(np.arange(40) < 10, inside * rng.random(inside.shape), 0))
    with pytest.raises(InputError, match="--accept empty"):
        refuse(empty, inside)
    refuse(empty, inside, {"empty"})
    head = volume(rng.random((40, 40, 40)))
    with pytest.raises(InputError, match=r"4,096 ml.*--accept whole-head"):
        refuse(head, np.ones((40, 40, 40), bool))


@pytest.mark.slow
def test_the_stored_template_is_nilearns():
    made, stored = build_template(), template()
    assert made.sides == stored.sides
    np.testing.assert_allclose(made.share, stored.share, atol=0.01)
    np.testing.assert_allclose(made.values, stored.values, atol=0.01)
