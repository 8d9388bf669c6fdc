"""``maediff info``."""

from __future__ import annotations

import json
from typing import Any

import click

from ._completion import complete_model
from ._options import Command, examples, json_option, talk


@click.command(
    cls=Command, epilog=examples("maediff info", "maediff info phantom --json", "maediff info runs/first/model")
)
@click.argument("model", required=False, shell_complete=complete_model)
@json_option
@talk
def command(*, model: str | None, as_json: bool) -> None:
    """Describe a model and show its card, or list what is packaged.

    MODEL is a model folder, a training run, or the name of a packaged model; its checksums are verified. Without MODEL,
    the packaged models and configuration presets are listed.
    """
    from maediff.card import readable, scope_of
    from maediff.model_folder import describe_model, resolve_model

    facts = _packaged() if model is None else describe_model(resolve_model(model))
    facts |= {} if model is None else scope_of(facts["card"]).to_dict()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    card = facts.pop("card", None)
    for name, value in facts.items():
        click.echo(f"{name + ':':<15} {_text(value)}")
    if card is not None:
        click.echo(f"\n{readable(card)}", nl=False)


def _packaged() -> dict[str, Any]:
    import maediff
    from maediff.config import presets
    from maediff.model_folder import packaged_models

    return {"maediff": maediff.__version__, "models": list(packaged_models()), "presets": list(presets())}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
