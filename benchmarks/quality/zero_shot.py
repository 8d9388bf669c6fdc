"""What does the packaged model find on real scans that no training has seen, and how often is it wrong on healthy ones?

python -m benchmarks.quality.zero_shot --set mslub --set lgg_flair --set ixi_t1 --json benchmarks/results/zero_shot.json
python -m benchmarks.quality.zero_shot --set lgg_others --json benchmarks/results/zero_shot_others.json
python -m benchmarks.quality.zero_shot --set heads --models-only --json benchmarks/results/zero_shot_synthetic.json
python -m benchmarks.quality.zero_shot --model heads --model RUN/model --set mslub    (one set, two models)

Sets: `lgg_flair` (test patients), `lgg_others` (the 45 other patients on which nothing was chosen: those for training
without every fourth, which the recipe was tried on), `mslub` (two MS patients, FLAIR, T2, T1), `heads` (synthetic
scans of held-out label maps, with exact truth) and `ixi_t1` (healthy). The baseline is intensity in its best variant
of each set, chosen by looking at the truth: working grid of the scan, 1 or 2 mm, in-plane median of 0, 3 or 5 mm,
voxels near the brain's surface weighed down or not, and supported by those around them or not. Lesions are bright on
T2 and FLAIR and dark on T1: models and baseline get the same sign. `--masks DIR` takes brain masks of lgg_flair from
elsewhere, under the same names.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from benchmarks.common import Benchmark, say, table
from benchmarks.quality.patients import MASKS_AS_GIVEN
from benchmarks.quality.scans import SETS, SIGNS, Scan, scans, with_sign
from maediff.config import DataConfig, ScoreConfig
from maediff.evaluation import bootstrap_ci, voxel_metrics
from maediff.evaluation.lesion import lesion_metrics
from maediff.inference.asymmetry import asymmetry_weight
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.scoring import anomaly_mask, postprocess
from maediff.working import prepare

BENCHMARK = Benchmark(
    __file__,
    __doc__,
    page="docs/packaged-model.md",
    results=("zero_shot.json", "zero_shot_others.json", "zero_shot_heights.json", "zero_shot_synthetic.json"),
)
GRIDS: tuple[float | None, ...] = (None, 1.0, 2.0)
MEDIANS = (0.0, 3.0, 5.0)
WEIGHTS = ((0, 0, 0), (4, 0, 0), (0, 20, 0), (4, 20, 0), (0, 20, 6), (4, 20, 6))
"""Half depth, support and asymmetry of a baseline's map, mm: none of them, some, and all, as the model has them."""
BOOTSTRAP = 2000
FloatMap = npt.NDArray[np.float32]


def intensity_maps(scan: Scan) -> Iterator[tuple[str, FloatMap]]:
    """Score a scan by brightness alone, in each variant."""
    own = min(scan.volume.spacing_mm[:2])
    for grid in GRIDS:
        if grid and math.isclose(grid, own, rel_tol=1e-3):
            continue  # it is the scan's own
        spacing = grid or own
        ready = prepare(scan.volume, scan.brain, DataConfig(spacing_mm=spacing, clip=1000))
        signed = ready.slices if SIGNS[scan.contrast] == "bright" else -ready.slices
        values = np.where(ready.mask, signed - signed[ready.mask].min(), 0)
        usual = replace(ready, slices=np.clip(ready.slices, -1, DataConfig().clip))
        weights = {reach: asymmetry_weight(usual, SIGNS[scan.contrast], reach) for *_, reach in WEIGHTS}
        for median, (half_depth, support, reach) in itertools.product(MEDIANS, WEIGHTS):
            config = ScoreConfig(median_mm=median, half_depth_mm=half_depth, support_mm=support)
            working = postprocess(values * weights[reach], ready.mask, ready.grid.spacing_mm, config)
            yield (
                f"grid {grid or 'own'}, median {median:g} mm, half depth {half_depth} mm, support {support} mm, "
                f"asymmetry {reach} mm",
                ready.to_native(working),
            )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score models and baseline on the sets asked for."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for name in options.sets or SETS:
        for scan in scans(name, options.data, options.masks, options.limit):
            for model in options.models or ["heads"]:
                row = _model_row(scan, model, options)
                rows[scan.group][model].append(row)
            if scan.label.any() and not options.models_only:
                for variant, values in intensity_maps(scan):
                    rows[scan.group][f"intensity, {variant}"].append(_row(scan, values, None, 0.0))
            last = rows[scan.group][(options.models or ["heads"])[0]][-1]
            say(f"{scan.group} {scan.name}: " + ", ".join(f"{key} {value:.3f}" for key, value in last.items()))
    results = {group: _summary(methods) for group, methods in rows.items()}
    for group, summary in results.items():
        print(f"\n{group} ({summary['scans']} scans)")
        print(_table(summary))
    return results


def _model_row(scan: Scan, model: str, options: argparse.Namespace) -> dict[str, float]:
    predictor = _predictor(model, scan.contrast, options)
    result = predictor.predict(scan.volume, scan.brain)
    row = _row(scan, result.anomaly, result.threshold, predictor.config.score.min_size_mm3)
    return row | {"seconds": result.seconds}


def _predictor(model: str, contrast: str, options: argparse.Namespace) -> Predictor:
    """Load a model once per contrast, with the sign that belongs to it and the threshold that it ships."""
    key = (model, contrast)
    if key not in _LOADED:
        loaded = load_model(model, options.device, tuple(options.overrides), accept=MASKS_AS_GIVEN)
        _LOADED[key] = with_sign(loaded, contrast)
    return _LOADED[key]


_LOADED: dict[tuple[str, str], Predictor] = {}


def visibility(scan: Scan) -> float:
    """Compare a lesion with the brain 2 to 8 mm around it: the difference of their medians, in units of the scan.

    The unit is the range from the brain's 1st to its 99th percentile. At 0 a lesion is as bright as its surroundings.
    """
    away = ndimage.distance_transform_edt(~scan.label, sampling=scan.volume.spacing_mm)
    around = scan.brain & (away > 2) & (away <= 8)
    low, high = np.percentile(scan.volume.data[scan.brain], (1, 99))
    lesion, others = (np.median(scan.volume.data[part]) for part in (scan.label, around))
    return float((lesion - others) / (high - low))


def _row(scan: Scan, values: FloatMap, threshold: float | None, min_size_mm3: float) -> dict[str, float]:
    """Measure one map: against the truth if there is one, else what it flags on a healthy scan."""
    row: dict[str, float] = {}
    if scan.label.any():
        row |= asdict(voxel_metrics(values, scan.brain, scan.label, threshold)) | {"visibility": visibility(scan)}
    if threshold is None:
        return row
    flagged = anomaly_mask(values, threshold, scan.volume.spacing_mm, min_size_mm3)
    found = lesion_metrics(flagged, scan.label, scan.brain)
    off = scan.brain & ~scan.label
    return row | {
        "lesions_found": found.detection_rate,
        "false_components": float(found.n_false),
        "flagged_share": float(flagged[off].mean()),
        "flagged_ml": float(flagged[off].sum()) * scan.volume.voxel_mm3 / 1000,
    }


def _summary(methods: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Average over scans, keep the best variant of intensity, and compare with it."""
    plain = {name: rows for name, rows in methods.items() if name.startswith("intensity")}
    kept = {name: rows for name, rows in methods.items() if name not in plain}
    summary: dict[str, Any] = {"scans": len(next(iter(kept.values())))}
    everywhere = [name for name, rows in plain.items() if len(rows) == summary["scans"]]  # a grid may be a scan's own
    best = max(everywhere, key=lambda name: np.mean([row["auprc"] for row in plain[name]]), default=None)
    if best is not None:
        kept[best] = plain[best]
    for name, rows in kept.items():
        keys = dict.fromkeys(key for row in rows for key in row)
        summary[name] = {key: bootstrap_ci([row.get(key, np.nan) for row in rows], BOOTSTRAP, 0) for key in keys}
        if best is not None and name != best:
            gained = [ours["auprc"] - theirs["auprc"] for ours, theirs in zip(rows, plain[best], strict=True)]
            summary[name]["auprc_above_intensity"] = bootstrap_ci(gained, BOOTSTRAP, 0)
    return summary


def _table(summary: dict[str, Any]) -> str:
    methods = {name: row for name, row in summary.items() if name != "scans"}
    columns = list(dict.fromkeys(key for row in methods.values() for key in row))
    return table(["method", *columns], [[name, *(row.get(key) for key in columns)] for name, row in methods.items()])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", dest="models", action="append", metavar="MODEL", help="model to score; repeatable")
    parser.add_argument("--set", dest="sets", action="append", choices=SETS, help="set to score on; repeatable")
    parser.add_argument("--models-only", action="store_true", help="leave intensity out")
    parser.add_argument("--limit", type=int, default=1000, help="scans per set and contrast (all)")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="brain masks of lgg_flair, under the same names")
    parser.add_argument("--override", dest="overrides", action="append", default=[], help="such as infer.draws=2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
