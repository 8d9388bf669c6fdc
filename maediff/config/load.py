"""Read a configuration from YAML and overrides, and hash it.

A configuration is parsed once and frozen; every error names the key, its value and the allowed values.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from maediff.config.schema import Config
from maediff.config.suggest import METHOD, explain_sectionless, explain_unknown
from maediff.errors import ConfigError

_MAX_CHARACTERS = 2**18
_MAX_SHOWN = 120


def presets() -> tuple[str, ...]:
    """List the configurations that ship with the package."""
    folder = resources.files("maediff.configs")
    return tuple(sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")))


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a preset or a YAML file and apply ``section.key=value`` overrides.

    Args:
        source: A preset's name (see :func:`presets`) or the path of a YAML file.
        overrides: Assignments such as ``train.lr=1e-3``; values are YAML.

    Raises:
        ConfigError: Unknown preset or key (the nearest one is named), or impossible value.

    Example:
        >>> load_config("tiny", ["train.seed=7"]).train.seed
        7
    """
    return _overridden(_read_yaml(source), overrides)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """Apply ``section.key=value`` overrides to a configuration.

    Raises:
        ConfigError: Unknown key or impossible value.

    Example:
        >>> override(Config(), ["infer.draws=4"]).infer.draws
        4
    """
    return _overridden(config.model_dump(mode="json"), overrides)


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Check a tree of plain values and freeze it.

    Raises:
        ConfigError: Unknown key or impossible value; all of them are listed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def dump_yaml(config: Config) -> str:
    """Render a configuration as YAML that :func:`load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def config_hash(config: Config) -> str:
    """Return the SHA-256 over the canonical JSON of the configuration, which determines a result."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def maps_hash(config: Config) -> str:
    """Return :func:`config_hash` without the smallest finding size, which changes masks but not maps."""
    return config_hash(config.model_copy(update={"score": config.score.model_copy(update={"min_size_mm3": 0.0})}))


def _overridden(tree: dict[str, Any], overrides: Iterable[str]) -> Config:
    for text in overrides:
        _assign(tree, text)
    return parse_config(tree)


def _read_yaml(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read configuration {path}: {error}") from error
    elif str(source) in presets():
        text = (resources.files("maediff.configs") / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(source)[:_MAX_SHOWN], presets(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(presets())}, or give a .yaml file"
        raise ConfigError(f"no preset {str(source)!r}; {hint}")
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{source} has {len(text)} characters; a configuration has at most {_MAX_CHARACTERS}")
    try:
        tree = _plain_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} holds {type(tree).__name__}; a configuration is a mapping of sections")
    return tree


def _assign(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if equals and section and not dot and section != METHOD:
        raise ConfigError(f"override {_short(override)} names no section; {explain_sectionless(section)}")
    if not (equals and dot and name) and not (equals and section == METHOD):
        raise ConfigError(f"override {override!r} is not of the form section.key=value, for example train.lr=1e-4")
    try:
        value = _plain_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"value of override {override!r} is not valid YAML: {error}") from error
    if isinstance(value, str) and _is_number(value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    if not dot:
        tree[section] = value
        return
    branch = tree.setdefault(section, {})
    if not isinstance(branch, dict):
        raise ConfigError(f"section {section!r} holds {branch!r}; it must be a mapping")
    branch[name] = value


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, with which a few lines could expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write the value out", None)
        return super().compose_node(parent, index)


def _plain_yaml(text: str) -> Any:
    return yaml.load(text, _PlainLoader)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key[:_MAX_SHOWN]}: {explain_unknown(key, item.get('input'))}"
    value = item.get("input")
    shown = "" if isinstance(value, dict) else f" (got {_short(value)})"
    return f"{key}: {item['msg'].removeprefix('Value error, ')}{shown}"


def _short(value: Any) -> str:
    """Shorten a value of any size to one line."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints, or endless nesting
        return type(value).__name__
    text = repr(text) if isinstance(value, str) else text
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
