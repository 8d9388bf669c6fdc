"""Prepare many raw scans: write a model-ready scan, mask and sidecar each; one bad scan never stops the others."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maediff._version import __version__
from maediff.data.bids import SPACE
from maediff.data.cases import Case
from maediff.data.walk import as_facts
from maediff.errors import InputError, OutputError, one_line
from maediff.files import file_sha256, read_json, update_json, write_json
from maediff.locking import folder_lock
from maediff.notes import read_notes
from maediff.paths import WRITTEN_IN, stored_path
from maediff.provenance import run_record, write_run
from maediff.rawhead.channels import FirstChannel, prepare_channel
from maediff.rawhead.grid import Brain, Grid, space_code
from maediff.rawhead.scan import PrepareSettings, prepare_scan, resample_label
from maediff.rawhead.sources import RawScan, RawScans, raw_scans
from maediff.tables import write_table
from maediff.volume import read_mask, read_nifti, write_like

log = logging.getLogger(__name__)
_COLUMNS = ("mask", "label", "subject", "session", "split")


@dataclass(frozen=True)
class PreparedCase:
    """Outcome of one raw scan; a row of ``prepare.tsv``."""

    case: str
    status: Literal["done", "skipped", "failed"]
    mask_from: str | None = None
    brain_ml: float | None = None
    seconds: float | None = None
    message: str = ""
    notes: tuple[str, ...] = ()
    """Notes for the user about the scan; `message` joins them in the table."""


@dataclass(frozen=True)
class PrepareSummary:
    """Outcomes of all scans."""

    cases: tuple[PreparedCase, ...]

    def count(self, status: str) -> int:
        """Count the scans that are ``done``, ``skipped`` or ``failed``."""
        return sum(case.status == status for case in self.cases)


@dataclass(frozen=True)
class PreparedFiles:
    """Paths of the files of a case."""

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


def prepare_cohort(  # noqa: PLR0913  a public function: a keyword per option
    source: str | Path,
    out: str | Path,
    settings: PrepareSettings | None = None,
    *,
    mask: str | Path | None = None,
    channel: str | None = None,
    series: int | None = None,
    pattern: str | None = None,
    overwrite: bool = False,
    on_start: Callable[[int], None] | None = None,
    on_case: Callable[[PreparedCase], None] | None = None,
) -> PrepareSummary:
    """Turn raw head scans into model-ready ones.

    The output folder holds, per scan, the prepared scan, its brain mask, its lesion mask if one is given, a sidecar
    that records every step, and the brain mask on the raw voxels; ``cases.csv`` (what train, calibrate and infer
    take), ``prepare.tsv`` (outcome of each scan) and ``run.json``.

    Args:
        source: NIfTI file, folder, CSV/TSV table, BIDS data set, or folder of DICOM series; these are first converted
            into ``raw`` of the output folder.
        out: Output folder.
        settings: Steps to run; the defaults if None.
        mask: Brain mask of a single scan.
        channel: The only ``image_<channel>`` column wanted of a table; without it, all of them are brought to the grid
            and the brain of the first, to which mask and label belong.
        series: DICOM Series Number, if folders hold several series.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
        overwrite: Prepare finished scans again.
        on_start: Called once with the number of scans, before the first is prepared.
        on_case: Called with the outcome of each scan.

    Raises:
        InputError: No scan found.
        ConfigError: The source is DICOM, and pydicom or highdicom is missing.
        OutputError: The output folder cannot be written, or another run writes there.
    """
    out, settings = Path(out), settings or PrepareSettings()
    place = Path(source).resolve()
    if out.resolve() == (place.parent if place.is_file() else place):  # a table of the raw scans would be replaced, too
        raise InputError(f"{out} holds the raw scans; choose another folder for the prepared ones")
    arguments: dict[str, Any] = {
        "source": Path(source),
        "out": out,
        "mask": None if mask is None else Path(mask),
        "channel": channel,
        "series": series,
        "pattern": pattern,
        "overwrite": overwrite,
        "settings": settings.to_dict(),
    }
    with folder_lock(out):
        raw = raw_scans(Path(source), out / "raw", mask=mask, channel=channel, series=series, pattern=pattern)
        if on_start:
            on_start(sum(max(1, len(scan.channels)) for scan in raw.scans))
        summary = _prepare_all(raw, out, settings, overwrite, on_case)
        counts = {status: summary.count(status) for status in ("done", "skipped", "failed")}
        write_run(out, run_record("prepare", arguments, counts=counts, left_out=as_facts(raw.left_out)))
    return summary


def _prepare_all(
    raw: RawScans,
    out: Path,
    settings: PrepareSettings,
    overwrite: bool,
    on_case: Callable[[PreparedCase], None] | None,
) -> PrepareSummary:
    """Prepare all scans, and write the tables of outcomes and of prepared scans."""
    outcomes: list[PreparedCase] = []
    rows = []
    for scan in raw.scans:
        usable = True
        for outcome in _prepared_scan(scan, out, settings, overwrite):
            outcomes.append(outcome)
            usable = usable and outcome.status != "failed"
            columns = [item.name for item in fields(PreparedCase) if item.name != "notes"]
            write_table(out / "prepare.tsv", map(asdict, outcomes), columns, missing="n/a")
            if on_case:
                on_case(outcome)
        if usable:
            rows.append(_row(scan, raw.channels, out, settings))
    images = [f"image_{name}" for name in raw.channels] or ["image"]
    bids = ["bids"] if any(row["bids"] for row in rows) else []
    write_table(out / "cases.csv", rows, [*images, *_COLUMNS, *bids])
    return PrepareSummary(tuple(outcomes))


def _prepared_scan(scan: RawScan, out: Path, settings: PrepareSettings, overwrite: bool) -> Iterator[PreparedCase]:
    """Prepare the channels of a scan, the first one first: the others need it."""
    if scan.problem:
        yield PreparedCase(scan.name, "failed", message=scan.problem)
        return
    first, *others = scan.channels
    outcome = _prepared(first, None, out, settings, overwrite=overwrite)
    yield outcome
    for case in others:
        if outcome.status == "failed":
            yield PreparedCase(case.id, "failed", message=f"its first channel, {first.id}, failed")
        else:
            yield _prepared(case, first, out, settings, overwrite=overwrite)


def _prepared(case: Case, first: Case | None, out: Path, settings: PrepareSettings, *, overwrite: bool) -> PreparedCase:
    files = PreparedFiles.of(case.id, out)
    start = time.perf_counter()
    try:
        key = _key(case, first, settings)
        if not overwrite and _finished(case, files, key):
            update_json(files.sidecar, {"raw": stored_path(case.image, out), WRITTEN_IN: str(out.resolve())})
            found = read_json(files.sidecar)
            mask, notes = found.get("brain_mask", {}), read_notes(found)
            numbers = (mask.get("method"), mask.get("volume_ml"))
            return PreparedCase(case.id, "skipped", *numbers, message="; ".join(notes), notes=notes)
        record = _prepare_one(case, files, settings, None if first is None else _first_channel(first, out))
        write_json(files.sidecar, record | {"key": key, "seconds": round(time.perf_counter() - start, 1)})
    except OutputError:
        raise
    except Exception as error:  # whatever is wrong with a scan must not stop the others
        log.debug("case %s failed", case.id, exc_info=True)
        return PreparedCase(case.id, "failed", message=one_line(error))
    seconds, brain, notes = time.perf_counter() - start, record["brain_mask"], read_notes(record)
    return PreparedCase(case.id, "done", brain["method"], brain["volume_ml"], seconds, "; ".join(notes), notes)


def _first_channel(case: Case, out: Path) -> FirstChannel:
    """Read back what the other channels of a scan need of the first."""
    files = PreparedFiles.of(case.id, out)
    raw, found = read_nifti(case.image), read_json(files.sidecar)
    brain = Brain(
        read_mask(files.mask, read_nifti(files.image), "brain mask"), read_mask(files.raw_mask, raw, "brain mask")
    )
    affine, (x, y, z) = (found["prepared_grid"][name] for name in ("affine", "shape"))
    code = space_code(found["settings"]["register"])
    return FirstChannel(raw, brain, Grid(np.array(affine), (x, y, z), code, np.array(found["prepared_to_raw_mm"])))


def _prepare_one(
    case: Case, files: PreparedFiles, settings: PrepareSettings, first: FirstChannel | None
) -> dict[str, Any]:
    inputs = {path.resolve() for path in (case.image, case.mask, case.label) if path is not None}
    clash = next((path for path in asdict(files).values() if path.resolve() in inputs), None)
    if clash is not None:
        raise InputError(f"{clash} is an input, and would be replaced by its prepared version; choose another folder")
    for path in asdict(files).values():
        path.unlink(missing_ok=True)  # until the new files are complete, none is finished
    raw = read_nifti(case.image)
    given = None if case.mask is None else read_mask(case.mask, raw, "brain mask")
    label = None if case.label is None else read_mask(case.label, raw, "lesion mask")
    done = prepare_scan(raw, given, settings) if first is None else prepare_channel(raw, first, settings)
    write_like(files.image, done.volume.data, done.volume)
    write_like(files.mask, done.mask, done.volume, np.uint8)
    write_like(files.raw_mask, done.native_mask, raw, np.uint8)
    if label is not None:
        write_like(files.label, resample_label(label, done, raw), done.volume, np.uint8)
    folder = files.sidecar.parent
    facts: dict[str, Any] = {"case": case.id, "raw": stored_path(case.image, folder), WRITTEN_IN: str(folder.resolve())}
    facts |= {"settings": settings.to_dict()}
    return facts | done.record | {"maediff": __version__, "use": "research use only"}


def _key(case: Case, first: Case | None, settings: PrepareSettings) -> str:
    """Hash what a prepared scan depends on: the files, its first channel's, the settings and the version."""
    paths = [path for scan in (case, first) if scan for path in (scan.image, scan.mask, scan.label)]
    parts = [file_sha256(path) if path else None for path in paths]
    text = json.dumps([parts, settings.to_dict(), __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(case: Case, files: PreparedFiles, key: str) -> bool:
    wanted = [files.image, files.mask, files.raw_mask, *([files.label] if case.label else [])]
    return all(path.is_file() for path in wanted) and read_json(files.sidecar).get("key") == key


def _row(scan: RawScan, channels: tuple[str, ...], out: Path, settings: PrepareSettings) -> dict[str, str | None]:
    first = scan.channels[0]
    files = PreparedFiles.of(first.id, out)
    names = [f"image_{name}" for name in channels] or ["image"]
    images = [PreparedFiles.of(case.id, out).image.name for case in scan.channels]
    label = files.label.name if first.label else None
    bids = first.bids if first.bids is None or settings.register == "none" else first.bids.in_space(SPACE)
    rest = (files.mask.name, label, first.subject, first.session, first.split)
    return (
        dict(zip(names, images, strict=True))
        | dict(zip(_COLUMNS, rest, strict=True))
        | {"bids": bids.scan if bids else None}
    )
