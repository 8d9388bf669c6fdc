"""Write one self-contained HTML file with findings, metrics, settings and advice."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from maediff._version import __version__
from maediff.calibration import among_healthy
from maediff.card import NOT_STATED, Scope
from maediff.errors import ConfigError, InputError, one_line
from maediff.evaluation.choice import Choice, chosen_notice, read_chosen
from maediff.evaluation.evaluate import METRICS_FILE, PER_CASE_FILE, Evaluation, measure
from maediff.evaluation.metrics import chance_level
from maediff.evaluation.outputs import FINISHED, OutputCase
from maediff.evaluation.reference import Reference
from maediff.files import read_json, write_text
from maediff.findings import Findings, components_path, write_components
from maediff.notes import Level, level_of, warnings_of
from maediff.paths import without_names
from maediff.report.cohort_charts import curve_charts, distribution, healthy_scores, placed_among_healthy
from maediff.report.figures import colour_table, gradient
from maediff.report.pictures import Gallery, build_gallery, colour_top, measure_findings, read_layers
from maediff.report.sheets import LEVELS
from maediff.report.training import read_training
from maediff.tables import read_table
from maediff.volume import read_map

logger = logging.getLogger(__name__)
MAX_PICTURES = 24
METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "dice": "Dice",
    "dice_oracle": "Oracle Dice",
}
_SHARE = "lesion_share"
_METHODS = {
    "maediff": "MAEDiff, trained in this run",
    "maediff-phantom": "MAEDiff, shipped phantom model",
    "intensity": "Intensity threshold",
    "zscore": "Voxelwise z-score",
}
_SUMMARY = {
    "auroc": "AUROC, lesion voxels against the rest of the brain",
    "auprc": "AUPRC (average precision)",
    "dice": "Dice at the calibrated threshold",
    "dice_oracle": "Oracle Dice: at the best threshold, which only the truth can tell",
}
_OTHER = {
    "lesion.detection_rate": "Lesions that the anomaly mask touches, share",
    "lesion.precision": "Mask components that touch a lesion, share",
    "lesion.f1": "Lesion-wise F1",
    "case.auroc": "AUROC, scans with a lesion against healthy scans",
}
_TILES = {
    "voxel.auroc": "voxel AUROC",
    "voxel.auprc": "voxel AUPRC",
    "voxel.dice": "Dice at threshold",
    "case.auroc": "scan-level AUROC",
}
_SCOPE = {"trained_on": "Trained on", "finds": "Shown to find", "misses": "Misses or was not tried on"}
_MEND = (
    "Mend what the failed scans name, then run the same command again; finished scans are skipped.",
    "maediff infer -m MODEL -i SCANS -o OUT",
)
_CALIBRATE = (
    "The model has no threshold yet, so there are no anomaly masks. Calibrate it on healthy scans of your own scanner.",
    "maediff calibrate -m MODEL -i HEALTHY_SCANS",
)
_SUSPENDED = (
    "The model's calibration is suspended, so there are no anomaly masks: the settings of this run make other maps "
    "than those that it was calibrated on. Leave the overrides out, or calibrate a model that was saved with them.",
    "",
)
_EVALUATE = (
    "Where lesion masks are at hand, measure how good these maps are.",
    "maediff evaluate -i OUT -r REFERENCE -o METRICS",
)
_ADD_HEALTHY = ("Add healthy scans to the cohort: they give the scan-level AUROC and show the false alarms.", "")
_RECONSTRUCTIONS = (
    "Look at the reconstructions first: away from a lesion they should look like the scan, sharp and in place. Where "
    "they do not, the scan is unlike the training scans (contrast, skull stripping, artefact), and its map shows that "
    "rather than disease.",
    "",
)
_VIEWER = (
    "Open scan and map together in the browser, with a threshold to move. The outputs lie on the scan's own grid, so "
    "any other viewer shows them in place as well.",
    "maediff view OUT",
)
Table = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def write_report(  # noqa: PLR0913  a public function: a keyword per option
    out_dir: Path,
    report_path: Path,
    *,
    reference: Path | None = None,
    metrics: Mapping[str, Any] | Path | None = None,
    table: Table | None = None,
    title: str = "MAEDiff report",
    max_pictures: int | None = MAX_PICTURES,
    warning: str = "",
    choice: Choice | None = None,
    training: Path | None = None,
) -> Path:
    """Write a report of an infer output folder as one HTML file that needs nothing else.

    Args:
        out_dir: What ``maediff infer`` wrote.
        report_path: File to write.
        reference: Table or folder with the truth: shown in the pictures and, if ``metrics`` is not given, evaluated.
        metrics: Content of ``metrics.json``, that file, or its folder (then scan by scan as well).
        table: Methods to compare, ``{method: {lesion kind: {"auroc", "auprc", "dice", "dice_oracle"}}}``; with
            "lesion_share" a row tells what chance reaches.
        title: Heading.
        max_pictures: Scans with pictures, those with the highest scores first; None for all. The table lists all.
        warning: What a reader must know before anything else, shown at the top.
        choice: A threshold that a person chose: masks, volumes and findings follow it, and the page says so.
        training: Run folder of the model's training, whose loss and pictures are shown.

    Each scan's ``<stem>_components.tsv`` is written if it is missing, and with the overlaps if there is a reference.

    Returns:
        ``report_path``.

    Raises:
        InputError: The output folder, the reference, the metrics or the run folder cannot be used.
        ConfigError: What was chosen cannot be applied, or ``metrics`` were measured without it.
        OutputError: The report cannot be written.
    """
    out_dir, report_path = Path(out_dir), Path(report_path)
    if choice and metrics is not None:
        raise ConfigError("the metrics were measured at another threshold than the chosen; give the reference alone")
    cases = read_chosen(out_dir, choice)
    truths = Reference(Path(reference)) if reference is not None else None
    evaluation = _measured(out_dir, reference, metrics, choice)
    figures, per_case = _figures(evaluation, metrics)
    record = read_json(out_dir / "run.json")
    finished = [case for case in cases if case.finished]
    shown = sorted(finished, key=_rank)[:max_pictures]
    gallery = build_gallery(shown, truths, colour_top(finished))
    rows = [_row(case, per_case.get(case.case, {}), shown) for case in sorted(cases, key=_rank)]
    context = {
        "title": title,
        "version": __version__,
        "warning": warning,
        "chosen": chosen_notice(finished),
        "cases": rows,
        "failed": [case for case in cases if not case.finished],
        "n_finished": len(finished),
        "n_warned": sum(row["warned"] for row in rows),
        "shown": shown,
        "gallery": gallery,
        "tables": complete_tables(finished, truths, gallery),
        "notes_of": {case.case: card_notes(case) for case in shown},
        "above_healthy": {case.case: _above_healthy(case, record) for case in shown},
        "scale": _scale(finished, gallery.top),
        "levels": LEVELS,
        "colours": colour_table()[np.linspace(0, 255, LEVELS + 1).round().astype(int)].tolist(),
        "facts": _facts(finished),
        "scope": _scope(finished),
        "summary": _summary(figures),
        "tiles": _tiles(figures),
        "scored_columns": METRICS if per_case else {},
        "not_scored": figures.get("cases", {}).get("not_scored", []) if figures else [],
        "methods_title": "By lesion kind" if table is None else "Methods compared",
        "methods": _methods(table if table is not None else _own_table(figures)),
        "distribution": distribution(finished, record, truths),
        "placed": {case.case: placed_among_healthy(case, record) for case in shown},
        "curves": curve_charts(evaluation.cases) if evaluation else [],
        "training": read_training(training) if training is not None else None,
        "run": _run(record),
        "next_steps": _next_steps(cases, figures),
    }
    write_text(report_path, _template().render(context))
    return report_path


def card_notes(case: OutputCase) -> list[tuple[Level, str]]:
    """List the notes at the top of a scan's card with their levels: warnings, then information."""
    texts = [(level_of(note), without_names(note)) for note in case.notes]
    listed = [(level, f"{text[:1].upper()}{text[1:]}") for level, text in texts]
    return sorted(listed, key=lambda item: item[0] == "information")  # stable: each level keeps its order


def complete_tables(cases: Sequence[OutputCase], truths: Reference | None, gallery: Gallery) -> dict[str, str]:
    """Write missing tables of findings, and all tables if a reference gives the overlaps.

    Args:
        cases: Finished cases.
        truths: Reference, if there is one.
        gallery: Findings that are measured already.

    Returns:
        Name of each case's table; none if a person chose the threshold.
    """
    names = {}
    for case in cases:
        path = components_path(case.files["anomaly"])
        if case.cut is not None:  # the table belongs to the mask that infer wrote
            continue
        names[case.case] = path.name
        if "mask" not in case.files or (truths is None and path.is_file()):
            continue
        try:
            findings = gallery.findings.get(case.case) or _findings(case, truths)
            if findings:
                write_components(path, findings.components)
        except Exception as error:  # whatever is wrong with a scan must not stop the others
            logger.warning("no table of the findings of %s: %s", case.case, one_line(error))
    return names


def _findings(case: OutputCase, truths: Reference | None) -> Findings | None:
    volume = read_map(case.files["anomaly"])
    return measure_findings(case, volume, read_layers(case, volume, truths)[0])[0]


def _above_healthy(case: OutputCase, record: Mapping[str, Any]) -> str:
    """Describe how the scan's score compares with healthy scans; empty if unknown."""
    scans = case.sidecar.get("healthy_scans") or len(healthy_scores(record, *case.sort))
    return among_healthy(case.sidecar.get("score_percentile"), scans, case.sidecar.get("calibration_suspended"))


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(num=format_number, nameless=without_names, plural=_plural, share=_share, span=_span)
    folder = resources.files("maediff.report")
    for name in ("css", "js"):
        environment.globals[name] = (folder / f"report.{name}").read_text(encoding="utf-8")
    return environment.from_string((folder / "template.html").read_text(encoding="utf-8"))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _span(values: Sequence[float]) -> str:
    """Write numbers in ascending order as one, or as the first and the last."""
    return " to ".join(dict.fromkeys(format_number(value) for value in (*values[:1], *values[-1:])))


def _share(percent: float) -> str:
    return "< 1 %" if 0 < percent < 1 else f"{format_number(percent, 0)} %"


def format_number(value: Any, digits: int = 3) -> str:
    """Show a number with fixed decimals, and a dash if there is none.

    Example:
        >>> format_number(0.12345), format_number(None), format_number(float("nan"), 1)
        ('0.123', '–', '–')
        >>> format_number(-0.2, 0)
        '0'
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "–"
    return f"{round(number, digits) + 0.0:.{digits}f}" if math.isfinite(number) else "–"


def _rank(case: OutputCase) -> tuple[bool, float, str]:
    """Finished cases first, then by falling score."""
    return (not case.finished, -case.score if math.isfinite(case.score) else math.inf, case.case)


def _measured(
    out_dir: Path, reference: Path | None, metrics: Mapping[str, Any] | Path | None, choice: Choice | None
) -> Evaluation | None:
    """Compare with the truth if there is one; given metrics need no intervals again, and may be all there is."""
    if reference is None:
        return None
    if metrics is None:
        return measure(out_dir, Path(reference), choice=choice)
    try:
        return measure(out_dir, Path(reference), bootstrap=0)
    except InputError as error:
        logger.warning("no curves: %s", error)
        return None


def _figures(
    evaluation: Evaluation | None, metrics: Mapping[str, Any] | Path | None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Metrics of the cohort and of each case, given or measured."""
    if isinstance(metrics, Mapping):
        return dict(metrics), {}
    if metrics is not None:
        path = Path(metrics) / METRICS_FILE if Path(metrics).is_dir() else Path(metrics)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read metrics {path}: {error}; run `maediff evaluate` first") from error
        rows = path.with_name(PER_CASE_FILE)
        per_case = read_table(rows, ("case",)).rows if rows.is_file() else []
        return content, {row["case"]: dict(row) for row in per_case}
    if evaluation is None:
        return {}, {}
    return evaluation.metrics, {c.case: {**asdict(c.voxel), "lesion": c.lesion or ""} for c in evaluation.cases}


def _row(case: OutputCase, scores: Mapping[str, Any], shown: Sequence[OutputCase]) -> dict[str, Any]:
    place = next((number for number, other in enumerate(shown, 1) if other.case == case.case), None)
    row = f"row-{hashlib.sha256(case.case.encode()).hexdigest()[:12]}"
    return {
        "case": case.case,
        "status": case.status,
        "finished": case.finished,
        "shown": place is not None,
        "row": row,
        "anchor": row if place is None else f"scan-{place}",
        "score": case.score,
        "volume_ml": case.volume_ml,
        "seconds": case.seconds,
        "lesion": scores.get("lesion", ""),
        "scores": {name: scores.get(name) for name in METRICS},
        "notes": card_notes(case),
        "warned": bool(warnings_of(case.notes)),
        "message": case.message,
    }


def _scale(cases: Sequence[OutputCase], top: float) -> dict[str, Any]:
    thresholds = sorted({case.threshold for case in cases if case.threshold is not None})
    units = {str(case.sidecar["units"]) for case in cases if case.sidecar.get("units")}
    return {
        "top": top,
        "gradient": gradient(),
        "thresholds": thresholds,
        "start": thresholds[-1] if thresholds else top / 3,
        "word": "chosen" if any(case.sidecar.get("threshold_given") is not None for case in cases) else "calibrated",
        "units": units.pop() if len(units) == 1 else "residual, working units",
    }


def _scope(cases: Sequence[OutputCase]) -> dict[str, str]:
    """Return the scope from the model's card; empty without a scan."""
    stated = [Scope(**{name: _stated(case, name) for name in _SCOPE}) for case in cases]
    return {
        label: " / ".join(dict.fromkeys(getattr(scope, name) for scope in stated))
        for name, label in _SCOPE.items()
        if stated
    }


def _stated(case: OutputCase, name: str) -> str:
    model = case.sidecar.get("model")
    return str(model.get(name) or NOT_STATED) if isinstance(model, Mapping) else NOT_STATED


def _facts(cases: Sequence[OutputCase]) -> dict[str, str]:
    """Return the facts that all sidecars share, or the number of different values."""
    names = {
        "model_hash": "Model hash",
        "config_hash": "Configuration hash",
        "threshold": "Threshold",
        "threshold_origin": "Threshold from",
        "units": "Units of the maps",
    }
    facts = {}
    for key, name in names.items():
        values = {_text(case.sidecar[key]) for case in cases if case.sidecar.get(key) is not None}
        if values:
            facts[name] = values.pop() if len(values) == 1 else f"{len(values)} different ones; see the sidecars"
    return facts


def _summary(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the metrics table: by scan and pooled."""
    rows = [
        {"name": name}
        | {"scans": _with_chance(figures, f"voxel.{key}"), "pooled": _with_chance(figures, f"voxel_pooled.{key}")}
        for key, name in _SUMMARY.items()
    ]
    rows += [{"name": name, "scans": _with_chance(figures, key), "pooled": None} for key, name in _OTHER.items()]
    return [row for row in rows if row["scans"]]


def _with_chance(figures: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Return a metric with its chance level, None if unknown."""
    found = figures.get(key)
    return {**found, "chance": chance_level(figures, key)} if found else None


def _tiles(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The metrics to see first, as (name, value); names tell the level of chance."""
    values = ((name, figures.get(key, {}).get("mean"), chance_level(figures, key)) for key, name in _TILES.items())
    return [
        (f"{name} (chance {format_number(chance)})" if chance is not None and "AUPRC" in name else name, value)
        for name, value, chance in values
        if value is not None
    ]


def _own_table(figures: Mapping[str, Any]) -> Table:
    """This run as the only method, if the reference tells lesion kinds apart."""
    kinds = figures.get("by_lesion") or {}
    columns = {
        kind: {name: values.get(f"voxel.{name}", {}).get("mean") for name in (*METRICS, _SHARE)}
        for kind, values in kinds.items()
    }
    return {"this run": columns} if columns else {}


def _methods(table: Table) -> dict[str, Any]:
    """Rows and column groups of the methods table, the best of each column marked; the last row is chance."""
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    columns = [(kind, name) for kind in kinds for name in METRICS]
    cells = {method: [_finite(row.get(kind, {}).get(name)) for kind, name in columns] for method, row in table.items()}
    known = [[value for value in column if value is not None] for column in zip(*cells.values(), strict=True)]
    best = [max(column, default=None) for column in known]
    rows = [
        {
            "key": method,
            "name": _METHODS.get(method, method),
            "cells": [
                {"value": value, "best": len(cells) > 1 and value is not None and value == best[index]}
                for index, value in enumerate(values)
            ],
        }
        for method, values in cells.items()
    ]
    chance = [_chance(table, kind, name) for kind, name in columns]
    if any(value is not None and value != 0.5 for value in chance):
        rows.append({"key": "chance", "name": "Chance", "cells": [{"value": v, "best": False} for v in chance]})
    return {"compared": len(cells), "kinds": kinds, "metrics": list(METRICS.values()), "rows": rows}


def _chance(table: Table, kind: str, name: str) -> float | None:
    """Return the chance level on the scans of a lesion kind, if a method's row gives their share of lesion voxels."""
    share = next((row[kind][_SHARE] for row in table.values() if row.get(kind, {}).get(_SHARE) is not None), None)
    return _finite(chance_level({f"voxel.{_SHARE}": {"mean": share}}, f"voxel.{name}"))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _run(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """``run.json`` as sections of name and value; empty if there is none.

    Scores of single scans are drawn, not listed. The calibration of each contrast and form is a section of its own.
    """
    sections: dict[str, dict[str, str]] = {"run": {}}
    for name, value in record.items():
        if isinstance(value, Mapping):
            sections |= _sections(str(name), value)
        else:
            sections["run"][str(name)] = without_names(_text(value))
    return {name: rows for name, rows in sections.items() if rows}


def _sections(name: str, section: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """List a section, and those of its contrasts and forms."""
    sections = {name: _rows(section)}
    for parts in (section.get("contrasts") or {}, section.get("forms") or {}):
        for kind, part in parts.items():
            sections |= _sections(f"{name}, {kind}", part)
    return sections


def _rows(section: Mapping[str, Any]) -> dict[str, str]:
    shown = {key: item for key, item in section.items() if key not in {"case_scores", "contrasts", "forms"}}
    return {str(key): without_names(_text(item)) for key, item in shown.items()}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _next_steps(cases: Sequence[OutputCase], figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return advice as (text, command) pairs, the most urgent first."""
    failed = sum(case.status not in FINISHED for case in cases)
    without = [case for case in cases if case.finished and case.threshold is None]
    suspended = any(case.sidecar.get("calibration_suspended") for case in without)
    uncalibrated = any(not case.sidecar.get("calibration_suspended") for case in without)
    no_healthy = bool(figures) and figures.get("cases", {}).get("healthy", 1) == 0
    advice = [
        (failed > 0, *_MEND),
        (suspended, *_SUSPENDED),
        (uncalibrated, *_CALIBRATE),
        (not figures, *_EVALUATE),
        (no_healthy, *_ADD_HEALTHY),
    ]
    return [(text, command) for needed, text, command in advice if needed] + [_RECONSTRUCTIONS, _VIEWER]
