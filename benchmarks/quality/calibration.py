"""Does a calibrated threshold keep its promise? False-positive rates on healthy scans that calibration never saw.

python -m benchmarks.quality.calibration --output DIR [--model phantom] [--subjects 16] [--seed 987] [--json FILE]

A threshold promises that a stated share of healthy brain voxels lies above it, averaged over scans *like those that it
was calibrated on*. Three settings show what that condition is worth; scans are healthy and synthetic, of seeds that
neither training nor calibration saw:

1. the model's own calibration, tested on the mixture of contrasts that `phantom` was calibrated on: like on like;
2. the model's own calibration, tested on one contrast of that mixture: easier scans than those of the calibration;
3. calibrated anew on that one contrast, tested on it: what a clinic does on its own scanner.

All scans come from one generator, so these are easy cases: a scanner that calibration has not seen breaks the promise
in either direction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import maediff
from benchmarks.common import Benchmark, say, table
from maediff.calibration import Calibration, calibrate
from maediff.data.cases import find_cases
from maediff.errors import ModelError
from maediff.inference.predictor import Predictor
from maediff.inference.result import AnomalyResult

BENCHMARK = Benchmark(__file__, __doc__, page="docs/calibration.md", results=("calibration.json",))
ONE = "t2"
"""The one contrast of settings 2 and 3."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score three cohorts; return promised and measured rates of the three settings."""
    predictor = maediff.load_model(arguments.model, arguments.device)
    own = predictor.calibration
    if own is None:
        raise ModelError(f"{arguments.model} has no calibration, so it promises nothing; run `maediff calibrate` first")
    mixed = list(_score(predictor, arguments, "mixed", 0))
    one = list(_score(predictor, arguments, ONE, 1))
    anew = calibrate(
        ((r.anomaly, r.brain_mask, r.score) for r in _score(predictor, arguments, ONE, 2)), own.false_positive_rate
    )
    return {
        "model_hash": predictor.model_hash,
        "seed": arguments.seed,
        "settings": [
            _setting("the model's own", "mixed", own, mixed),
            _setting("the model's own", ONE, own, one),
            _setting(f"anew, {ONE}", ONE, anew, one),
        ],
    }


def _score(predictor: Predictor, arguments: argparse.Namespace, modality: str, offset: int) -> Iterator[AnomalyResult]:
    folder = arguments.output / f"{modality}-{offset}"
    cohort = maediff.synthesise(
        folder, subjects=arguments.subjects, modality=modality, seed=arguments.seed + offset, healthy_only=True
    )
    for case in find_cases(cohort):
        say(f"{folder.name}: {case.id}")
        yield predictor.predict(case.image, case.mask)


def _setting(name: str, tested_on: str, calibration: Calibration, results: Sequence[AnomalyResult]) -> dict[str, Any]:
    volume_ml = float(np.mean([result.brain_volume_ml for result in results]))
    percentiles = [calibration.percentile_of(result.score) for result in results]
    return {
        "calibrated_on": name,
        "calibration_scans": calibration.n_scans,
        "tested_on": tested_on,
        "test_scans": len(results),
        "rates": [
            rate_row(float(rate), threshold, [_share(result, threshold) for result in results], volume_ml)
            for rate, threshold in calibration.quantiles.items()
        ],
        "score_percentile_mean": float(np.mean(percentiles)),
        "scans_above_all_calibration_scans": sum(percentile == 1 for percentile in percentiles),
    }


def _share(result: AnomalyResult, threshold: float) -> float:
    return float(np.mean(result.anomaly[result.brain_mask] > threshold))


def rate_row(rate: float, threshold: float, shares: Sequence[float], volume_ml: float) -> dict[str, float]:
    """Set the promised rate beside the shares that scans show; `volume_ml` is that of a brain."""
    measured = float(np.mean(shares))
    return {
        "promised_voxels_per_million": 1e6 * rate,
        "measured_voxels_per_million": 1e6 * measured,
        "lowest_scan_per_million": 1e6 * min(shares),
        "highest_scan_per_million": 1e6 * max(shares),
        "scans_within_promise": sum(share <= rate for share in shares) / len(shares),
        "promised_ml_per_scan": rate * volume_ml,
        "measured_ml_per_scan": measured * volume_ml,
        "threshold": threshold,
    }


def report(results: dict[str, Any]) -> dict[str, Any]:
    """Print the table of promised and measured rates, voxels per million; return the results."""
    header = ["calibrated on", "tested on", "promised", "measured", "lowest scan", "highest scan", "ml promised", "ml"]
    rows = [
        [
            setting["calibrated_on"],
            setting["tested_on"],
            f"{row['promised_voxels_per_million']:.0f}",
            f"{row['measured_voxels_per_million']:.0f}",
            f"{row['lowest_scan_per_million']:.0f}",
            f"{row['highest_scan_per_million']:.0f}",
            f"{row['promised_ml_per_scan']:.2f}",
            f"{row['measured_ml_per_scan']:.2f}",
        ]
        for setting in results["settings"]
        for row in setting["rates"]
    ]
    print(table(header, rows))
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the scans go")
    parser.add_argument("--model", default="phantom", help="a calibrated model (%(default)s)")
    parser.add_argument("--subjects", type=int, default=16, help="healthy scans a cohort, of three (%(default)s)")
    parser.add_argument("--seed", type=int, default=987, help="of the scans; none that training saw (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: report(measure(options)), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
