"""What an unknown setting may have meant: its new name, the nearest key, or the section that has it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from maediff.config.schema import Config

RENAMED = {"peer": "baselines", "train.tensorboard": "train.report_to"}
"""Former section or setting -> its present name."""
METHOD = "method"
"""The one setting without a section."""
_MAX_CHARACTERS = 120
_MAX_OWNERS = 3


def sections() -> tuple[str, ...]:
    """List the sections of a configuration."""
    return tuple(name for name in Config.model_fields if _fields(name))


def explain_unknown(key: str, value: Any = None) -> str:
    """Say what an unknown key may have meant.

    Args:
        key: A section, or a setting as ``section.name``.
        value: What the key holds; the settings of a mapping help to guess.

    Returns:
        The rest of a message that has named the key.

    Example:
        >>> explain_unknown("train.lrr")
        'did you mean train.lr?'
        >>> explain_unknown("peer")
        'it is called baselines now'
    """
    section, _, name = key[:_MAX_CHARACTERS].partition(".")
    if key in RENAMED:
        return f"it is called {RENAMED[key]} now"
    if name:
        near = [f"{section}.{found}" for found in _nearest(name, _fields(section))]
        return _meant([*near, *owners(name, near=False)]) or f"section {section} has {', '.join(_fields(section))}"
    if near := _nearest(section, [*sections(), METHOD]):
        held = [name for name in value if name in _fields(near[0])] if isinstance(value, Mapping) else []
        return _meant([".".join([near[0], *held[:1]])])
    return _meant(owners(section)) or f"the sections are {', '.join(sections())}"


def explain_sectionless(name: str) -> str:
    """Say which section a setting belongs to that was given without one, as in ``lr=1e-4``."""
    name = name[:_MAX_CHARACTERS]
    if fields := _fields(name):
        return f"{name} is a section; its settings are {', '.join(f'{name}.{field}' for field in fields)}"
    meant = _meant(_nearest(name, [METHOD]) or owners(name))
    return meant or f"write section.key=value; the sections are {', '.join(sections())}"


def owners(name: str, *, near: bool = True) -> list[str]:
    """List the settings of any section with a name, as ``section.name``.

    Args:
        name: Name without section.
        near: If no section has it, take the nearest name that one has.
    """
    every = {field for section in sections() for field in _fields(section)}
    names = [name] if name in every or not near else _nearest(name, every)
    return [f"{section}.{found}" for found in names for section in sections() if found in _fields(section)]


def _fields(section: str) -> list[str]:
    """List the settings of a section; empty if there is no such section."""
    field = Config.model_fields.get(section)
    model = field.annotation if field else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(known), n=1)


def _meant(keys: list[str]) -> str:
    """Phrase the question; empty if there is nothing to ask for."""
    return f"did you mean {' or '.join(keys[:_MAX_OWNERS])}?" if keys else ""
