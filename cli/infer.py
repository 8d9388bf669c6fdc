"""``maediff infer``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import EXIT_ERROR, EXIT_SOME_FAILED
from ._options import (
    channel_option,
    device_option,
    examples,
    input_option,
    jobs_option,
    json_option,
    model_option,
    output_option,
    seed_option,
    set_option,
    split_option,
    talk,
)

if TYPE_CHECKING:
    from maediff.inference.cohort import InferSummary, PlannedCase
    from maediff.inference.cost import Cost


def _shard(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Parse ``K/N`` with 1 <= K <= N."""
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise click.BadParameter(f"{value!r} is not of the form K/N with 1 <= K <= N, for example 2/8")
    return int(first), int(second)


@click.command(
    epilog=examples(
        "maediff infer -m phantom -i scan.nii.gz -o out",
        "maediff infer -m runs/base/model -i bids/ -o out --shard 1/4 --preview",
        "maediff infer -m runs/base/model -i cases.csv -o out --dry-run",
        "maediff infer -m runs/base/model -i bids/ -o out --scheduler tcp://host:8786",
    )
)
@model_option
@input_option("A NIfTI file, a folder of them, a CSV/TSV table or a BIDS data set.")
@output_option("Folder for the maps, cases.tsv and run.json.")
@click.option("--mask", type=click.Path(path_type=Path), help="Brain mask of a single scan; else non-zero voxels.")
@click.option(
    "--shard", callback=_shard, metavar="K/N", default="1/1", help="Work on the K-th of N parts, one a machine."
)
@click.option("--scheduler", metavar="ADDRESS", help="Score on a Dask cluster, such as tcp://host:8786.")
@click.option("--workers", type=click.IntRange(min=1), help="Score in this many processes on this machine (Dask).")
@click.option("--overwrite", is_flag=True, help="Compute again what is finished.")
@click.option("--dry-run", is_flag=True, help="List what would be done and what it would cost, and do nothing.")
@click.option("--preview", is_flag=True, help="Also write a PNG a scan.")
@click.option("--report", is_flag=True, help="Also write OUT/report.html, as `maediff report` does.")
@set_option
@split_option
@channel_option
@device_option
@jobs_option
@seed_option
@json_option
@talk
def command(
    *,
    model: str,
    source: Path,
    out: Path,
    mask: Path | None,
    shard: tuple[int, int],
    scheduler: str | None,
    workers: int | None,
    overwrite: bool,
    dry_run: bool,
    preview: bool,
    report: bool,
    overrides: tuple[str, ...],
    split: str | None,
    channel: str | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Turn scans into anomaly maps in their own space.

    Per scan: the anomaly map, the healthy reconstruction, the anomaly mask at the calibrated threshold, and a JSON
    sidecar, all on the voxel grid of the input. A scan that is finished with the same input, model and configuration is
    skipped. One bad scan never stops the others: it stands in cases.tsv with its reason, and the exit code is 3.
    """
    from maediff import estimate_inference, infer, plan_inference

    from ._console import scan_progress

    if scheduler and workers:
        raise click.UsageError("--scheduler and --workers exclude each other: a scheduler has its own workers")
    plan = plan_inference(
        model,
        source,
        out,
        mask=mask,
        seed=seed,
        shard=shard,
        overwrite=overwrite,
        split=split,
        channel=channel,
        overrides=overrides,
    )
    if dry_run:
        _show_plan(plan, estimate_inference(model, plan, device=device, overrides=overrides), as_json)
        return
    with scan_progress(len(plan)) as on_case:
        summary = infer(
            model,
            source,
            out,
            mask=mask,
            device=device,
            seed=seed,
            shard=shard,
            overwrite=overwrite,
            preview=preview,
            split=split,
            channel=channel,
            overrides=overrides,
            scheduler=scheduler,
            workers=workers,
            on_case=on_case,
        )
    if report:
        _report(out)
    _finish(summary, out, as_json)


def _show_plan(plan: Iterable[PlannedCase], cost: Cost | None, as_json: bool) -> None:
    from ._console import say

    rows = [{"case": item.case, "action": item.action, "image": str(item.image)} for item in plan]
    if as_json:
        click.echo(json.dumps({"cases": rows, "cost": asdict(cost) if cost else None}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['action']}\t{row['case']}\t{row['image']}")
    if cost is None:
        say("the cost of methods that slide no windows is not estimated")
        return
    memory = "" if cost.memory_mib is None else f", {cost.memory_mib:.0f} MiB of memory"
    say(
        f"{cost.scans} scans to compute: {cost.windows} windows in batches of {cost.batch}, {cost.gflop:.0f} GFLOP"
        f"{memory}, about {cost.seconds:.0f} s on this machine as it is now"
    )


def _report(out: Path) -> None:
    from maediff import write_report

    from ._console import say

    say(f"report: {write_report(out, out / 'report.html')}")


def _finish(summary: InferSummary, out: Path, as_json: bool) -> None:
    from ._console import say

    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    say(f"{summary.done} done, {summary.skipped} skipped, {summary.failed} failed; maps and table: {out}")
    if summary.failed:
        some_done = summary.done + summary.skipped > 0
        click.get_current_context().exit(EXIT_SOME_FAILED if some_done else EXIT_ERROR)
