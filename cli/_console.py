"""Text for people, on stderr: log lines, progress and tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ._options import QUIET

if TYPE_CHECKING:
    from maediff.inference.cohort import CaseOutcome
    from maediff.preparation.cohort import PreparedCase
    from maediff.training.loop import Progress as TrainProgress

console = Console(stderr=True, highlight=False)


class _ConsoleHandler(logging.Handler):
    """Writes log records through the console, so that they do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        name = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        console.print(Text(name + record.getMessage()), soft_wrap=True)


def set_up_logging(*, quiet: bool, verbose: bool) -> None:
    """Send the library's log to stderr: notes by default, errors only if quiet, everything if verbose.

    nibabel tells of the headers that it mends through a handler of its own; only -v lets it.
    """
    logger = logging.getLogger("maediff")
    logger.handlers = [_ConsoleHandler()]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    logging.getLogger("nibabel.global").setLevel(logging.WARNING if verbose else logging.CRITICAL)


def is_quiet() -> bool:
    """Tell whether -q was given."""
    return bool(click.get_current_context().meta.get(QUIET, False))


def say(message: str) -> None:
    """Print a line on stderr unless quiet."""
    if not is_quiet():
        console.print(Text(message), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stderr unless quiet; the first column is text, the others are right-aligned."""
    if is_quiet():
        return
    grid = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(number(cell)) for cell in row))
    console.print(grid)


def number(value: object) -> str:
    """Format a cell: three decimals for a float, a dash for what is not there.

    Example:
        >>> number(0.12345), number(None), number("phantom")
        ('0.123', '–', 'phantom')
    """
    if value is None or value != value:  # NaN alone differs from itself
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@contextmanager
def scan_progress(total: int) -> Iterator[Callable[[CaseOutcome], None]]:
    """Show scans as they finish: a bar on a terminal, else one line a scan. Failures are always told."""
    finished = 0

    def line(outcome: CaseOutcome) -> None:
        nonlocal finished
        finished += 1
        if outcome.status == "failed":
            console.print(Text(f"[{finished}/{total}] {outcome.case}: failed: {outcome.message}"), soft_wrap=True)
        elif not is_quiet() and not (console.is_terminal and outcome.status == "skipped"):
            console.print(Text(f"[{finished}/{total}] {outcome.case}: {_describe(outcome)}"), soft_wrap=True)

    if is_quiet() or not console.is_terminal:
        yield line
        return
    with _bar() as bar:
        task = bar.add_task("scans", total=total)

        def advance(outcome: CaseOutcome) -> None:
            line(outcome)
            bar.advance(task)

        yield advance


def prepare_progress(outcome: PreparedCase) -> None:
    """Tell of a prepared scan in a line; failures are always told."""
    if outcome.status == "failed":
        console.print(Text(f"{outcome.case}: failed: {outcome.message}"), soft_wrap=True)
        return
    size = "" if outcome.brain_ml is None else f", brain {outcome.brain_ml:.0f} ml"
    notes = f": {outcome.message}" if outcome.message else ""
    say(f"{outcome.case}: {outcome.status}, mask {outcome.mask_from}{size}{notes}")


@contextmanager
def step_progress() -> Iterator[Callable[[TrainProgress], None]]:
    """Show training steps: a bar with the time left on a terminal, else one line a logged step."""
    if is_quiet() or not console.is_terminal:
        yield lambda progress: say(f"step {progress.step}/{progress.max_steps}  {_losses(progress)}{_eta(progress)}")
        return
    with _bar() as bar:
        task = bar.add_task("training", total=None)
        yield lambda progress: bar.update(
            task, completed=progress.step, total=progress.max_steps, description=_losses(progress)
        )


def _bar() -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _describe(outcome: CaseOutcome) -> str:
    if outcome.status == "skipped":
        return "skipped, finished before"
    volume = "" if outcome.anomalous_volume_ml is None else f", {outcome.anomalous_volume_ml:.1f} ml anomalous"
    seconds = "" if outcome.seconds is None else f", {outcome.seconds:.1f} s"
    return f"score {number(outcome.score)}{volume}{seconds}"


def _losses(progress: TrainProgress) -> str:
    validation = "" if progress.val_loss is None else f"  validation {progress.val_loss:.4f}"
    return f"loss {progress.loss:.4f}{validation}"


def _eta(progress: TrainProgress) -> str:
    minutes, seconds = divmod(round(progress.eta_seconds), 60)
    return f"  {progress.images_per_second:.0f} images/s  {minutes} min {seconds:02d} s left"
