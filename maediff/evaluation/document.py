"""Add measured results to a model's card."""

from __future__ import annotations

from pathlib import Path

from maediff import card
from maediff.errors import ConfigError, InputError
from maediff.evaluation.evaluate import METRICS_FILE
from maediff.files import read_json
from maediff.model_folder import own_model, update_card, verify_model_folder
from maediff.staging import CARD


def document_model(
    model: str | Path,
    *,
    metrics: str | Path | None = None,
    data: str | None = None,
    licence: str | None = None,
    trained_on: str | None = None,
    finds: str | None = None,
    misses: str | None = None,
) -> str:
    """Add measured results, a licence or a description of its use to a model's card.

    The card is one of the files that the model's hash covers, so the hash changes: a later ``maediff infer`` into
    an earlier output folder recomputes its scans.

    Args:
        model: Model folder; a packaged model, given by its name, is refused: copy it first.
        metrics: Output of :func:`maediff.evaluate` for this model: its folder or `metrics.json`.
        data: Data of the measurement, such as the name of a data set; needed with `metrics`.
        licence: Licence of the weights, an SPDX identifier in lower case, such as "cc-by-4.0".
        trained_on: Training data; reports and sidecars repeat it, and the next two.
        finds: What the model has been shown to find; by default its measured results.
        misses: What the model is known to miss, or was not tested on.

    Returns:
        The new model hash.

    Raises:
        ModelError: The folder is not a sound model.
        InputError: The metrics cannot be read or are another model's.
        ConfigError: Nothing to change, metrics without `data`, or a packaged model.
        OutputError: The folder cannot be written.
    """
    scope = {"trained_on": trained_on, "finds": finds, "misses": misses}
    if metrics is None and licence is None and not any(scope.values()):
        raise ConfigError("nothing to put into the card; give metrics, a licence, trained_on, finds or misses")
    if metrics is not None and not data:
        raise ConfigError("metrics need the name of the data that they were measured on (--data)")
    folder = own_model(model)
    model_hash = verify_model_folder(folder)
    text = card.with_scope((folder / CARD).read_text(encoding="utf-8"), scope)
    if licence is not None:
        text = card.with_front_matter(text, {"license": licence})
    if metrics is not None:
        path = Path(metrics) / METRICS_FILE if Path(metrics).is_dir() else Path(metrics)
        found = read_json(path)
        if not found:
            raise InputError(f"{path} cannot be read as JSON; give what `maediff evaluate -o` wrote")
        text = card.with_results(text, found, model_hash, str(data))
    return update_card(folder, card.with_earlier_hash(text, model_hash))
