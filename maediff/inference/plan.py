"""What a run would do, and a run with nothing left to do; neither loads a network or the packages that it needs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from maediff.calibration import Calibration, with_threshold
from maediff.config import Config, config_hash, load_config, override
from maediff.data.cases import Search, search_cases
from maediff.data.cases import shard as shard_of
from maediff.errors import MAEDiffError
from maediff.inference.cohort import (
    CaseTable,
    InferSummary,
    PlannedCase,
    RunKey,
    finished_outcome,
    plan_cases,
    summarize,
    table_name,
)
from maediff.locking import folder_lock
from maediff.model_folder import read_calibration, resolve_model, verify_model_folder
from maediff.volume import read_channel, read_mask, read_nifti

log = logging.getLogger(__name__)


def plan_inference(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    split: str | None = None,
    channel: str | None = None,
    pattern: str | None = None,
    overrides: Iterable[str] = (),
    threshold: float | None = None,
    rate: float | None = None,
) -> list[PlannedCase]:
    """List what :func:`maediff.infer` would do, without loading weights; arguments are the same."""
    folder = resolve_model(model)
    config = override(load_config(folder / "config.yaml"), overrides)
    cases = cases_of(source, shard, config, mask=mask, split=split, channel=channel, pattern=pattern, exclude=out).cases
    chosen = None
    if threshold is not None or rate is not None:
        stored = read_calibration(folder)
        calibration = Calibration.from_dict(stored) if stored else None
        chosen = with_threshold(calibration, threshold, rate).threshold
    key = RunKey(verify_model_folder(folder), config_hash(config), seed, chosen)
    return plan_cases(cases, Path(out), key, overwrite=overwrite)


def check_planned(plan: Iterable[PlannedCase]) -> list[PlannedCase]:
    """Read every scan that would be scored, with its brain mask, and mark those that cannot be used.

    Args:
        plan: From :func:`plan_inference`.

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
        plan: From :func:`plan_inference`, with nothing to do.
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


def cases_of(
    source: str | Path,
    part: tuple[int, int],
    config: Config,
    *,
    mask: str | Path | None,
    split: str | None,
    channel: str | None,
    pattern: str | None,
    exclude: str | Path,
) -> Search:
    """List the scans of one part of a run, see :func:`~maediff.data.cases.search_cases`."""
    channels = config.data.channels
    found = search_cases(source, mask, split, channel, channels, pattern=pattern, exclude=[exclude])
    return replace(found, cases=tuple(shard_of(found.cases, *part)))


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
