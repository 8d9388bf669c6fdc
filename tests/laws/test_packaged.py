"""The packaged model is of use on a scan of any contrast, as it is installed."""

from __future__ import annotations

import pytest
from sklearn.metrics import average_precision_score

import maediff
from maediff.data.phantom import subject
from maediff.data.synthesis import as_volume
from maediff.working.contrast import LESION_SIGNS


@pytest.fixture(scope="module")
def heads():
    return maediff.load_model("heads", "cpu")


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair"])
def test_contrast_sign_and_threshold_follow_the_scan(heads, contrast):
    scan = heads.prepare(as_volume(subject((7, 1), contrast, spacing_mm=2.0)))
    assert (scan.reading.contrast, scan.reading.sign) == (contrast, LESION_SIGNS[contrast])
    assert heads.calibration_of(scan) == heads.calibration.forms["volume"].contrasts[contrast]


def test_a_tumour_stands_out_on_flair(heads):
    phantom = subject((7, 1), "flair", "tumour", spacing_mm=2.0)
    result = heads.predict(as_volume(phantom))
    truth = phantom.label[result.brain_mask]
    assert average_precision_score(truth, result.anomaly[result.brain_mask]) > 20 * truth.mean()
    assert result.anomaly_mask[phantom.label].mean() > 10 * result.anomaly_mask[result.brain_mask].mean()
