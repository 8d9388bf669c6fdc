"""``maediff adapt``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ._options import (
    Command,
    channel_option,
    device_option,
    examples,
    jobs_option,
    model_option,
    output_option,
    pattern_option,
    seed_option,
    split_option,
    talk,
)


@click.command(
    cls=Command,
    epilog=examples(
        "maediff adapt -m runs/base/model -i healthy_of_our_site/ -o adapted",
        "maediff infer -m adapted -i scans/ -o out",
        "maediff infer -m adapted -i scans/ -o out_base --set infer.adapter=false",
        "maediff adapt -m adapted --merge -o model_of_our_site",
        "maediff adapt -m flair/model -i cases.csv --channel flair --kind controlnet --guide t1 -o steered",
        "maediff adapt -m steered --join with_edges -o both",
    ),
)
@model_option()
@click.option(
    "-i",
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="3 to 20 healthy scans of the site: a folder, a CSV/TSV table or a BIDS data set.",
)
@output_option("Folder of the adapted model: a small adapter beside a reference to its base.")
@click.option(
    "--kind",
    type=click.Choice(["lora", "controlnet", "t2i"]),
    default="lora",
    show_default=True,
    help="Low-rank updates, or a side network that a second image steers the model through.",
)
@click.option(
    "--guide",
    metavar="edges|CHANNEL",
    help="What a side network sees: edges of the scan (the default), or this channel of the table.",
)
@click.option("--rank", type=click.IntRange(min=1), default=4, help="Rank of low-rank updates; sets the file's size.")
@click.option("--steps", type=click.IntRange(min=1), default=400, help="Most training steps; it may stop early.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-3, help="Learning rate.")
@click.option("--merge", is_flag=True, help="Only merge the adapted MODEL into a stand-alone model.")
@click.option("--join", multiple=True, metavar="MODEL", help="Only join the side networks of MODELs of the same base.")
@split_option
@channel_option
@pattern_option
@seed_option
@device_option
@jobs_option
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    model: str,
    source: Path | None,
    out: Path,
    kind: Literal["lora", "controlnet", "t2i"],
    guide: str | None,
    rank: int,
    steps: int,
    lr: float,
    merge: bool,
    join: tuple[str, ...],
    split: str | None,
    channel: str | None,
    pattern: str | None,
    seed: int,
    device: str,
) -> None:
    """Adapt a model with a few healthy scans: to a site, or to be steered by a second image.

    MODEL is not changed. Low-rank updates of its layers, or a side network beside it, are learned and stored with a
    reference to it and a threshold for the site. Three tenths of the subjects are held out: they decide when to stop,
    and set the threshold.
    """
    from ._console import say

    if merge or join:
        _combine(model, join, source, out)
        return
    if source is None:
        raise click.UsageError("Missing option '-i' / '--input': healthy scans of the site.")
    if guide is not None and kind == "lora":
        raise click.UsageError("--guide goes with --kind controlnet or t2i: low-rank updates see no second image")
    from maediff.jobs.adapt import adapt_model
    from maediff.training.tune import Schedule

    def told(step: int, loss: float | None) -> None:
        if loss is not None:
            say(f"step {step}: validation loss {loss:.5f}")

    adapted = adapt_model(
        model,
        source,
        out,
        kind=kind,
        guide=guide or "edges",
        rank=rank,
        schedule=Schedule(max_steps=steps, lr=lr),
        seed=seed,
        device=device,
        split=split,
        channel=channel,
        pattern=pattern,
        on_case=lambda name: say(f"scan {name}"),
        on_step=told,
    )
    tuned = adapted.tuned
    say(f"validation loss {tuned.loss_before:.5f} -> {tuned.loss_after:.5f}, after {tuned.best_step} steps")
    if tuned.best_step == 0:
        say("nothing was gained on the held-out scans: the adapted model is its base, with a threshold for this site")
    for line in adapted.calibration.promises() if adapted.calibration else ():
        say(f"  {line}")
    say(f"model: {adapted.folder}")
    say(f"next: maediff infer -m {adapted.folder} -i SCANS -o OUT")


def _combine(model: str, join: tuple[str, ...], source: Path | None, out: Path) -> None:
    """Merge an adapted model with its base, or join side networks of several."""
    from ._console import say

    if source is not None:
        raise click.UsageError("--merge and --join take no scans: leave -i/--input out")
    if join:
        from maediff.jobs.join import join_adapted

        join_adapted([model, *join], out)
        say(f"model: {out}")
        say(f"next: maediff calibrate -m {out} -i HEALTHY_SCANS")
        return
    from maediff.model_folder import merge_adapter

    merge_adapter(model, out)
    say(f"model: {out}")
