"""``maediff infer``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import EXIT_ERROR, EXIT_SOME_FAILED
from ._options import (
    DEFAULT_MODEL,
    Command,
    channel_option,
    cut_options,
    device_option,
    examples,
    input_option,
    jobs_option,
    json_option,
    model_option,
    output_option,
    pattern_option,
    seed_option,
    set_option,
    split_option,
    talk,
)

if TYPE_CHECKING:
    from maediff.inference.cohort import InferSummary
    from maediff.inference.cost import Cost
    from maediff.jobs.infer import InferJob


def _shard(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Parse ``K/N`` with 1 <= K <= N."""
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise click.BadParameter(f"{value!r} is not of the form K/N with 1 <= K <= N, for example 2/8")
    return int(first), int(second)


@click.command(
    cls=Command,
    epilog=examples(
        "maediff infer -i head.nii.gz -o out --report",
        "maediff infer -m runs/base/model -i bids/ -o out --shard 1/4 --preview",
        "maediff infer -m runs/base/model -i cases.csv -o out --dry-run",
        "maediff infer -i scan.nii.gz -o out --rate 0.001 --min-size 50",
        "maediff infer -m runs/base/model -i bids/ -o out --scheduler tcp://host:8786",
    ),
)
@model_option(DEFAULT_MODEL)
@input_option("A NIfTI file, a folder of them, a CSV/TSV table, a BIDS data set or a folder of DICOM series.")
@output_option("Folder for the maps, cases.tsv and run.json.")
@click.option(
    "--mask", type=click.Path(path_type=Path), help="Brain mask of a single scan; by default it is found in the scan."
)
@click.option("--strip/--no-strip", default=True, help="Extract the brain of a whole head that has no mask.")
@click.option(
    "--sign",
    type=click.Choice(["auto", "abs", "bright", "dark"]),
    help="What the map shows; auto: as for lesions on the contrast read from the scan. By default the model's.",
)
@click.option(
    "--shard", callback=_shard, metavar="K/N", default="1/1", help="Work on the K-th of N parts, one per machine."
)
@click.option("--scheduler", metavar="ADDRESS", help="Score on a Dask cluster, such as tcp://host:8786.")
@click.option("--workers", type=click.IntRange(min=1), help="Score in this many processes on this machine (Dask).")
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(("whole-head", "ct", "empty")),
    help="Score such a scan anyway instead of refusing it; repeatable.",
)
@cut_options
@click.option("--overwrite", is_flag=True, help="Recompute finished scans.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read the scans and list what would be done, which cannot be used and the cost; score nothing.",
)
@click.option("--preview", is_flag=True, help="Also write a PNG per scan.")
@click.option("--report", is_flag=True, help="Also write OUT/report.html, as `maediff report` does.")
@set_option("infer.draws=4")
@split_option
@channel_option
@pattern_option
@device_option
@jobs_option
@seed_option
@json_option
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    model: str,
    source: Path,
    out: Path,
    mask: Path | None,
    strip: bool,
    sign: str | None,
    shard: tuple[int, int],
    scheduler: str | None,
    workers: int | None,
    accept: tuple[str, ...],
    cut: dict[str, float | None],
    overwrite: bool,
    dry_run: bool,
    preview: bool,
    report: bool,
    overrides: tuple[str, ...],
    split: str | None,
    channel: str | None,
    pattern: str | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Turn scans into anomaly maps in their own space.

    Writes per scan the anomaly map, the healthy reconstruction and the anomaly mask at the calibrated threshold, all on
    the voxel grid of the input, and a JSON sidecar. Scans that are finished with the same input, model and
    configuration are skipped. One bad scan never stops the others: it is listed in cases.tsv with the reason, and the
    exit code is 3.
    """
    from maediff.jobs.infer import InferJob

    if scheduler and workers:
        raise click.UsageError("--scheduler and --workers exclude each other: a scheduler has its own workers")
    smallest = cut.pop("min_size_mm3")
    if smallest is not None:
        overrides = (*overrides, f"score.min_size_mm3={smallest}")
    overrides = (*overrides, *_of_the_scan(strip, sign))
    job = InferJob(
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
        pattern=pattern,
        overrides=overrides,
        scheduler=scheduler,
        workers=workers,
        accept=tuple(sorted(accept)),
        threshold=cut["threshold"],
        rate=cut["rate"],
    )
    if dry_run:
        _show_plan(job, as_json=as_json)
        return
    summary = run(job)
    if report:
        _report(out)
    finish(summary, out, as_json)


def run(job: InferJob) -> InferSummary:
    """Score the scans; no network is loaded if all of them are finished."""
    from maediff.inference.plan import keep_finished, nothing_to_do

    from ._console import scan_progress

    plan = job.plan()
    with scan_progress(len(plan)) as progress:
        if nothing_to_do(plan, job.out):
            summary = keep_finished(plan, job.out, part=job.part)
            for outcome in summary.cases:
                progress.case(outcome)
            return summary
        return job.run(progress.case, progress.batch)


def _of_the_scan(strip: bool, sign: str | None) -> tuple[str, ...]:
    """Turn the options on brain extraction and sign into overrides of the configuration."""
    return (*(() if strip else ("infer.strip=never",)), *(() if sign is None else (f"score.sign={sign}",)))


def _show_plan(job: InferJob, *, as_json: bool) -> None:
    from maediff.inference.plan import check_planned

    from ._console import print_failed

    plan = check_planned(job.plan())
    usable = any(item.action == "infer" for item in plan)
    cost = job.estimate(plan) if usable else None
    if as_json:
        rows = [
            {"case": item.case, "action": item.action, "image": str(item.image), "message": item.message}
            for item in plan
        ]
        click.echo(json.dumps({"cases": rows, "cost": asdict(cost) if cost else None}, indent=2))
    else:
        for item in plan:
            click.echo("\t".join([item.action, item.case, str(item.image)]))
    failed = [item for item in plan if item.action == "fail"]
    for item in failed:
        print_failed(f"{item.case} cannot be used: {item.message}")
    if not as_json:
        _say_cost(cost, usable=usable)
    if failed:
        click.get_current_context().exit(EXIT_SOME_FAILED if len(failed) < len(plan) else EXIT_ERROR)


def _say_cost(cost: Cost | None, *, usable: bool) -> None:
    from ._console import say

    if not usable:
        say("nothing to compute")
        return
    if cost is None:
        say("the cost of this method is not estimated")
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


def finish(summary: InferSummary, out: Path, as_json: bool) -> None:
    """Print the summary of a run, and set the exit code."""
    from ._console import say

    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    say(f"{summary.done} done, {summary.skipped} skipped, {summary.failed} failed; maps and table: {out}")
    if summary.failed:
        some_done = summary.done + summary.skipped > 0
        click.get_current_context().exit(EXIT_SOME_FAILED if some_done else EXIT_ERROR)
