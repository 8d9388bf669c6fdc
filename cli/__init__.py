"""The command line: a lazy click group, one file per command, no logic of its own.

Only click is imported here, so that ``maediff --help`` is quick; a command's module is imported when it runs.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

import maediff

# Command -> (module, short help). The short help is repeated here, so that `maediff --help` imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Run the whole pipeline on a synthetic cohort, offline."),
    "synth": ("synth", "Write a synthetic brain MRI cohort with exact lesion masks."),
    "prepare": ("prepare", "Turn raw head scans into model-ready ones."),
    "train": ("train", "Train a model on healthy scans."),
    "calibrate": ("calibrate", "Set a model's threshold from healthy scans."),
    "adapt": ("adapt", "Adapt a model with a few healthy scans: to a site, or to be steered by a second image."),
    "infer": ("infer", "Turn scans into anomaly maps in their own space."),
    "bids": ("bids", "Score a BIDS data set with the command line of BIDS-Apps."),
    "restore": ("restore", "Bring maps of prepared scans back to the raw scans."),
    "export-dicom": ("export_dicom", "Write maps as DICOM SEG and Parametric Map."),
    "evaluate": ("evaluate", "Score anomaly maps against lesion masks, or summarise the ratings of readers."),
    "report": ("report", "Write one self-contained HTML page about an output folder."),
    "view": ("view", "Look at the maps of an output folder in the browser."),
    "info": ("info", "Describe a model and show its card, or list what is packaged."),
    "card": ("card", "Add measured results, a licence or a description of its use to a model's card."),
    "hub": ("hub_cmd", "Send a model to the Hugging Face Hub, or fetch one."),
    "export-bundle": ("export_bundle", "Write a model as a MONAI Bundle."),
    "doctor": ("doctor", "Check that this machine can run MAEDiff."),
    "config": ("config_cmd", "Show, validate or explain a configuration."),
}
SECTIONS: dict[str, tuple[str, ...]] = {
    "Start here": ("demo", "doctor", "info"),
    "From scans to maps": ("prepare", "infer", "restore", "bids", "export-dicom"),
    "Look and measure": ("view", "report", "evaluate"),
    "Train and calibrate": ("synth", "train", "calibrate", "adapt", "config"),
    "Pass a model on": ("card", "hub", "export-bundle"),
}
"""Section of `maediff --help` -> commands; commands not listed here go under "More commands"."""
EXIT_ERROR, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 3, 130
VERBOSE, QUIET = "maediff.verbose", "maediff.quiet"  # keys in click's context meta


class LazyGroup(click.Group):
    """A group that imports a command when it is needed and turns exceptions into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order in which a newcomer reads them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __name__)
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command of the arguments; suggest the nearest one for a wrong name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section, without importing them."""
        placed = {name for names in SECTIONS.values() for name in names}
        sections = SECTIONS | {"More commands": tuple(name for name in COMMANDS if name not in placed)}
        for title, names in sections.items():
            rows = [(name, COMMANDS[name][1]) for name in names if name in COMMANDS]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see CONVENTIONS for the exit codes."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; finished outputs stay, and the same command goes on from there", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:  # users get a message, not a traceback
            _fail(ctx, error)


def _fail(ctx: click.Context, error: Exception) -> NoReturn:
    from maediff.errors import MAEDiffError

    if ctx.meta.get(VERBOSE):
        traceback.print_exc()
    if isinstance(error, MAEDiffError):
        click.echo(f"error: {error}", err=True)
        ctx.exit(error.exit_code)
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        click.echo(f"error: out of memory ({error}); lower the batch size (--set) or use another --device", err=True)
    else:
        click.echo(f"error: unexpected {type(error).__name__}: {error}; run again with -v for the traceback", err=True)
    ctx.exit(EXIT_ERROR)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
    epilog="Start with `maediff demo`. Research use only; not a medical device.",
)
@click.version_option(maediff.__version__, prog_name="maediff")
def app() -> None:
    """Find anomalies in brain MRI with models that have seen healthy scans only."""


def main() -> None:
    """Run the command line: the ``maediff`` entry point, and ``python -m maediff``."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of third-party packages; -v shows them
    app(prog_name="maediff")
