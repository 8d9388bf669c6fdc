"""Reference pages made from the code itself: the commands, the settings and the Python API."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import click
from maediff.cli import app
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import maediff
from maediff.config import Config, load_config, presets

_NAMES = {type(None): "null", bool: "true or false", int: "whole number", float: "number", str: "text"}
_COMPLETION = [
    "## Shell completion",
    "",
    "Shells complete commands, options, files, packaged models (`-m`) and presets (`-c`). Add the line of your shell",
    "to its start-up file:",
    "",
    "```bash",
    'eval "$(_MAEDIFF_COMPLETE=bash_source maediff)"    # ~/.bashrc, bash 4.4 or later',
    'eval "$(_MAEDIFF_COMPLETE=zsh_source maediff)"     # ~/.zshrc',
    "_MAEDIFF_COMPLETE=fish_source maediff | source     # ~/.config/fish/completions/maediff.fish",
    "```",
    "",
]
_TABLE = ["| key | type | default | meaning |", "|---|---|---|---|"]


def commands_page() -> str:
    """Describe every command: help, usage, options and examples."""
    lines = ["# Commands", "", "Made from the program itself; the same as `maediff COMMAND --help`.", "", *_COMPLETION]
    root = click.Context(app, info_name="maediff", **app.context_settings)
    for name in app.list_commands(root):
        command = app.get_command(root, name)
        if command is not None:
            lines += _command(command, root, name)
    return "\n".join(lines)


def _command(command: click.Command, parent: click.Context, name: str, depth: int = 2) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield from (f"{'#' * depth} maediff {context.command_path.removeprefix('maediff ')}", "")
    yield from (_prose(inspect.cleandoc(command.help or "")), "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```", f"{context.command_path} {usage}", "```", "")
    options = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    if options:
        yield from ("| option | meaning |", "|---|---|")
        yield from (f"| {_code(left)} | {_cell(_prose(right))} |" for left, right in options)
        yield ""
    if command.epilog:
        title, *lines = command.epilog.replace("\b", "").strip().splitlines()
        yield from (title, "", "```bash", *(line.strip() for line in lines), "```", "")
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _command(found, context, child, depth + 1)


def configuration_page() -> str:
    """Describe every setting: section, key, type, default and meaning, and what each preset sets."""
    lines = [
        "# Settings",
        "",
        "Made from the code itself. A configuration is YAML; `--set section.key=value` changes one value. "
        "`maediff config show -c tiny` prints a whole one, `maediff config validate` checks a file.",
        "",
    ]
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += [f"## {name}", "", _prose(" ".join((kind.__doc__ or "").split())), ""]
            lines += [*_TABLE, *(_setting(key, part) for key, part in kind.model_fields.items())]
        else:
            lines += [f"## {name}", "", *_TABLE, _setting(name, field)]
        lines.append("")
    return "\n".join([*lines, *_presets()])


def _setting(key: str, field: FieldInfo) -> str:
    limits = [f"{sign}\u00a0{value:g}" for item in field.metadata for sign, value in _limits(item)]
    kind = ", ".join([_type(field.annotation), *limits])
    default = _plain(field.default)
    return f"| `{key}` | {_cell(kind)} | `{default}` | {_cell(_prose(field.description or ''))} |"


def _limits(item: Any) -> Iterator[tuple[str, float]]:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"), ("multiple_of", "multiple of")):
        if (value := getattr(item, name, None)) is not None:
            yield sign, value


def _type(kind: Any) -> str:
    """Name a type as a user writes its values."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return " or ".join(_type(part) for part in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}" if parts[-1] is Ellipsis else f"{len(parts)} x {_type(parts[0])}"
    if str(origin) == "typing.Annotated" or hasattr(kind, "__metadata__"):
        return _type(parts[0])
    if parts:  # Literal
        return ", ".join(f"`{part}`" for part in parts)
    return _NAMES[kind]


def _presets() -> Iterator[str]:
    names = list(presets())
    trees = {name: load_config(name).model_dump(mode="json") for name in names}
    usual = Config().model_dump(mode="json")
    yield from ("## Presets", "", "What presets set otherwise than the defaults above; `-c NAME` chooses one.", "")
    yield from (
        "| setting | default | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (len(names) + 2) + "|",
    )
    for section, values in usual.items():
        for key, default in values.items() if isinstance(values, dict) else ():
            row = [trees[name][section][key] for name in names]
            if any(value != default for value in row):
                cells = ["" if value == default else _plain(value) for value in row]
                yield f"| `{section}.{key}` | {_plain(default)} | " + " | ".join(cells) + " |"


def api_page() -> str:
    """List the public API, whose docstrings mkdocstrings fills in."""
    homes = maediff._HOMES
    functions = [name for name in homes if name[0].islower()]
    classes = [name for name in homes if name[0].isupper() and name not in {"Config", "MAEDiffError"}]
    lines = [
        "# Python",
        "",
        "Everything that `import maediff` offers; names load on first use. The library logs and never prints. Settings "
        "are described [on their own page](configuration.md).",
        "",
    ]
    for name in (*functions, *classes):
        lines += [f"::: {homes[name]}.{name}", ""]
    lines += ["::: maediff.errors", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """Write a value as YAML does."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _prose(text: str) -> str:
    """Keep what Markdown would take for markup: a word with a placeholder, such as image_<channel>, becomes code."""
    parts = re.split(r"(`[^`]*`)", text.replace("\b", "").strip())  # what is code already stays
    return "".join(p if p.startswith("`") else re.sub(r"[\w./-]*<[^<>\s]+>[\w./<>-]*", r"`\g<0>`", p) for p in parts)


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>".replace("|", "&#124;")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")
