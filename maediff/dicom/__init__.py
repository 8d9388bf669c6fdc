"""DICOM series in, DICOM SEG and Parametric Map out; only here are pydicom and highdicom (extra ``dicom``) used."""

from maediff.dicom.convert import Converted, convert_dicom, dicom_cases, holds_dicom
from maediff.dicom.export import Exported, export_dicom
from maediff.dicom.series import read_dicom

__all__ = ["Converted", "Exported", "convert_dicom", "dicom_cases", "export_dicom", "holds_dicom", "read_dicom"]
