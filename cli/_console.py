"""Text for people, on stderr: lines, progress and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from maediff.notes import level_of

from . import QUIET

if TYPE_CHECKING:
    from maediff.inference.cohort import CaseOutcome
    from maediff.rawhead.prepare import PreparedCase
    from maediff.training.loop import Progress as TrainProgress

console = Console(stderr=True, highlight=False)


def is_quiet() -> bool:
    """Check whether -q was given."""
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
    """Format a cell: three decimals for a float, a dash for a missing value.

    Example:
        >>> number(0.12345), number(None), number("phantom")
        ('0.123', '–', 'phantom')
    """
    if value is None or value != value:  # only NaN differs from itself
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class ScanProgress:
    """Shows scans as they finish: a bar on a terminal, else one line per scan. Failures are always shown.

    Args:
        total: Scans of the run.
        bar: Progress bar on a terminal; None prints lines only.
    """

    def __init__(self, total: int, bar: Progress | None) -> None:
        self.total, self.finished = total, 0
        self._bar = bar
        self._task = bar.add_task("reading the first scan", total=total, shown=f"0/{total}") if bar else None

    def case(self, outcome: CaseOutcome) -> None:
        """Print the line of a scan, with its notes below."""
        self.finished += 1
        head = f"[{self.finished}/{self.total}] {outcome.case}"
        if outcome.status == "failed":
            print_failed(f"{head}: failed: {outcome.message}")
        elif not is_quiet() and not (self._bar and outcome.status == "skipped" and not outcome.notes):
            console.print(Text(f"{head}: {_describe(outcome)}"), soft_wrap=True)
            print_notes(outcome.notes)
        self._update(self.finished, outcome.case)

    def batch(self, case: str, done: int, windows: int) -> None:
        """Move the bar within a scan; the time left is estimated from the first batch on."""
        self._update(self.finished + done / max(windows, 1), case)

    def _update(self, completed: float, case: str) -> None:
        if self._bar is not None and self._task is not None:
            shown = f"{self.finished}/{self.total}"
            self._bar.update(self._task, completed=completed, description=case, shown=shown)


def print_failed(line: str) -> None:
    """Print a failure, in red on a terminal, even if quiet."""
    console.print(Text(line, style="red"), soft_wrap=True)


def print_notes(notes: Iterable[str]) -> None:
    """Print the notes of a scan below its line, warnings in yellow and information dim, unless quiet."""
    if not is_quiet():
        for note in notes:
            is_warning = level_of(note) == "warning"
            name, style = ("warning", "yellow") if is_warning else ("note", "dim")
            console.print(Text(f"  {name}: {note}", style=style), soft_wrap=True)


@contextmanager
def scan_progress(total: int) -> Iterator[ScanProgress]:
    """Show the scans of a run as they finish."""
    if is_quiet() or not console.is_terminal:
        yield ScanProgress(total, None)
        return
    with _bar(TextColumn("{task.fields[shown]}")) as bar:
        yield ScanProgress(total, bar)


class PrepareProgress:
    """Shows raw scans as they are prepared: a bar on a terminal, else one line per scan.

    Args:
        bar: Progress bar on a terminal; None prints lines only.
    """

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("finding scans", total=None) if bar else None

    def start(self, total: int) -> None:
        """Set the number of scans."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total, description="preparing")

    def case(self, outcome: PreparedCase) -> None:
        """Print the line of a scan and advance the bar."""
        _print_prepared(outcome)
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)


@contextmanager
def prepare_progress() -> Iterator[PrepareProgress]:
    """Show the raw scans of a run as they are prepared."""
    if is_quiet() or not console.is_terminal:
        yield PrepareProgress(None)
        return
    with _bar(MofNCompleteColumn()) as bar:
        yield PrepareProgress(bar)


def _print_prepared(outcome: PreparedCase) -> None:
    if outcome.status == "failed":
        print_failed(f"{outcome.case}: failed: {outcome.message}")
        return
    size = "" if outcome.brain_ml is None else f", brain {outcome.brain_ml:.0f} ml"
    say(f"{outcome.case}: {outcome.status}, mask {outcome.mask_from}{size}")
    print_notes(outcome.notes)


class StepProgress:
    """Shows a training: a bar on a terminal, else one line per logged step.

    Args:
        bar: Progress bar on a terminal; None prints lines only.
    """

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("reading scans", total=None) if bar else None

    def case(self, name: str) -> None:
        """Show which scan is being read, before the first step."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"reading {name}")

    def step(self, progress: TrainProgress) -> None:
        """Show a step."""
        if self._bar is not None and self._task is not None:
            losses = _losses(progress)
            self._bar.update(self._task, completed=progress.step, total=progress.max_steps, description=losses)
        else:
            say(f"step {progress.step}/{progress.max_steps}  {_losses(progress)}{_eta(progress)}")


@contextmanager
def step_progress() -> Iterator[StepProgress]:
    """Show the progress of a training: first the scans that are read, then the steps with the time left."""
    if is_quiet() or not console.is_terminal:
        yield StepProgress(None)
        return
    with _bar(MofNCompleteColumn()) as bar:
        yield StepProgress(bar)


def _bar(count: ProgressColumn) -> Progress:
    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), count]
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _describe(outcome: CaseOutcome) -> str:
    if outcome.status == "skipped":
        return "skipped, finished before"
    volume = "" if outcome.anomalous_volume_ml is None else f", {outcome.anomalous_volume_ml:.1f} ml anomalous"
    volume += f", the largest finding {outcome.largest}" if outcome.largest else ""
    seconds = "" if outcome.seconds is None else f", {outcome.seconds:.1f} s"
    standing = f", {outcome.standing}" if outcome.standing else ""
    return f"score {number(outcome.score)}{standing}{volume}{seconds}"


def _losses(progress: TrainProgress) -> str:
    validation = "" if progress.val_loss is None else f"  validation {progress.val_loss:.4f}"
    return f"loss {progress.loss:.4f}{validation}"


def _eta(progress: TrainProgress) -> str:
    minutes, seconds = divmod(round(progress.eta_seconds), 60)
    return f"  {progress.images_per_second:.0f} images/s  {minutes} min {seconds:02d} s left"
