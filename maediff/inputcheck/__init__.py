"""Check whether a scan is like those that the model knows: measures of a scan, and rules on departures."""

from maediff.inputcheck.measures import HealthyScan, MapMeasures, ScanMeasures, measure_scan
from maediff.inputcheck.rules import ACCEPTABLE, Note, as_dict, check_scan, compare, refuse, refuse_ct

__all__ = [
    "ACCEPTABLE",
    "HealthyScan",
    "MapMeasures",
    "Note",
    "ScanMeasures",
    "as_dict",
    "check_scan",
    "compare",
    "measure_scan",
    "refuse",
    "refuse_ct",
]
