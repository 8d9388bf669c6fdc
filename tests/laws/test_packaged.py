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
def test_the_contrast_is_read_and_a_tumour_stands_out(heads, contrast):
    phantom = subject((7, 1), contrast, "tumour", spacing_mm=4.0)
    result = heads.predict(as_volume(phantom))
    truth = phantom.label[result.brain_mask]
    assert result.contrast == contrast
    assert result.steps["sign"] == LESION_SIGNS[contrast]
    assert average_precision_score(truth, result.anomaly[result.brain_mask]) > 5 * truth.mean()
    assert result.threshold == heads.calibration.contrasts[contrast].threshold
    assert result.anomaly_mask[phantom.label].mean() > 3 * result.anomaly_mask[result.brain_mask].mean()
