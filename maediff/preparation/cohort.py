"""Many raw scans: each becomes a model-ready scan with its mask and sidecar; one bad scan never stops the others."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maediff import __version__
from maediff.data.bids import SPACE
from maediff.data.cases import Case, find_cases
from maediff.dicom import convert_dicom, holds_dicom
from maediff.errors import InputError, MAEDiffError, OutputError
from maediff.preparation.scan import PrepareSettings, prepare_scan, resample_label
from maediff.provenance import run_record, without_names, write_run
from maediff.store import file_sha256, read_json, write_json
from maediff.tables import write_table
from maediff.volume import read_mask, read_nifti, write_like

log = logging.getLogger(__name__)
_TABLE = ("image", "mask", "label", "subject", "session", "split")


@dataclass(frozen=True)
class PreparedCase:
    """What became of one raw scan; a row of ``prepare.tsv``."""

    case: str
    status: Literal["done", "skipped", "failed"]
    mask_from: str | None = None
    brain_ml: float | None = None
    seconds: float | None = None
    message: str = ""


@dataclass(frozen=True)
class PrepareSummary:
    """Outcomes of all scans."""

    cases: tuple[PreparedCase, ...]

    def count(self, status: str) -> int:
        """Count the scans that are ``done``, ``skipped`` or ``failed``."""
        return sum(case.status == status for case in self.cases)


@dataclass(frozen=True)
class PreparedFiles:
    """Where the files of a case go."""

    image: Path
    mask: Path
    label: Path
    raw_mask: Path
    sidecar: Path

    @classmethod
    def of(cls, case_id: str, out: Path) -> PreparedFiles:
        """Name the files of a case in the output folder."""
        names = ("", "_brainmask", "_lesion")
        image, mask, label = (out / f"{case_id}{name}.nii.gz" for name in names)
        raw_mask = out / "raw_space" / f"{case_id}_brainmask.nii.gz"
        return cls(image, mask, label, raw_mask, out / f"{case_id}_prepare.json")


def prepare_cohort(
    source: str | Path,
    out: str | Path,
    settings: PrepareSettings | None = None,
    *,
    mask: str | Path | None = None,
    channel: str | None = None,
    series: int | None = None,
    overwrite: bool = False,
    on_case: Callable[[PreparedCase], None] | None = None,
) -> PrepareSummary:
    """Turn raw head scans into model-ready ones.

    The output folder holds, per scan, the prepared scan, its brain mask, its lesion mask where one is given, a sidecar
    that records every step, and the brain mask on the raw voxels; ``cases.csv`` (what train, calibrate and infer
    take), ``prepare.tsv`` (what became of each scan) and ``run.json``.

    Args:
        source: NIfTI file, folder, CSV/TSV table, BIDS data set, or folder of DICOM series; these are first converted
            into ``raw`` of the output folder.
        out: Output folder.
        settings: Which steps; the defaults where None.
        mask: Brain mask of a single scan.
        channel: Which ``image_<channel>`` column of a table.
        series: DICOM Series Number, where folders hold several series.
        overwrite: Prepare again what is finished.
        on_case: Told the outcome of each scan.

    Raises:
        InputError: No scan found.
        ConfigError: The source is DICOM, and pydicom or highdicom is missing.
        OutputError: The output folder cannot be written.
    """
    out, settings = Path(out), settings or PrepareSettings()
    if out.resolve() == Path(source).resolve():
        raise InputError(f"{out} holds the raw scans; choose another folder for the prepared ones")
    dicom = holds_dicom(source)
    if dicom and channel is not None:
        raise InputError(f"{source} is DICOM, which has no channel {channel!r}; leave the channel out")
    found = _dicom_cases(Path(source), out / "raw", mask, series) if dicom else find_cases(source, mask, None, channel)
    cases = [case for case in found if isinstance(case, Case)]
    outcomes = []
    for case in found:
        outcome = _prepared(case, out, settings, overwrite) if isinstance(case, Case) else case
        outcomes.append(outcome)
        write_table(out / "prepare.tsv", map(asdict, outcomes), [f.name for f in fields(PreparedCase)], missing="n/a")
        if on_case:
            on_case(outcome)
    usable = {outcome.case for outcome in outcomes if outcome.status != "failed"}
    rows = [_row(case, out, settings) for case in cases if case.id in usable]
    write_table(out / "cases.csv", rows, [*_TABLE, *(["bids"] if any(row["bids"] for row in rows) else [])])
    summary = PrepareSummary(tuple(outcomes))
    arguments = {"source": source, "out": out, "mask": mask, "channel": channel, "series": series}
    arguments["overwrite"] = overwrite
    counts = {status: summary.count(status) for status in ("done", "skipped", "failed")}
    write_run(out, run_record("prepare", arguments | {"settings": settings.to_dict()}, counts=counts))
    return summary


def _dicom_cases(source: Path, folder: Path, mask: str | Path | None, series: int | None) -> list[Case | PreparedCase]:
    """Convert DICOM series; those that cannot be are outcomes already."""
    converted = convert_dicom(source, folder, series)
    if mask is not None and len(converted) > 1:
        raise InputError(f"a brain mask can be given for a single scan, and {source} holds {len(converted)} series")
    return [
        PreparedCase(item.case, "failed", message=item.message)
        if item.path is None
        else find_cases(item.path, mask=mask)[0]
        for item in converted
    ]


def _prepared(case: Case, out: Path, settings: PrepareSettings, overwrite: bool) -> PreparedCase:
    files = PreparedFiles.of(case.id, out)
    start = time.perf_counter()
    try:
        key = _key(case, settings)
        if not overwrite and _finished(files, key):
            found = read_json(files.sidecar).get("brain_mask", {})
            return PreparedCase(case.id, "skipped", found.get("method"), found.get("volume_ml"))
        record = _prepare_one(case, files, settings)
        write_json(files.sidecar, record | {"key": key, "seconds": round(time.perf_counter() - start, 1)})
    except OutputError:
        raise
    except (MAEDiffError, MemoryError, OSError, RuntimeError) as error:
        log.debug("case %s failed", case.id, exc_info=True)
        text = " ".join((str(error) or type(error).__name__).split())
        return PreparedCase(case.id, "failed", message=text)
    seconds, brain, notes = time.perf_counter() - start, record["brain_mask"], "; ".join(record["notes"])
    return PreparedCase(case.id, "done", brain["method"], brain["volume_ml"], seconds, notes)


def _prepare_one(case: Case, files: PreparedFiles, settings: PrepareSettings) -> dict[str, Any]:
    for path in asdict(files).values():
        path.unlink(missing_ok=True)  # until the new files are complete, none is finished
    raw = read_nifti(case.image)
    given = None if case.mask is None else read_mask(case.mask, raw, "brain mask")
    label = None if case.label is None else read_mask(case.label, raw, "lesion mask")
    done = prepare_scan(raw, given, settings)
    write_like(files.image, done.volume.data, done.volume)
    write_like(files.mask, done.mask, done.volume, np.uint8)
    write_like(files.raw_mask, done.native_mask, raw, np.uint8)
    if label is not None:
        write_like(files.label, resample_label(label, done, raw), done.volume, np.uint8)
    facts = {"case": case.id, "raw": without_names(str(case.image.resolve())), "settings": settings.to_dict()}
    return facts | done.record | {"maediff": __version__, "use": "research use only"}


def _key(case: Case, settings: PrepareSettings) -> str:
    """Hash what a prepared scan depends on: the files, the settings and the version."""
    parts = [file_sha256(path) if path else None for path in (case.image, case.mask, case.label)]
    text = json.dumps([parts, settings.to_dict(), __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(files: PreparedFiles, key: str) -> bool:
    present = all(path.is_file() for path in (files.image, files.mask, files.raw_mask))
    return present and read_json(files.sidecar).get("key") == key


def _row(case: Case, out: Path, settings: PrepareSettings) -> dict[str, str | None]:
    files = PreparedFiles.of(case.id, out)
    label = files.label.name if case.label else None
    named = (files.image.name, files.mask.name, label, case.subject, case.session, case.split)
    bids = case.bids if case.bids is None or settings.register == "none" else case.bids.in_space(SPACE)
    return dict(zip(_TABLE, named, strict=True)) | {"bids": bids.scan if bids else None}
