"""``maediff bids``: the command line that BIDS-Apps share."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import (
    DEFAULT_MODEL,
    Command,
    cut_options,
    device_option,
    examples,
    jobs_option,
    model_option,
    seed_option,
    talk,
)
from .infer import finish, run

_MANY = ("--participant-label", "--session-id", "--session-label")


class BidsCommand(Command):
    """Accept several labels after one option, as BIDS-Apps do: ``--participant-label 01 02``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its labels, and read underscores in its name as hyphens."""
        return super().parse_args(ctx, spread(args))


def spread(arguments: list[str]) -> list[str]:
    """Turn ``--participant-label 01 02`` into one option per label, if BIDS_DIR, OUT and LEVEL came before it.

    Example:
        >>> spread(["in", "out", "participant", "--participant-label", "01", "02", "-q"])
        ['in', 'out', 'participant', '--participant-label', '01', '--participant-label', '02', '-q']
    """
    found: list[str] = []
    option = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        hyphened = name.replace("_", "-")
        argument = f"{hyphened}{equals}{value}" if hyphened in _MANY else word
        if argument.startswith("-"):
            option = argument if argument in _MANY and len(found) >= 3 else ""
            if not option:
                found.append(argument)
        elif option:
            found += [option, argument]
        else:
            found.append(argument)
    return found


@click.command(
    cls=BidsCommand,
    epilog=examples(
        "maediff bids bids/ derivatives/maediff participant",
        "maediff bids bids/ derivatives/maediff participant --participant-label 01 02 --session-id a",
        "maediff bids bids/ derivatives/maediff group",
    ),
)
@click.argument("bids_dir", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("level", type=click.Choice(["participant", "group"]))
@click.option(
    "--participant-label",
    "participants",
    multiple=True,
    metavar="LABEL…",
    help="Only these participants, with or without sub-.",
)
@click.option(
    "--session-id",
    "--session-label",
    "sessions",
    multiple=True,
    metavar="LABEL…",
    help="Only these sessions, with or without ses-.",
)
@model_option(DEFAULT_MODEL)
@click.option("--channel", help="Only this contrast: t1w, t2w or flair.")
@cut_options
@click.option("--overwrite", is_flag=True, help="Recompute finished scans.")
@device_option
@jobs_option
@seed_option
@talk
def command(  # noqa: PLR0913  click passes each option by its name
    *,
    bids_dir: Path,
    out: Path,
    level: str,
    participants: tuple[str, ...],
    sessions: tuple[str, ...],
    model: str,
    channel: str | None,
    cut: dict[str, float | None],
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Score a BIDS data set with the command line of BIDS-Apps.

    The level participant writes the maps of the named participants, or of all, as a BIDS derivative data set in OUT;
    jobs over different participants may run at the same time. The level group writes OUT/report.html about all of them.
    """
    if level == "group":
        _group(out, cut)
        return
    from maediff.jobs.infer import InferJob

    smallest = cut.pop("min_size_mm3")
    job = InferJob(
        model,
        bids_dir,
        out,
        device=device,
        seed=seed,
        overwrite=overwrite,
        channel=channel,
        overrides=() if smallest is None else (f"score.min_size_mm3={smallest}",),
        participants=participants,
        sessions=sessions,
        threshold=cut["threshold"],
        rate=cut["rate"],
    )
    finish(run(job), out, as_json=False)


def _group(out: Path, cut: dict[str, float | None]) -> None:
    from maediff import write_report
    from maediff.evaluation import Choice

    from ._console import say

    say(f"report: {write_report(out, out / 'report.html', choice=Choice(**cut))}")
