"""Shell completion: models and presets by name, and files.

It is enabled in the shell, see the page on the command line; nothing here runs otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a packaged model, or a folder."""
    from maediff.model_folder import packaged_models

    return _names_or_files(packaged_models(), incomplete, "packaged model")


def complete_preset(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a preset, or a YAML file."""
    from maediff.config import presets

    return _names_or_files(presets(), incomplete, "preset")


def _names_or_files(names: Iterable[str], incomplete: str, kind: str) -> list[CompletionItem]:
    """List the matching names; the shell adds files if none match or nothing was typed yet."""
    found = [CompletionItem(name, help=kind) for name in names if name.startswith(incomplete)]
    return found if found and incomplete else [*found, CompletionItem(incomplete, type="file")]
