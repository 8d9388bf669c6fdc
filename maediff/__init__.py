"""MAEDiff: unsupervised anomaly detection in brain MRI with masked-autoencoder-enhanced diffusion.

The public API is this module's `__all__`. Names load on first use, so that ``import maediff`` is quick. Research use
only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from maediff._version import __version__
from maediff.system import name_user

name_user()  # before anything imports MONAI or PyTorch

_HOMES = {
    "AnomalyResult": "maediff.inference.result",
    "Config": "maediff.config",
    "MAEDiffError": "maediff.errors",
    "MAEDiffSubject": "maediff.transforms",
    "MAEDiffd": "maediff.transforms",
    "Predictor": "maediff.inference.predictor",
    "PrepareSettings": "maediff.rawhead.scan",
    "Volume": "maediff.volume",
    "adapt_model": "maediff.jobs.adapt",
    "calibrate_model": "maediff.jobs.calibrate",
    "convert_dicom": "maediff.dicom",
    "document_model": "maediff.evaluation.document",
    "estimate_inference": "maediff.jobs.infer",
    "evaluate": "maediff.evaluation.evaluate",
    "export_bundle": "maediff.bundle",
    "export_dicom": "maediff.dicom",
    "infer": "maediff.jobs.infer",
    "load_config": "maediff.config",
    "load_model": "maediff.inference.load",
    "plan_inference": "maediff.jobs.infer",
    "prepare_cohort": "maediff.rawhead.prepare",
    "read_dicom": "maediff.dicom",
    "read_nifti": "maediff.volume",
    "restore_cohort": "maediff.rawhead.restore",
    "synthesise": "maediff.data.synthesis",
    "synthesise_heads": "maediff.data.head_cohort",
    "train": "maediff.jobs.train",
    "write_report": "maediff.report.html",
}

if TYPE_CHECKING:
    from maediff.bundle import export_bundle
    from maediff.config import Config, load_config
    from maediff.data.head_cohort import synthesise_heads
    from maediff.data.synthesis import synthesise
    from maediff.dicom import convert_dicom, export_dicom, read_dicom
    from maediff.errors import MAEDiffError
    from maediff.evaluation.document import document_model
    from maediff.evaluation.evaluate import evaluate
    from maediff.inference.load import load_model
    from maediff.inference.predictor import Predictor
    from maediff.inference.result import AnomalyResult
    from maediff.jobs.adapt import adapt_model
    from maediff.jobs.calibrate import calibrate_model
    from maediff.jobs.infer import estimate_inference, infer, plan_inference
    from maediff.jobs.train import train
    from maediff.rawhead.prepare import prepare_cohort
    from maediff.rawhead.restore import restore_cohort
    from maediff.rawhead.scan import PrepareSettings
    from maediff.report.html import write_report
    from maediff.transforms import MAEDiffd, MAEDiffSubject
    from maediff.volume import Volume, read_nifti

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maediff' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
