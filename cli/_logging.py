"""The library's log, on stderr."""

from __future__ import annotations

import logging


class _ConsoleHandler(logging.Handler):
    """Writes log records through the console, so that they do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text  # slow to import, and most commands log nothing

        from ._console import console

        name = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        console.print(Text(name + record.getMessage()), soft_wrap=True)


def set_up_logging(*, quiet: bool, verbose: bool) -> None:
    """Send the library's log to stderr: information by default, errors only if quiet, everything if verbose.

    nibabel reports repaired headers through its own handler, which only -v enables.
    """
    logger = logging.getLogger("maediff")
    logger.handlers = [_ConsoleHandler()]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    logging.getLogger("nibabel.global").setLevel(logging.WARNING if verbose else logging.CRITICAL)
