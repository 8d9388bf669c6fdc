"""Options shared by several commands, so that they look and behave the same."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from maediff.system import idle_cores, threads_beside, usable_cores

from . import QUIET, VERBOSE
from ._completion import complete_model, complete_preset

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_MODEL = "heads"
"""The packaged model for real scans of any contrast."""


SECTIONS: dict[str, tuple[str, ...]] = {
    "Input and output": (
        "source", "out", "model", "config", "reference", "prepared", "dicom", "metrics", "mask", "strip", "split",
        "channel", "series", "participants", "sessions",
    ),
    "Result": (
        "sign", "threshold", "rate", "min_size", "preview", "report", "title", "locations", "bootstrap", "strata",
        "ratings", "cards",
    ),
    "Run": (
        "overwrite", "dry_run", "resume", "report_to", "push_to", "merge", "join", "quick", "shard", "scheduler",
        "workers", "device", "jobs", "seed", "overrides", "port", "browser", "thorough", "reader",
    ),
    "Messages": ("as_json", "quiet", "verbose", "help"),
}  # fmt: skip
"""Section of the help -> parameters; parameters not listed here go under "Options", which comes first."""


class Command(click.Command):
    """A command whose help lists its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        where = {name: section for section, names in SECTIONS.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {"Options": [], **{section: [] for section in SECTIONS}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                rows[_section(parameter, where)].append(record)
        for section, records in rows.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)


def _section(parameter: click.Parameter, where: dict[str, str]) -> str:
    name = "help" if "--help" in parameter.opts else parameter.name or ""
    return where.get(name, "Options")


class Group(click.Group):
    """A group whose commands list their options in sections."""

    command_class = Command


def examples(*lines: str) -> str:
    """Format examples for a command's epilog, without rewrapping."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\b\n" + "\n".join([title, *(f"  {line}" for line in lines)])


def talk(command: F) -> F:
    """Add -q/--quiet and -v/--verbose."""
    command = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_verbose, help="Say more; show tracebacks."
    )(command)
    return click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, is_eager=True, callback=_quiet, help="Say only what failed."
    )(command)


def input_option(text: str) -> Callable[[F], F]:
    """-i/--input, a path, which the library checks."""
    return click.option("-i", "--input", "source", type=click.Path(path_type=Path), required=True, help=text)


def output_option(text: str, default: str | None = None) -> Callable[[F], F]:
    """-o/--output, a path."""
    return click.option(
        "-o", "--output", "out", type=click.Path(path_type=Path), required=default is None, default=default, help=text
    )


def reference_option(*, required: bool) -> Callable[[F], F]:
    """-r/--reference, the lesion masks."""
    text = "Lesion masks: a CSV/TSV table with image, mask and label, a folder, or a BIDS data set."
    return click.option("-r", "--reference", type=click.Path(path_type=Path), required=required, help=text)


def model_option(default: str | None = None) -> Callable[[F], F]:
    """-m, the model; required if there is no default."""
    return click.option(
        "-m",
        "--model",
        default=default,
        required=default is None,
        show_default=True,
        metavar="MODEL",
        shell_complete=complete_model,
        help="Model folder, a training run, or the name of a packaged model.",
    )


config_option = click.option(
    "-c",
    "--config",
    required=True,
    metavar="PRESET|FILE",
    shell_complete=complete_preset,
    help="Preset or YAML file; `maediff info` lists the presets.",
)
_CUT = (
    click.option("--threshold", type=float, help="Threshold of the map, in its units, instead of the calibrated one."),
    click.option(
        "--rate",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Use the recorded threshold that this share of healthy brain voxels exceeds.",
    ),
    click.option(
        "--min-size",
        type=click.FloatRange(min=0),
        metavar="MM3",
        help="Leave smaller findings out of the anomaly mask, mm³.",
    ),
)


def cut_options(command: F) -> F:
    """--threshold, --rate and --min-size: how maps are thresholded; the command gets them checked, as `cut`."""

    @functools.wraps(command)
    def wrapped(*, threshold: float | None, rate: float | None, min_size: float | None, **others: Any) -> Any:
        if threshold is not None and rate is not None:
            raise click.UsageError("--threshold and --rate exclude each other: a rate stands for its threshold")
        return command(cut={"threshold": threshold, "rate": rate, "min_size_mm3": min_size}, **others)

    for option in reversed(_CUT):
        wrapped = option(wrapped)
    return cast("F", wrapped)


device_option = click.option(
    "-d", "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; only auto may fall back."
)
jobs_option = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    callback=lambda _context, _parameter, value: _set_threads(value),
    expose_value=False,
    help="CPU threads; by default the number of idle cores.",
)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of all randomness.")


def set_option(example: str) -> Callable[[F], F]:
    """--set, an override of the configuration, with an example for the command."""
    text = f"Override of the configuration, such as {example}; may be repeated."
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=text)


split_option = click.option("--split", help="Only rows with this value in the split column.")
channel_option = click.option("--channel", help="Which image_<channel> column to read if a table has several.")
pattern_option = click.option(
    "--pattern",
    metavar="GLOB",
    help="Which files of a folder are scans, such as '*_t1.nii.gz'; '*' takes all, label maps included.",
)
series_option = click.option("--series", type=int, help="DICOM Series Number, if folders hold several series.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def _quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    ctx.meta[QUIET] = value


def _verbose(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    from ._logging import set_up_logging

    ctx.meta[VERBOSE] = value
    if value:
        warnings.simplefilter("default")
    set_up_logging(quiet=ctx.meta.get(QUIET, False), verbose=value)


def _set_threads(threads: int | None) -> None:
    """Set the number of threads; by default, leave busy cores to other work and print a note."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    elif "torch" not in sys.modules and "OMP_NUM_THREADS" not in os.environ:  # torch reads it once
        cores = usable_cores()
        chosen = threads_beside(cores, idle_cores())
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(chosen)
        if chosen < cores:
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads yield to other work
            click.echo(
                f"other work keeps {cores - chosen} of {cores} cores busy: computing on {chosen} (-j sets it)", err=True
            )
