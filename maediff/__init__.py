"""MAEDiff: unsupervised anomaly detection in brain MRI with masked-autoencoder-enhanced diffusion.

The public API is this module's `__all__`. Names load on first use, so that ``import maediff`` is quick. Research use
only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AnomalyResult": "maediff.inference.predictor",
    "Config": "maediff.config",
    "MAEDiffError": "maediff.errors",
    "Predictor": "maediff.inference.predictor",
    "PrepareSettings": "maediff.preparation.scan",
    "Volume": "maediff.volume",
    "calibrate_model": "maediff.workflow",
    "convert_dicom": "maediff.dicom",
    "document_model": "maediff.evaluation.document",
    "estimate_inference": "maediff.workflow",
    "evaluate": "maediff.evaluation.evaluate",
    "export_bundle": "maediff.bundle",
    "export_dicom": "maediff.dicom",
    "infer": "maediff.workflow",
    "load_config": "maediff.config",
    "load_model": "maediff.inference.predictor",
    "plan_inference": "maediff.inference.plan",
    "prepare_cohort": "maediff.preparation.cohort",
    "read_dicom": "maediff.dicom",
    "read_nifti": "maediff.volume",
    "restore_cohort": "maediff.preparation.restore",
    "synthesise": "maediff.data.cohort",
    "train": "maediff.workflow",
    "write_report": "maediff.report.html",
}

if TYPE_CHECKING:
    from maediff.bundle import export_bundle
    from maediff.config import Config, load_config
    from maediff.data.cohort import synthesise
    from maediff.dicom import convert_dicom, export_dicom, read_dicom
    from maediff.errors import MAEDiffError
    from maediff.evaluation.document import document_model
    from maediff.evaluation.evaluate import evaluate
    from maediff.inference.plan import plan_inference
    from maediff.inference.predictor import AnomalyResult, Predictor, load_model
    from maediff.preparation.cohort import prepare_cohort
    from maediff.preparation.restore import restore_cohort
    from maediff.preparation.scan import PrepareSettings
    from maediff.report.html import write_report
    from maediff.volume import Volume, read_nifti
    from maediff.workflow import calibrate_model, estimate_inference, infer, train

__all__ = [
    "AnomalyResult",
    "Config",
    "MAEDiffError",
    "Predictor",
    "PrepareSettings",
    "Volume",
    "__version__",
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
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maediff' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
