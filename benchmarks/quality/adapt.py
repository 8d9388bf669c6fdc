"""What is it worth to adapt a model to a site with a few healthy scans, beside calibrating it and training all of it?

    python -m benchmarks.quality.adapt --model heads --masks DIR --scans 5 --limit 3 --steps 200 \
      --json benchmarks/results/adapt.json
    python -m benchmarks.quality.adapt --model heads --masks DIR --scans 10 --limit 3 --steps 200 \
      --json benchmarks/results/adapt_10.json
    python -m benchmarks.quality.adapt --model heads --masks DIR --site ixi_t1 --scans 5 --limit 2 --steps 200 \
      --json benchmarks/results/adapt_ixi_t1.json

Sites: `lgg_flair` (tumour-free slices of training patients; tested on the test patients) and `ixi_t1` (healthy scans;
tested on the others). The model as shipped, the same with a threshold of the site alone, adapted (`maediff adapt`), and
with all its weights trained on (the same samples, targets, steps and stopping) are compared scan by scan. Those that
are trained have their threshold from the subjects that training held out, the calibrated one from all. Each is also
scored on contrasts that it was not adapted to. `--masks DIR` takes brain masks of lgg_flair from elsewhere, under the
same names (`new_masks` writes them). Differences are to the model as shipped, with paired bootstrap intervals.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Benchmark, data_folder, say, table
from benchmarks.quality.cross_validation.folds import patients
from benchmarks.quality.methods import pseudo_healthy_calibration
from benchmarks.quality.patients import MASKS_AS_GIVEN, Patient, row, write_cases
from maediff.data.cases import Case, find_cases
from maediff.data.slices import healthy_slices
from maediff.evaluation import bootstrap_ci, voxel_metrics
from maediff.evaluation.lesion import lesion_metrics
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.jobs.adapt import adapt_model, rehearsal_of, tuning_config
from maediff.jobs.train import split_cases
from maediff.model_folder import load_model_folder, resolve_model, save_model
from maediff.scoring import anomaly_mask
from maediff.training.tune import Schedule, tune

BENCHMARK = Benchmark(
    __file__, __doc__, page="docs/own-site.md", results=("adapt.json", "adapt_10.json", "adapt_ixi_t1.json")
)
SITES = ("lgg_flair", "ixi_t1")
FULL_LR = 1e-4
"""Learning rate of all weights; ten times that of the updates spoils the network within a few steps."""
BOOTSTRAP = 2000
METRICS = ("auprc", "false_components", "flagged_share", "healthy_residual")
Rows = list[dict[str, float]]
Thresholds = dict[str, float | None]
"""Threshold by the name of the method; None is that which the model has for the scan's contrast."""


@dataclass(frozen=True)
class Site:
    """Scans to adapt to, and sets of scans to test on, by name: the site's own first."""

    learn: list[Case]
    tests: dict[str, list[Case]]


def site(options: argparse.Namespace, count: int) -> Site:
    """Choose the scans of a site: the first by subject to adapt to, others to test on, and those of other contrasts."""
    cases = sorted(_cases(options.site, options), key=lambda case: case.subject)
    pool = [case for case in cases if case.split != "test"]
    own = [case for case in cases if case.split == "test"] or pool[count:]
    tests = {options.site: own}
    mslub = data_folder("mslub", options.data) / "cases.csv"
    for channel in ("flair", "t2", "t1"):
        tests[f"mslub {channel}"] = find_cases(mslub, channel=channel)
    other = next(name for name in SITES if name != options.site)
    tests[other] = [case for case in _cases(other, options) if other == "ixi_t1" or case.split == "test"]
    limited = {name: found if name == options.site else found[: options.limit] for name, found in tests.items()}
    return Site(pool[:count], limited)


def _cases(name: str, options: argparse.Namespace) -> list[Case]:
    if name == "lgg_flair":
        return patients(options.data, options.masks)
    return find_cases(data_folder(name, options.data) / "cases.csv")


def variants(options: argparse.Namespace, count: int, chosen: Site) -> Iterator[tuple[Predictor, Thresholds]]:
    """Make the models to compare, each with its thresholds by the name of the method."""
    base = load_model(options.model, options.device, tuple(options.overrides), accept=MASKS_AS_GIVEN)
    yield base, {"as shipped": None, "calibrated": _threshold(base, chosen.learn)}
    work = options.work / f"{options.site}-{count}"
    cases = work / "cases.csv"
    write_cases(cases, [row(case, "") for case in chosen.learn])
    schedule = Schedule(max_steps=options.steps)
    for name, make in (("adapted", _adapted), ("all weights", _trained)):
        say(f"{options.site}, {count} scans: {name}")
        folder, held_out = make(options, cases, work / name.replace(" ", "-"), schedule)
        model = load_model(folder, options.device, tuple(options.overrides), accept=MASKS_AS_GIVEN)
        yield model, {name: _threshold(model, held_out)}


def _adapted(options: argparse.Namespace, cases: Path, folder: Path, schedule: Schedule) -> tuple[Path, list[Case]]:
    found = adapt_model(
        options.model, cases, folder, rank=options.rank, schedule=schedule, seed=options.seed, device=options.device
    )
    say(f"  {found.tuned}; suspects: {', '.join(found.suspects) or 'none'}")
    return folder, _held_out(options, cases)[1]


def _trained(options: argparse.Namespace, cases: Path, folder: Path, schedule: Schedule) -> tuple[Path, list[Case]]:
    """Train all weights as the updates are trained."""
    loaded = load_model(options.model, options.device)
    config, network = tuning_config(loaded.config, options.seed), loaded.network
    learn, held_out = _held_out(options, cases)
    data = healthy_slices(learn, config.data), healthy_slices(held_out, config.data)
    kept = rehearsal_of(load_model(options.model, options.device), config)
    found = tune(network, list(network.parameters()), data, config, replace(schedule, lr=FULL_LR), rehearsal=kept)
    say(f"  {found}")
    save_model(folder, network.state_dict(), loaded.config, None, "# All weights trained on a few scans\n")
    return folder, held_out


def _held_out(options: argparse.Namespace, cases: Path) -> tuple[list[Case], list[Case]]:
    """Divide a site's scans as `maediff adapt` does."""
    config = tuning_config(load_model_folder(resolve_model(options.model)).config, options.seed)
    return split_cases(find_cases(cases), config, None)


def _threshold(predictor: Predictor, cases: Sequence[Case]) -> float:
    """Find the threshold from the lesion-free slices of some scans."""
    patients = [Patient(case) for case in cases]
    maps = [predictor.predict(case.images, case.mask).anomaly for case in cases]
    rate = predictor.config.score.false_positive_rate
    return pseudo_healthy_calibration(maps, patients, rate).threshold


def scored(predictor: Predictor, case: Case, thresholds: Thresholds) -> dict[str, dict[str, float]]:
    """Score a scan at each threshold: AUPRC if there is a lesion, false positives, residual of healthy slices."""
    patient = Patient(case)
    result = predictor.predict(case.images, case.mask)
    values, own = result.anomaly, math.nan if result.threshold is None else result.threshold
    healthy, calm = patient.brain & ~patient.label, patient.pseudo_healthy
    shared = {
        "auprc": voxel_metrics(values, patient.brain, patient.label, None).auprc,
        "healthy_residual": float(values[calm].mean()) if calm.any() else math.nan,
    }
    rows = {}
    for name, given in thresholds.items():
        threshold = own if given is None else given
        flagged = anomaly_mask(values, threshold, patient.volume.spacing_mm, predictor.config.score.min_size_mm3)
        false = lesion_metrics(flagged, patient.label, patient.brain).n_false
        known = math.isfinite(threshold)  # a model without a threshold flags nothing, which is no merit
        rows[name] = shared | {
            "false_components": float(false) if known else math.nan,
            "flagged_share": float(flagged[healthy].mean()) if known else math.nan,
        }
    return rows


def compared(rows: Rows, shipped: Rows) -> dict[str, Any]:
    """Average each metric, and its difference to the model as shipped, scan by scan."""
    summary: dict[str, Any] = {}
    for name in METRICS:
        ours, theirs = ([scan[name] for scan in method] for method in (rows, shipped))
        summary[name] = bootstrap_ci(ours, BOOTSTRAP)
        if rows is not shipped:
            summary[f"{name}, difference"] = bootstrap_ci(np.subtract(ours, theirs), BOOTSTRAP)
    return summary


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Adapt to each number of scans, score everything, and print a table for each test set."""
    results: dict[str, Any] = {}
    for count in options.scans:
        chosen = site(options, count)
        rows: dict[str, dict[str, Rows]] = {name: defaultdict(list) for name in chosen.tests}
        for predictor, thresholds in variants(options, count, chosen):
            for name, cases in chosen.tests.items():
                say(f"{options.site}, {count} scans: {', '.join(thresholds)} on {len(cases)} scans of {name}")
                for case in cases:
                    for method, scan in scored(predictor, case, thresholds).items():
                        rows[name][method].append(scan)
        found = {
            name: {method: compared(scans, methods["as shipped"]) for method, scans in methods.items()}
            for name, methods in rows.items()
        }
        for name, methods in found.items():
            columns = list(dict.fromkeys(key for summary in methods.values() for key in summary))
            print(f"\nadapted to {count} scans of {options.site}, tested on {name}")
            print(table(["method", *columns], [[method, *map(each.get, columns)] for method, each in methods.items()]))
        results[f"{count} scans"] = found
    return results


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="phantom", metavar="MODEL", help="base (%(default)s)")
    parser.add_argument("--site", choices=SITES, default="lgg_flair", help="what to adapt to (%(default)s)")
    parser.add_argument("--scans", type=int, nargs="+", default=[5, 10], metavar="N", help="scans to adapt to")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="brain masks of lgg_flair, under the same names")
    parser.add_argument("--rank", type=int, default=4, help="of the updates (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="most training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of samples, start and held-out subjects")
    parser.add_argument("--limit", type=int, default=1000, help="scans per test set of other sites (all)")
    parser.add_argument("--override", dest="overrides", action="append", default=[], help="such as score.sign=bright")
    parser.add_argument("--work", type=Path, default=Path("runs/adapt"), metavar="DIR", help="models (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
