"""A configuration as YAML with each setting's description above it."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 100


def commented_yaml(config: BaseModel) -> str:
    """Render a configuration as YAML that `train` reads back, with descriptions as comments.

    Args:
        config: The configuration.
    """
    return "\n".join(_lines(config, "")) + "\n"


def _lines(section: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        child = getattr(section, name)
        if isinstance(child, BaseModel):
            lines += [*_comment(_summary(type(child)), indent), f"{indent}{name}:", *_lines(child, indent + "  "), ""]
        else:
            lines += [*_comment(_meaning(field), indent), f"{indent}{name}: {_value(values[name])}"]
    return lines[:-1] if lines and not lines[-1] else lines


def _summary(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").partition("\n")[0]


def _meaning(field: FieldInfo) -> str:
    """Return the description, followed by the allowed values if it does not name them."""
    text = field.description or ""
    choices = [str(choice) for choice in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    if choices and not all(choice in text for choice in choices):
        text = f"{text} One of {', '.join(choices)}.".strip()
    return text


def _comment(text: str, indent: str) -> list[str]:
    lead = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead)


def _value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
