"""Does it pay to measure residuals by place? Maps with and without `maediff calibrate --locations`, and z-scores.

python -m benchmarks.quality.locations --output DIR [--model phantom] [--healthy 24] [--json FILE]

On the T2-like phantoms of `benchmarks.quality.table`, which lie in one template's space and which the packaged model
has never seen: healthy residuals are learned from healthy scans, width and floor are chosen on six labelled validation
scans, and the test scans are scored once, with the same post-processing for all. Healthy scans that nothing learned
from tell whether the threshold keeps its promise: that of maps which other subjects' statistics made (what the command
does) and, for comparison, that of maps whose own residual is part of the statistics. Residuals are kept in DIR: a
second run reconstructs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import maediff
from benchmarks.common import Benchmark, say, table
from benchmarks.quality.methods import FloatMap
from benchmarks.quality.patients import Patient, write_cases
from benchmarks.quality.table.rows import DATA_SETS, lesion_kinds
from maediff.calibration import Calibration, calibrate
from maediff.config import override
from maediff.data.cases import find_cases
from maediff.evaluation import bootstrap_ci, voxel_metrics
from maediff.evaluation.bootstrap import paired_p_value
from maediff.inference.predictor import Predictor
from maediff.methods.zscore import fit_zscore, zscore_map
from maediff.normative import FLOOR, SMOOTH_MM, Locations, residuals_by_place
from maediff.scoring import case_score, filter_map, fixed_sign
from maediff.working import WorkingScan

BENCHMARK = Benchmark(__file__, __doc__, page="docs/calibration.md", results=("locations.json",))
DATA = DATA_SETS["phantom"]
WIDTHS_MM = (4.0, 8.0, 16.0)
FLOORS = (0.25, 0.5, 1.0, 3.0)
RATES = ("0.1", "0.01", "0.001")
Metrics = dict[str, float]


@dataclass(frozen=True)
class Scan:
    """A scan with its residual on the working grid."""

    patient: Patient
    prepared: WorkingScan
    residual: FloatMap
    kind: str

    def by_place(self, smooth_mm: float) -> Locations:
        """Take the moments of its residual."""
        return residuals_by_place(self.residual, self.prepared.mask, self.prepared.grid, smooth_mm=smooth_mm)


@dataclass(frozen=True)
class Maker:
    """Makes maps of residuals, with statistics by place or without."""

    predictor: Predictor

    def plain(self, scan: Scan) -> FloatMap:
        """Make the map in working units."""
        return self.predictor.map_of(scan.prepared, scan.residual)

    def placed(self, scan: Scan, healthy: Locations, floor: float) -> FloatMap:
        """Make the map in standard deviations above what is healthy at each place."""
        values = healthy.standardised(scan.residual, scan.prepared.mask, scan.prepared.grid, floor=floor)
        return self.predictor.map_of(scan.prepared, values)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Learn, choose, calibrate and test."""
    loaded = maediff.load_model(options.model, options.device)
    score = DATA.score
    chosen = [f"score.{name}={getattr(score, name)}" for name in ("sign", "median_mm", "erode_mm")]
    predictor = replace(loaded, config=override(loaded.config, [*chosen, "score.locations=false"]), locations=None)
    cases = options.output / "phantom" / "cases.csv"
    if not cases.is_file():
        write_cases(cases, DATA.cases(cases.parent, options.data))
    kept = options.output / f"residuals-{predictor.model_hash[:12]}"

    def scans(split: str, wanted: Callable[[Patient], bool], most: int | None = None) -> list[Scan]:
        kinds = lesion_kinds(cases)
        found = [patient for patient in map(Patient, find_cases(cases, split=split)) if wanted(patient)][:most]
        return [_scan(predictor, patient, kinds.get(patient.case.subject, ""), kept) for patient in found]

    def is_healthy(patient: Patient) -> bool:
        return patient.case.label is None

    make = Maker(predictor)
    healthy = scans("train", is_healthy, options.healthy)
    tries = _tries(make, healthy, scans("val", lambda patient: not is_healthy(patient)))
    width, floor = max(tries, key=lambda pair: tries[pair])
    parts = [scan.by_place(width) for scan in healthy]
    everyone = reduce(Locations.plus, parts)
    pairs = list(zip(healthy, parts, strict=True))
    makers: dict[str, Callable[[Scan, Locations | None], FloatMap]] = {
        "working units": lambda scan, _: make.plain(scan),
        "by place": lambda scan, own: make.placed(scan, everyone.minus(own) if own else everyone, floor),
        "by place, own residual in the statistics": lambda scan, _: make.placed(scan, everyone, floor),
    }
    thresholds = {name: _calibrated(map_of, pairs) for name, map_of in makers.items()}
    unseen = scans("val", is_healthy)
    zscore = _zscore(healthy)
    rows = [_test(scan, makers, thresholds, zscore) for scan in scans("test", lambda _: True)]
    return {
        "model_hash": predictor.model_hash,
        "healthy_scans": len(healthy),
        "validation_auprc": [
            {"smooth_mm": width, "floor": floor, "auprc": value} for (width, floor), value in tries.items()
        ],
        "chosen": {"smooth_mm": width, "floor": floor},
        "in_force": {"smooth_mm": SMOOTH_MM, "floor": FLOOR},
        "false_positives": [_promise(name, makers[name], found, unseen) for name, found in thresholds.items()],
        "summary": _summary(rows),
        "scans": rows,
    }


def _scan(predictor: Predictor, patient: Patient, kind: str, kept: Path) -> Scan:
    case = patient.case
    scan = predictor.prepare(case.images, case.mask)
    path = kept / f"{case.id}.npy"
    if not path.is_file():
        say(f"reconstruct {case.id}")
        kept.mkdir(parents=True, exist_ok=True)
        np.save(path, predictor.residual(scan))
    return Scan(patient, scan.prepared, np.load(path), kind)


def _tries(make: Maker, healthy: Sequence[Scan], validation: Sequence[Scan]) -> dict[tuple[float, float], float]:
    """Score every width and floor on labelled validation scans, mean AUPRC."""
    known = {width: reduce(Locations.plus, (scan.by_place(width) for scan in healthy)) for width in WIDTHS_MM}
    found = {}
    for width, floor in product(WIDTHS_MM, FLOORS):
        maps = (make.placed(scan, known[width], floor) for scan in validation)
        found[width, floor] = _mean(_auprc(values, scan) for values, scan in zip(maps, validation, strict=True))
        say(f"validation: smoothed over {width:g} mm, floor {floor:g}: AUPRC {found[width, floor]:.3f}")
    say(f"validation: without places: AUPRC {_mean(_auprc(make.plain(scan), scan) for scan in validation):.3f}")
    return found


def _calibrated(
    map_of: Callable[[Scan, Locations | None], FloatMap], pairs: Sequence[tuple[Scan, Locations]]
) -> Calibration:
    maps = ((map_of(scan, own), scan.prepared.native_mask) for scan, own in pairs)
    return calibrate(((values, brain, case_score(values, brain)) for values, brain in maps), 0.01)


def _zscore(healthy: Sequence[Scan]) -> Callable[[Scan], FloatMap]:
    found = fit_zscore((scan.patient.volume, scan.prepared.native_mask) for scan in healthy)

    def values(scan: Scan) -> FloatMap:
        volume, brain = scan.patient.volume, scan.prepared.native_mask
        return filter_map(
            zscore_map(volume, brain, found, fixed_sign(DATA.score)), brain, volume.spacing_mm, DATA.score
        )

    return values


def _test(
    scan: Scan,
    makers: dict[str, Callable[[Scan, Locations | None], FloatMap]],
    thresholds: dict[str, Calibration],
    zscore: Callable[[Scan], FloatMap],
) -> dict[str, Any]:
    brain, label = scan.prepared.native_mask, scan.patient.label
    found: dict[str, Any] = {"kind": scan.kind, "zscore": {"auprc": _auprc(zscore(scan), scan)}}
    for name in ("working units", "by place"):
        values, threshold = makers[name](scan, None), thresholds[name].threshold
        metrics = voxel_metrics(values, brain, label, threshold, values > threshold)
        found[name] = {"auprc": metrics.auprc, "dice": metrics.dice, "dice_oracle": metrics.dice_oracle}
    return found


def _promise(
    name: str,
    map_of: Callable[[Scan, Locations | None], FloatMap],
    calibration: Calibration,
    unseen: Sequence[Scan],
) -> dict[str, Any]:
    """Measure false-positive rates on healthy scans that nothing learned from, voxels per million."""
    inside = [map_of(scan, None)[scan.prepared.native_mask] for scan in unseen]
    rates = []
    for rate in RATES:
        shares = [float(np.mean(values > calibration.quantiles[rate])) for values in inside]
        ends = {"lowest_scan": 1e6 * min(shares), "highest_scan": 1e6 * max(shares)}
        rates.append({"promised": 1e6 * float(rate), "measured": 1e6 * float(np.mean(shares)), **ends})
    return {"maps": name, "calibration_scans": calibration.n_scans, "unseen_scans": len(unseen), "per_million": rates}


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average by lesion kind, with the paired difference that places make."""
    found = []
    for kind in [*sorted({row["kind"] for row in rows}), "all"]:
        chosen = [row for row in rows if kind in {row["kind"], "all"}]
        entry: dict[str, Any] = {"kind": kind, "scans": len(chosen)}
        entry["zscore_auprc"] = bootstrap_ci([row["zscore"]["auprc"] for row in chosen])
        for metric in ("auprc", "dice", "dice_oracle"):
            without, placed = ([row[name][metric] for row in chosen] for name in ("working units", "by place"))
            entry[metric] = {
                "working_units": bootstrap_ci(without),
                "by_place": bootstrap_ci(placed),
                "difference": bootstrap_ci(np.subtract(placed, without)),
                "p": paired_p_value(placed, without),
            }
        found.append(entry)
    return found


def _auprc(values: FloatMap, scan: Scan) -> float:
    return voxel_metrics(values, scan.prepared.native_mask, scan.patient.label, None).auprc


def _mean(values: Iterable[float]) -> float:
    return float(np.nanmean(list(values)))


def report(results: dict[str, Any]) -> dict[str, Any]:
    """Print what places change, and the promises; return the results."""
    header = ["lesion", "scans", "z-score", "working units", "by place", "difference", "p", "Dice: units", "by place"]
    lines = []
    for row in results["summary"]:
        auprc, dice = row["auprc"], row["dice"]
        cells = [auprc["working_units"], auprc["by_place"], auprc["difference"], auprc["p"]]
        lines.append(
            [row["kind"], row["scans"], row["zscore_auprc"], *cells, dice["working_units"].mean, dice["by_place"].mean]
        )
    print(f"AUPRC, mean over scans; chosen on validation: {results['chosen']}\n{table(header, lines)}\n")
    header = ["maps", "promised, per million", "measured", "lowest scan", "highest scan"]
    rows = [
        [entry["maps"], *(f"{rate[name]:.0f}" for name in ("promised", "measured", "lowest_scan", "highest_scan"))]
        for entry in results["false_positives"]
        for rate in entry["per_million"]
    ]
    print(table(header, rows))
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="scans and residuals")
    parser.add_argument("--model", default="phantom", help="a model (%(default)s)")
    parser.add_argument("--healthy", type=int, default=24, help="healthy scans to learn from (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: report(measure(options)), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
