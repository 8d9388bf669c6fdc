"""The errors that MAEDiff raises on purpose; each carries the exit code of the command line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Say in a line why one scan of several failed: an error's text, and its kind if MAEDiff did not expect it.

    Example:
        >>> one_line(InputError("no scan")), one_line(KeyError("x"))
        ('no scan', "unexpected KeyError: 'x'")
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, MAEDiffError) else f"unexpected {type(error).__name__}: {text}".rstrip(": ")


class MAEDiffError(Exception):
    """Base of every error that MAEDiff raises on purpose.

    A message says what is wrong, the value, what is allowed and what to do.
    """

    exit_code = 1


class InputError(MAEDiffError):
    """A scan, a mask or a table that cannot be used as it is."""


class GeometryError(InputError):
    """A voxel grid that has no usable place in space, or that disagrees with its partner's."""


class ConfigError(MAEDiffError):
    """An unknown configuration key or an impossible value."""

    exit_code = 2


class ModelError(MAEDiffError):
    """A model folder that is missing, damaged or of a newer schema."""


class OutputError(MAEDiffError):
    """A result that cannot be written where it was asked for."""


class TrainingInterrupted(MAEDiffError):
    """Training stopped on a signal after saving its state."""

    exit_code = 130
