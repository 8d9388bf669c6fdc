"""Score scans: their maps, a sidecar each, `cases.tsv` and `run.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from maediff.data.bids import DERIVATIVE_FILES, describe_derivatives
from maediff.data.walk import LeftOut, as_facts
from maediff.files import remove_leftovers
from maediff.inference.cluster import ScanTask, connect, infer_on_cluster
from maediff.inference.cohort import CaseOutcome, CaseTable, InferSummary, Outputs, PlannedCase, infer_cases, table_name
from maediff.inference.cost import Cost, estimate_cost
from maediff.inference.load import load_model
from maediff.inference.plan import cases_of
from maediff.inference.predictor import AnomalyResult, Predictor
from maediff.locking import folder_lock
from maediff.model_folder import resolve_model
from maediff.provenance import run_record, write_run
from maediff.report.preview import write_preview


def infer(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    preview: bool = False,
    split: str | None = None,
    channel: str | None = None,
    pattern: str | None = None,
    overrides: Iterable[str] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    threshold: float | None = None,
    rate: float | None = None,
    on_case: Callable[[CaseOutcome], None] | None = None,
    on_batch: Callable[[str, int, int], None] | None = None,
) -> InferSummary:
    """Turn scans into anomaly maps in their own space.

    Args:
        model: Model folder, or "phantom".
        source: NIfTI file, folder, CSV/TSV table or BIDS data set.
        out: Output folder: maps and a sidecar a scan, `cases.tsv` and `run.json`.
        mask: Brain mask of a single scan.
        device: Where to compute.
        seed: Seed of the noise.
        shard: (K, N): work on the K-th of N parts; its table is `cases-K-of-N.tsv`.
        overwrite: Compute again what is finished.
        preview: Also write a PNG a scan.
        split: Only rows of this split.
        channel: Which `image_<channel>` column of a table.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
        overrides: Changes of the model's configuration, see :func:`~maediff.inference.load.load_model`.
        scheduler: Address of a Dask scheduler, whose workers score the scans; `out` and scans on shared storage.
        workers: Score the scans in this many processes on this machine, where no scheduler is given.
        threshold: Threshold of the map to use instead of the calibrated one.
        rate: Use the threshold that the calibration records for this false-positive rate.
        on_case: Told the outcome of each scan.
        on_batch: Progress callback within a scan, called with (case, windows done, windows in total); not on a cluster.

    Returns:
        Counts and outcomes; a scan that failed stands there and in `cases.tsv`, the others are done.

    Raises:
        InputError: No scan found.
        ModelError: The model cannot be used.
        OutputError: The output folder cannot be written.
    """
    out, overrides = Path(out), tuple(overrides)
    alone = scheduler is None and workers is None
    # the workers have the devices
    predictor = load_model(model, device if alone else "cpu", overrides, threshold=threshold, rate=rate)
    found = cases_of(
        source, shard, predictor.config, mask=mask, split=split, channel=channel, pattern=pattern, exclude=out
    )
    cases = found.cases
    table = out / table_name(shard)
    on_result = _preview if preview else None
    arguments: dict[str, Any] = {
        "model": Path(model) if Path(model).exists() else model,
        "source": Path(source),
        "out": out,
        "mask": None if mask is None else Path(mask),
        "shard": shard,
        "overwrite": overwrite,
        "scheduler": scheduler,
        "workers": workers,
    }
    arguments |= {
        "split": split,
        "channel": channel,
        "pattern": pattern,
        "overrides": overrides,
        "threshold": threshold,
        "rate": rate,
    }
    with folder_lock(out, shard):
        for name in (table.name, "run.json", *DERIVATIVE_FILES) if shard == (1, 1) else (table.name,):
            remove_leftovers(out / name)
        if alone:
            summary = infer_cases(
                predictor,
                cases,
                table,
                seed=seed,
                overwrite=overwrite,
                on_case=on_case,
                on_result=on_result,
                on_batch=on_batch,
            )
        else:
            with connect(scheduler, workers) as client, CaseTable(table) as rows:
                began_ns = rows.start()
                folder = str(resolve_model(model).resolve())
                task = ScanTask(
                    folder, device, overrides, out.resolve(), seed, overwrite, began_ns, on_result, threshold, rate
                )
                summary = infer_on_cluster(client, cases, task, rows, on_case=on_case)
        where = str(predictor.device) if alone else f"{device} on Dask workers"
        _record_inference(out, arguments, predictor, summary, left_out=found.left_out, seed=seed, device=where)
        suffixes = [case.bids.suffix for case in cases if case.bids]
        if suffixes:
            describe_derivatives(out, suffixes)
    return summary


def _record_inference(
    out: Path,
    arguments: dict[str, Any],
    predictor: Predictor,
    summary: InferSummary,
    *,
    seed: int,
    device: str,
    left_out: Sequence[LeftOut],
) -> None:
    hashes = {"model": predictor.model_hash, "config": predictor.config_hash}
    counts = {"done": summary.done, "skipped": summary.skipped, "failed": summary.failed}
    calibrated = predictor.calibration.to_dict() if predictor.calibration else None
    facts = {"counts": counts, "calibration": calibrated, "left_out": as_facts(left_out)}
    write_run(out, run_record("infer", arguments, seed=seed, device=device, hashes=hashes, **facts))


def estimate_inference(
    model: str | Path,
    planned: Sequence[PlannedCase],
    *,
    device: str = "auto",
    overrides: Iterable[str] = (),
) -> Cost | None:
    """Estimate what :func:`infer` would cost for what :func:`maediff.plan_inference` lists; arguments are the same."""
    return estimate_cost(load_model(model, device, tuple(overrides)), planned)


def _preview(result: AnomalyResult, outputs: Outputs) -> None:
    write_preview(result, outputs.preview)
