"""The public API, name by name, so that a change of it is seen."""

from __future__ import annotations

import subprocess
import sys

import pytest

import maediff


def test_the_public_names():
    assert sorted(maediff.__all__) == [
        "AnomalyResult",
        "Config",
        "MAEDiffError",
        "MAEDiffSubject",
        "MAEDiffd",
        "Predictor",
        "PrepareSettings",
        "Volume",
        "__version__",
        "adapt_model",
        "calibrate_model",
        "convert_dicom",
        "document_model",
        "estimate_inference",
        "evaluate",
        "export_bundle",
        "export_dicom",
        "infer",
        "load_config",
        "load_model",
        "plan_inference",
        "prepare_cohort",
        "read_dicom",
        "read_nifti",
        "restore_cohort",
        "synthesise",
        "synthesise_heads",
        "train",
        "write_report",
    ]
    assert dir(maediff) == maediff.__all__


@pytest.mark.parametrize("name", [name for name in maediff.__all__ if name != "__version__"])
def test_every_name_loads_and_is_documented(name):
    thing = getattr(maediff, name)
    assert thing.__name__ == name
    assert thing.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        _ = maediff.segment


def test_importing_the_package_is_light():
    code = "import maediff, sys; print(sorted({'torch', 'numpy', 'monai', 'nibabel'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
