"""The model card: ``README.md`` of a model folder, in the layout that Hugging Face reads.

What MAEDiff adds later (calibration, measured results) is enclosed in comments, so that it can be replaced without
changing what a person wrote around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from maediff.calibration import Calibration
from maediff.config import Config
from maediff.errors import InputError

METRICS = {
    "voxel.auroc": ("roc_auc", "AUROC of voxels, mean over scans"),
    "voxel.auprc": ("average_precision", "AUPRC of voxels, mean over scans"),
    "voxel.lesion_share": ("lesion_share", "Share of lesion voxels, the AUPRC of chance"),
    "voxel.dice": ("dice", "Dice at the calibrated threshold, mean over scans"),
    "voxel.dice_oracle": ("dice_oracle", "Oracle Dice, at the best threshold for each scan"),
    "lesion.f1": ("lesion_f1", "Lesion-wise F1"),
    "case.auroc": ("scan_roc_auc", "AUROC of scans, with a lesion against healthy"),
}
"""The keys of ``metrics.json`` that a card shows, each with its name in the front matter and its name for readers."""

NOT_STATED = "not stated"

_FRONT = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_MARKS = re.compile(r"<!-- (/?maediff:\w+|[0-9a-f]{64}) -->\n?")
_TAGS = ["anomaly-detection", "brain-mri", "medical-imaging", "unsupervised", "diffusion", "masked-autoencoder"]
_MISSES = {"bright": "dark lesions", "dark": "bright lesions"}
_SIGNS = {
    "abs": "The map shows what is brighter or darker than expected.",
    "bright": f"The map shows only what is brighter than expected: {_MISSES['bright']} are missed.",
    "dark": f"The map shows only what is darker than expected: {_MISSES['dark']} are missed.",
    "auto": "The map shows what is darker than expected on T1 and brighter on T2 and FLAIR, as the scan is read.",
}


@dataclass(frozen=True)
class Scope:
    """What a model's card says about its use, in words; "not stated" if it says nothing.

    Attributes:
        trained_on: What it learned from.
        finds: What it has been shown to find.
        misses: What it is known to miss, or has not been tried on.
    """

    trained_on: str = NOT_STATED
    finds: str = NOT_STATED
    misses: str = NOT_STATED

    def to_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return asdict(self)


def scope_of(card: str) -> Scope:
    r"""Read what a card's front matter states under ``trained_on``, ``finds`` and ``misses``.

    If ``finds`` is missing, measured results take its place.

    Example:
        >>> scope_of("---\nfinds: large tumours\n---\n# A\n")
        Scope(trained_on='not stated', finds='large tumours', misses='not stated')
    """
    front = front_matter(card)
    stated = {name: str(front[name]).strip() for name in Scope.__dataclass_fields__ if front.get(name)}
    measured = _measured(front)
    return Scope(**({"finds": measured} if measured else {}) | stated)


def with_scope(card: str, scope: Mapping[str, str | None]) -> str:
    """Set ``trained_on``, ``finds`` or ``misses`` in a card's front matter; None leaves an entry unchanged."""
    return with_front_matter(card, {name: text for name, text in scope.items() if text is not None})


def _measured(front: Mapping[str, Any]) -> str:
    """Summarise the results in the front matter in one line; empty if there are none."""
    try:
        result = front["model-index"][0]["results"][0]
        values = "; ".join(f"{item['name']} {item['value']:.3f}" for item in result["metrics"])
        return f"measured on {result['dataset']['name']}: {values}"
    except (KeyError, IndexError, TypeError, ValueError):
        return ""


def _scan(config: Config) -> str:
    """Say which images of a patient the model takes."""
    names, guides = config.data.channels, config.structure.contrasts
    if not names:
        return "one brain MRI"
    own = names[: config.reconstructed_channels]
    steered = f"; {', '.join(guides)} only steers the reconstruction" if guides else ""
    mean = " (the map is their mean residual)" if len(own) > 1 else f" (the map is that of {own[0]})"
    return f"the channels {', '.join(names)} of a brain MRI on one grid{mean}{steered}"


def model_card(config: Config, *, data: str, steps: int, loss: float) -> str:
    """Write the card of a trained model.

    Args:
        config: Its configuration.
        data: What it was trained on, in a sentence.
        steps: Training steps.
        loss: Best validation loss; NaN for a method without one.
    """
    stated = {"library_name": "maediff", "license": "other", "tags": _TAGS, "trained_on": data}
    if config.score.sign in _MISSES:
        stated["misses"] = _MISSES[config.score.sign]
    front = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True)
    grid, train = config.data, config.train
    ours = f"masked-autoencoder-enhanced diffusion (arXiv 2401.10561), condition `{config.model.condition}`"
    named = {"maediff": ours, "volumetric": f"{ours}, in three dimensions"}
    method = named.get(config.method, f"`{config.method}`, a method to compare MAEDiff with")
    slices = "as acquired" if grid.align == "voxel" else "across the scanner axes"
    count, sample = train.batch_size * train.accumulate, "slices"
    if len(config.shape) == 3:
        sample = f"volumes of {' x '.join(map(str, config.shape))} voxels"
        slices = f"{grid.slice_spacing_mm:g} mm apart, as far as their pixels are wide"
    of = " (the upper one of the hemisphere where it is lower)" if grid.scaling == "contralateral" else ""
    scale = (
        f"0 to -1 and the in-mask median to 0, cut at {grid.clip:g}"
        if grid.scaling == "median"
        else f"in-mask percentiles {grid.percentiles[0]:g} and {grid.percentiles[1]:g} to -1 and 1{of}, cut at "
        f"{grid.clip:g}"
    )
    scan = _scan(config)
    seen = f"; neighbours that the network also sees: {grid.neighbours} on each side" if grid.neighbours else ""
    result = f" Best validation loss (for MAEDiff: x0, in the patch, working units): {loss:.4f}."
    return f"""---
{front}---
# MAEDiff model

**Research use only.** Not a medical device; its maps show departures from the training scans, not disease.

- Method: {method}.
- Input: {scan}, skull-stripped or with a brain mask, of the same contrast and preparation as the training scans.
- Output, on the scan's grid: healthy reconstruction, anomaly map, scan-level score and, once calibrated, anomaly mask.

## Data and training

- Training data: {data}. Only scans, or slices, held to be healthy are learned from.
- {steps} steps of {count} {sample}, seed {train.seed}.{"" if math.isnan(loss) else result}

## Preprocessing

It is part of the model and applied by MAEDiff.

- Slices {slices} (`align: {grid.align}`), {grid.size[0]} x {grid.size[1]} pixels of {grid.spacing_mm:g} mm{seen}.
- Intensities: {scale}; -1 outside the brain.

## Intended use

Research on anomaly detection: to point to places of a brain MRI that are unlike the training scans. Not for diagnosis,
treatment, triage or any decision about a patient.

## Limits

- {_SIGNS[config.score.sign]}
- Unusual anatomy, artefacts, another scanner or sequence and another age depart from the training scans as lesions do.
- A threshold holds for scans like those that it was calibrated on: calibrate on healthy scans of your own scanner.
- What was not measured below is not known.
"""


def with_calibration(card: str, calibration: Calibration, locations: str | None = None) -> str:
    """Put a calibration into a card, and remove results that were measured with an earlier one.

    Args:
        card: The card before.
        calibration: The current calibration.
        locations: What the healthy residuals by place were collected from, in words; None if there are none.
    """
    scores = calibration.case_scores
    measured = f" Their scan-level scores: {min(scores):.3f} to {max(scores):.3f}." if scores else ""
    measured += f" Maps are measured by place: {locations}." if locations else ""
    text = f"""## Calibration

Threshold from {calibration.origin}, {calibration.n_scans} in all.{measured} What each threshold allows on such scans:

"""
    text += "".join(f"- {line}\n" for line in calibration.promises())
    return _with_section(_with_section(without_results(card), "earlier", ""), "calibration", text)


def with_results(card: str, metrics: Mapping[str, Any], model_hash: str, data: str) -> str:
    """Put measured results into a card, with intervals, for people and for Hugging Face.

    Args:
        card: The card before.
        metrics: Content of ``metrics.json`` of ``maediff evaluate``.
        model_hash: Of the model as it is.
        data: What the results were measured on, such as the name of a data set.

    Raises:
        InputError: The results belong to another model, or there are none.
    """
    measured = {str(value) for value in (metrics.get("settings") or {}).get("model_hashes", [])}
    if len(measured) != 1 or not (model_hash in measured or _hidden(next(iter(measured))) in _section(card, "earlier")):
        names = ", ".join(sorted(value[:12] for value in measured)) or "no model"
        raise InputError(f"these results were measured with {names}, not with this model ({model_hash[:12]})")
    rows = {key: value for key in METRICS if (value := metrics.get(key)) and value.get("mean") is not None}
    if not rows:
        raise InputError(f"the metrics hold none of {', '.join(METRICS)}; give what `maediff evaluate` wrote")
    cases = metrics.get("cases") or {}
    counted = (
        f"{cases.get('scored')} scans of {cases.get('patients')} patients, {cases.get('with_lesion')} with a lesion"
    )
    text = f"""## Measured

On {data}: {counted}; 95 % intervals by bootstrap over patients. Measured with the model `{measured.pop()}`
(the hash before these results were written here).

| metric | value | 95 % interval | scans |
|---|---|---|---|
"""
    text += "".join(f"| {METRICS[key][1]} | {_row(row)} |\n" for key, row in rows.items())
    listed = [
        {"type": METRICS[key][0], "name": METRICS[key][1], "value": round(float(row["mean"]), 4)}
        for key, row in rows.items()
    ]
    result = {
        "task": {"type": "image-segmentation", "name": "Unsupervised anomaly detection"},
        "dataset": {"type": "brain-mri", "name": data},
        "metrics": listed,
    }
    front = {"metrics": [item["type"] for item in listed], "model-index": [{"name": "MAEDiff", "results": [result]}]}
    return with_front_matter(_with_section(card, "results", text), front)


def with_earlier_hash(card: str, model_hash: str) -> str:
    """Record, in a comment, the model's hash before its card was changed: results that name this hash belong to it."""
    return _with_section(card, "earlier", _section(card, "earlier") + _hidden(model_hash))


def without_results(card: str) -> str:
    """Remove measured results from a card."""
    if not _section(card, "results"):
        return card
    return with_front_matter(_with_section(card, "results", ""), {"metrics": None, "model-index": None})


def with_front_matter(card: str, values: Mapping[str, Any]) -> str:
    r"""Set keys of a card's front matter; a value of None removes the key.

    Example:
        >>> with_front_matter("---\nlicense: other\n---\n# A\n", {"license": "mit"})
        '---\nlicense: mit\n---\n# A\n'
    """
    front = {key: value for key, value in (front_matter(card) | dict(values)).items() if value is not None}
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True) if front else ""
    return f"---\n{text}---\n{_FRONT.sub('', card, count=1) if _FRONT.match(card) else card}"


def front_matter(card: str) -> dict[str, Any]:
    """Read a card's front matter; empty if it is missing or unreadable."""
    match = _FRONT.match(card)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def readable(card: str) -> str:
    """Return a card as people read it: without its front matter and hidden comments."""
    return _MARKS.sub("", _FRONT.sub("", card, count=1) if _FRONT.match(card) else card).strip() + "\n"


def _row(row: Mapping[str, Any]) -> str:
    interval = "–" if row.get("ci_low") is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
    return f"{row['mean']:.3f} | {interval} | {row['n']}"


def _hidden(model_hash: str) -> str:
    return f"<!-- {model_hash} -->\n"


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"\n?<!-- maediff:{name} -->\n(.*?)<!-- /maediff:{name} -->\n", re.DOTALL)


def _section(card: str, name: str) -> str:
    match = _marked(name).search(card)
    return match[1] if match else ""


def _with_section(card: str, name: str, text: str) -> str:
    """Replace a marked section, or add it at the end; an empty text takes it away."""
    block = f"\n<!-- maediff:{name} -->\n{text}<!-- /maediff:{name} -->\n" if text else ""
    pattern = _marked(name)
    if pattern.search(card):
        return pattern.sub(lambda _: block, card, count=1)
    return f"{card.rstrip()}\n{block}" if block else card
