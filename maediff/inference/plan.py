"""What a run would do, and a run with nothing left to do; neither loads a network or the packages that it needs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from maediff.errors import MAEDiffError
from maediff.inference.cohort import (
    CaseTable,
    InferSummary,
    PlannedCase,
    finished_outcome,
    summarize,
    table_name,
)
from maediff.locking import folder_lock
from maediff.volume import read_channel, read_mask, read_nifti

log = logging.getLogger(__name__)


def check_planned(plan: Iterable[PlannedCase]) -> list[PlannedCase]:
    """Read every scan that would be scored, with its brain mask, and mark those that cannot be used.

    Args:
        plan: From :func:`maediff.plan_inference`.

    Returns:
        The same scans; ``action`` is "fail" and ``message`` says why if a file cannot be used.
    """
    return [_checked(item) if item.action == "infer" else item for item in plan]


def nothing_to_do(plan: Sequence[PlannedCase], out: str | Path) -> bool:
    """Check whether every scan of a plan is finished and the run that computed them left its `run.json`."""
    return bool(plan) and all(item.action == "skip" for item in plan) and (Path(out) / "run.json").is_file()


def keep_finished(plan: Sequence[PlannedCase], out: str | Path, *, shard: tuple[int, int] = (1, 1)) -> InferSummary:
    """List finished scans in `cases.tsv` from their sidecars; `run.json` of the run that computed them stays.

    Args:
        plan: From :func:`maediff.plan_inference`, with nothing to do.
        out: Output folder.
        shard: (K, N) of the run.

    Returns:
        The summary of a run that skipped every scan.

    Raises:
        OutputError: The table cannot be written, or another run writes there.
    """
    out = Path(out)
    with folder_lock(out, shard), CaseTable(out / table_name(shard)) as rows:
        for item in plan:
            rows.outcomes.append(finished_outcome(item.case, item.sidecar))
    return summarize(rows.outcomes)


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
