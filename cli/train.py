"""``maediff train``."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import (
    Command,
    channel_option,
    config_option,
    device_option,
    examples,
    input_option,
    jobs_option,
    output_option,
    pattern_option,
    set_option,
    split_option,
    talk,
)


@click.command(
    cls=Command,
    epilog=examples(
        "maediff train -c tiny -i healthy/ -o runs/first",
        "maediff train -c base -i cases.csv --split train -o runs/base --set train.lr=1e-4",
        "maediff train -c small -i healthy/ -o runs/watched --report-to tensorboard",
        "accelerate launch --multi_gpu --num_processes 4 -m maediff train -c base -i cases.csv -o runs/base",
        "torchrun --nproc-per-node 4 --max-restarts 3 -m maediff train -c base -i cases.csv -o runs/base",
    ),
)
@config_option
@input_option("Healthy scans: a folder, a CSV/TSV table or a BIDS data set.")
@output_option("Run folder: model/, log.csv, pictures/, checkpoints/, config.yaml and run.json.")
@set_option("train.lr=1e-3")
@click.option("--resume", is_flag=True, help="Continue exactly from the run's last checkpoint.")
@click.option(
    "--report-to",
    type=click.Choice(["none", "tensorboard", "wandb"]),
    help="Tracker for losses and pictures; sets train.report_to.",
)
@click.option("--push-to", metavar="OWNER/NAME", help="Send the finished model to this repository of the Hub.")
@split_option
@channel_option
@pattern_option
@device_option
@jobs_option
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    config: str,
    source: Path,
    out: Path,
    overrides: tuple[str, ...],
    resume: bool,
    report_to: str | None,
    push_to: str | None,
    split: str | None,
    channel: str | None,
    pattern: str | None,
    device: str,
) -> None:
    """Train a model on healthy scans.

    If rows of a table have a lesion label, slices that touch it are left out and counted. Subjects are held out for
    validation, which chooses the best weights. On Ctrl-C or SIGTERM the state is saved; --resume continues from it.
    """
    from maediff import train
    from maediff.config import load_config
    from maediff.training.processes import is_main

    from ._console import say, step_progress

    if push_to is not None:
        from maediff.hub import check_target

        check_target(push_to)  # before hours of training, not after
    told = () if report_to is None else (f"train.report_to={report_to}",)
    settings = load_config(config, (*overrides, *told))
    with step_progress() as progress:
        folder = train(
            settings,
            source,
            out,
            resume=resume,
            device=device,
            split=split,
            channel=channel,
            pattern=pattern,
            on_case=progress.case,
            on_progress=progress.step,
        )
    if not is_main():
        return
    say(f"model: {folder}")
    if push_to is not None:
        from maediff.hub import push_model

        say(f"sent model {push_model(folder, push_to)} to {push_to}")
    say(f"next: maediff infer -m {folder} -i SCANS -o OUT")
