"""``maediff config show|validate|schema``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ._options import Group, config_option, examples, set_option, talk


@click.group(cls=Group, name="config", epilog=examples("maediff config show -c tiny --set train.seed=7 > mine.yaml"))
def command() -> None:
    """Show, validate or explain a configuration."""


@command.command(
    epilog=examples("maediff config show -c paper", "maediff config show -c mine.yaml --set train.lr=1e-3")
)
@config_option
@set_option("train.lr=1e-3")
@talk
def show(*, config: str, overrides: tuple[str, ...]) -> None:
    """Print a configuration with every value and what it means, as YAML that train reads."""
    from maediff.config import load_config

    from ._yaml import commented_yaml

    click.echo(commented_yaml(load_config(config, overrides)), nl=False)


@command.command(epilog=examples("maediff config validate mine.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
@talk
def validate(*, file: Path) -> None:
    """Check a YAML file; all unknown keys and impossible values are listed."""
    from maediff.config import config_hash, load_config

    click.echo(f"{file} is valid (hash {config_hash(load_config(file))[:12]})")


@command.command(epilog=examples("maediff config schema > maediff.schema.json"))
@talk
def schema() -> None:
    """Print the JSON schema: every key, what it means, its default and its limits."""
    from maediff.config import Config

    click.echo(json.dumps(Config.model_json_schema(), indent=2))
