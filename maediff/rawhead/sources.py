"""Scans to prepare: of one channel or several, as NIfTI files or as DICOM series that are converted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from maediff.data.cases import Case, channels_of, find_cases, search_cases
from maediff.data.walk import LeftOut
from maediff.dicom import dicom_cases, holds_dicom
from maediff.errors import InputError


@dataclass(frozen=True)
class RawScan:
    """A scan to prepare.

    Attributes:
        name: Its name.
        channels: Its channels, of which the first leads; empty if it cannot be prepared.
        problem: Why it cannot be prepared.
    """

    name: str
    channels: tuple[Case, ...]
    problem: str = ""


@dataclass(frozen=True)
class RawScans:
    """Scans, the names of their channels (a single channel has none), and what of the source is not used."""

    scans: tuple[RawScan, ...]
    channels: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def raw_scans(
    source: Path,
    folder: Path,
    *,
    mask: str | Path | None,
    channel: str | None,
    series: int | None,
    pattern: str | None = None,
) -> RawScans:
    """List the scans of a source; a table with several ``image_<channel>`` columns gives scans of several channels.

    Args:
        source: NIfTI file, folder, table, BIDS data set or folder of DICOM series.
        folder: Where DICOM series go as NIfTI files.
        mask: Brain mask of a single scan.
        channel: The only channel wanted, of several.
        series: DICOM Series Number, if folders hold several series.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.

    Raises:
        InputError: No scan found, a channel that a row lacks, or an option that does not go with the source.
        ConfigError: The source is DICOM, and pydicom or highdicom is missing.
    """
    if holds_dicom(source, [folder.parent]):
        if channel is not None:
            raise InputError(f"{source} is DICOM, which has no channel {channel!r}; leave the channel out")
        cases = dicom_cases(source, folder, mask, series)
        return RawScans(tuple(RawScan(case.id, () if case.problem else (case,), case.problem) for case in cases))
    names = channels_of(source) if channel is None else ()
    if len(names) < 2:
        wanted = channel or next(iter(names), None)
        found = search_cases(source, mask, channel=wanted, pattern=pattern, exclude=[folder.parent])
        return RawScans(tuple(RawScan(case.id, (case,)) for case in found.cases), left_out=found.left_out)
    if mask is not None:
        raise InputError(f"a brain mask can be given for a single scan, not for {source}; use its mask column")
    return RawScans(_several_channels(source, names), names)


def _several_channels(source: Path, names: tuple[str, ...]) -> tuple[RawScan, ...]:
    """Join the channels of each row; mask and label belong to the first, and names tell channels apart."""
    columns = [find_cases(source, channel=name) for name in names]
    count = Counter(case.id for column in columns for case in column)
    unique = max(count.values()) == 1
    scans = []
    for row in zip(*columns, strict=True):
        first, *others = (
            case if unique else replace(case, id=f"{case.id}_{name}") for case, name in zip(row, names, strict=True)
        )
        scans.append(RawScan(first.id, (first, *(replace(case, mask=None, label=None) for case in others))))
    return tuple(scans)
