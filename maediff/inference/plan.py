"""Plan a run, and handle a run with nothing left to do; neither loads a network or the packages that it needs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from maediff.data.cases import Case
from maediff.errors import InputError, MAEDiffError
from maediff.inference.cohort import (
    CaseTable,
    InferSummary,
    PlannedCase,
    finished_outcome,
    refresh_paths,
    summarize,
    table_name,
)
from maediff.locking import PARTICIPANTS, Part, folder_lock
from maediff.tables import listed
from maediff.volume import read_channel, read_mask, read_nifti

log = logging.getLogger(__name__)
_MAX_PART = 100  # characters of a part in the name of its table


def check_planned(plan: Iterable[PlannedCase]) -> list[PlannedCase]:
    """Read every planned scan with its brain mask, and mark those that cannot be used.

    Args:
        plan: From :func:`maediff.plan_inference`.

    Returns:
        The same scans; ``action`` is "fail" and ``message`` says why if a file cannot be used.
    """
    return [_checked(item) if item.action == "infer" else item for item in plan]


def nothing_to_do(plan: Sequence[PlannedCase], out: str | Path) -> bool:
    """Check whether every scan of a plan is finished and the run that computed them left its `run.json`."""
    return bool(plan) and all(item.action == "skip" for item in plan) and (Path(out) / "run.json").is_file()


def keep_finished(plan: Sequence[PlannedCase], out: str | Path, *, part: Part = (1, 1)) -> InferSummary:
    """List finished scans in `cases.tsv` from their sidecars; the `run.json` of the run that computed them is kept.

    Args:
        plan: From :func:`maediff.plan_inference`, with nothing to do.
        out: Output folder.
        part: Part of the cohort that the run works on.

    Returns:
        The summary of a run that skipped every scan.

    Raises:
        OutputError: The table cannot be written, or another run writes there.
    """
    out = Path(out)
    with folder_lock(out, part), CaseTable(out / table_name(part)) as rows:
        for item in plan:
            refresh_paths(item.sidecar, item)
            rows.outcomes.append(finished_outcome(item.case, item.sidecar))
    return summarize(rows.outcomes)


def of_participants(cases: Sequence[Case], participants: Sequence[str], sessions: Sequence[str]) -> list[Case]:
    """Keep the scans of some participants and sessions; all scans if none are named.

    Args:
        cases: Scans.
        participants: Labels with or without ``sub-``.
        sessions: Labels with or without ``ses-``.

    Raises:
        InputError: No scan has a label, or there is no scan of these participants in these sessions.
    """
    subjects, visits = _labels(participants, "sub-"), _labels(sessions, "ses-")
    missing = subjects - {case.subject for case in cases} | visits - {case.session or "" for case in cases}
    if missing:
        known = listed(sorted({case.subject for case in cases}))
        raise InputError(f"no scan of {', '.join(sorted(missing))}; the participants with scans are {known}")
    kept = [
        case
        for case in cases
        if (not subjects or case.subject in subjects) and (not visits or (case.session or "") in visits)
    ]
    if not kept:
        raise InputError(f"no scan of {', '.join(sorted(subjects))} in {', '.join(sorted(visits))}")
    return kept


def part_of(shard: tuple[int, int], participants: Sequence[str], sessions: Sequence[str] = ()) -> Part:
    """Name the part of a cohort that a run works on, so that job arrays can run one participant per job.

    Example:
        >>> part_of((1, 1), ["02", "01"], ["a"])
        ('sub-01_sub-02_ses-a', 'participants')
    """
    if not (participants or sessions):
        return shard
    name = "_".join([*sorted(_labels(participants, "sub-")), *sorted(_labels(sessions, "ses-"))])
    if len(name) > _MAX_PART:
        name = f"{name[:_MAX_PART]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name, PARTICIPANTS


def _labels(labels: Sequence[str], prefix: str) -> set[str]:
    return {f"{prefix}{label.removeprefix(prefix)}" for label in labels}


def _checked(item: PlannedCase) -> PlannedCase:
    try:
        volume = read_nifti(item.image)
        for path in item.others:
            read_channel(path, volume)
        if item.mask is not None:
            read_mask(item.mask, volume, "brain mask")
    except MAEDiffError as error:
        return replace(item, action="fail", message=" ".join(str(error).split()))
    return item
