"""What is read from a scan before it is scored: its brain, and the sign of its lesions."""

import numpy as np
import pytest

from maediff import extraction
from maediff.config import load_config, override
from maediff.errors import InputError
from maediff.extraction import Extraction
from maediff.inference import reading
from maediff.inference.reading import find_brain, read_sign
from maediff.notes import level_of
from maediff.volume import Volume, new_header
from maediff.working import prepare
from maediff.working.contrast import ContrastReading

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (60, 66, 50)


def ball(radius):
    middle = (np.array(SHAPE) - 1) / 2
    return ((np.indices(SHAPE) - middle[:, None, None, None]) ** 2).sum(0) <= radius**2


def scan(*, stripped):
    rng = np.random.default_rng(0)
    air = 0 if stripped else rng.random(SHAPE) * 8
    tissue = 60 + 30 * rng.random(SHAPE)
    data = np.where(ball(20), tissue, air).astype(np.float32)
    return Volume(data, AFFINE, new_header(AFFINE, SHAPE, "scanner"))


def config(*changes):
    return override(load_config("tiny"), changes)


@pytest.fixture
def found(monkeypatch):
    """A brain extraction that finds a ball, and notes its calls."""
    calls = []

    def extract(volume):
        calls.append(volume)
        return Extraction(ball(18), 0.9, 4.0, ("thick slices were assumed",))

    monkeypatch.setattr(extraction, "extract_brain", extract)
    return calls


def test_the_brain_of_a_whole_head_is_extracted_and_recorded(found):
    brain, steps = find_brain(scan(stripped=False), config())
    np.testing.assert_array_equal(brain, ball(18))
    assert steps.record["brain_mask"]["method"] == "extraction"
    assert steps.record["brain_mask"]["assumed_slice_mm"] == 4.0
    assert steps.record["brain_mask"]["volume_ml"] == pytest.approx(ball(18).sum() * 27 / 1000, abs=0.1)
    assert "look at the mask" in steps.notes[0]
    assert steps.notes[1] == "thick slices were assumed"
    assert [level_of(note) for note in steps.notes] == ["information", "warning"]


@pytest.mark.parametrize(("stripped", "strip"), [(True, "auto"), (False, "never")])
def test_a_stripped_scan_and_an_unwanted_step_leave_the_scan_alone(found, stripped, strip):
    brain, steps = find_brain(scan(stripped=stripped), config(f"infer.strip={strip}"))
    assert brain is None
    assert steps.record == {}
    assert steps.notes == ()
    assert found == []


def test_a_head_that_is_not_stripped_is_refused_where_stripping_is_off():
    with pytest.raises(InputError, match="not skull-stripped"):
        prepare(scan(stripped=False), None, config().data)


SHARES = {"t1": 0.6, "t2": 0.1, "flair": 0.3}


@pytest.mark.parametrize("sign", ["abs", "bright", "dark"])
def test_a_sign_that_is_set_is_kept(sign):
    volume, chosen = scan(stripped=True), config(f"score.sign={sign}")
    assert read_sign(volume, [], prepare(volume, None, chosen.data), chosen) == reading.Reading(sign)


@pytest.mark.parametrize(("sign", "kind"), [("bright", "flair"), ("dark", "t1"), ("abs", "")])
def test_a_sign_that_is_set_narrows_the_contrast_whose_calibration_holds(monkeypatch, sign, kind):
    monkeypatch.setattr(reading, "read_contrast", lambda *_: ContrastReading("t1", SHARES))
    volume, chosen = scan(stripped=True), config(f"score.sign={sign}")
    found = read_sign(volume, [], prepare(volume, None, chosen.data), chosen, ("t1", "flair"))
    assert (found.sign, found.contrast) == (sign, kind)
    assert [level_of(note) for note in found.steps.notes] == ["information"] * bool(kind)


@pytest.mark.parametrize(
    ("kinds", "sign"), [(["t1"], "dark"), (["flair"], "bright"), (["t2", "flair"], "bright"), (["t1", "t2"], "abs")]
)
def test_auto_follows_the_contrast_of_all_channels(monkeypatch, kinds, sign):
    readings = iter([ContrastReading(kind, {kind: 1.0}) for kind in kinds])
    monkeypatch.setattr(reading, "read_contrast", lambda *_: next(readings))
    volume, chosen = scan(stripped=True), config("score.sign=auto")
    found = read_sign(volume, [volume] * (len(kinds) - 1), prepare(volume, None, chosen.data), chosen)
    assert found.sign == sign
    assert found.contrast == (kinds[0] if len(kinds) == 1 else "")
    assert found.steps.record["sign"] == sign
    assert kinds[0].upper() in found.steps.notes[0]
    assert level_of(found.steps.notes[0]) == ("warning" if sign == "abs" else "information")  # abs: it is not sure
