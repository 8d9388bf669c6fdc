"""How often is the input check right, and what is said of inputs that no map can be trusted for?

python -m benchmarks.robustness.input_check [--model phantom] [--parts made,said] [--write-page] [--json FILE]

`made`: 60 good and 60 bad brains, made from the template. `said`: noise in a brain mask, a brain upside down, half a
brain, inverted contrast, a CT, a whole head, a healthy volunteer, an MS patient and a glioma through `maediff infer`,
and what it says of each. A part that is left out is taken over from FILE. `--write-page` puts both into the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, Benchmark, data_folder, say, table
from benchmarks.robustness.made_scans import brain, judge, measured
from maediff.data.cases import search_cases
from maediff.errors import InputError
from maediff.files import read_json, write_text
from maediff.inputcheck import HealthyScan, MapMeasures
from maediff.jobs.infer import infer
from maediff.typing import BoolArray, FloatMap
from maediff.volume import read_mask, read_nifti, write_like

PAGE = ROOT / "docs" / "input-check.md"
BENCHMARK = Benchmark(__file__, __doc__, page="docs/input-check.md", results=("input_check.json",))
PARTS = ("made", "said")
_START, _END = "<!-- input check: written by benchmarks.robustness.input_check -->", "<!-- end -->"
Maker = Callable[[FloatMap, BoolArray], FloatMap]


def _upside_down(data: FloatMap, inside: BoolArray) -> FloatMap:
    return np.where(inside, data, 0)[:, :, ::-1]


def _half(data: FloatMap, inside: BoolArray) -> FloatMap:
    left = np.arange(len(data))[:, None, None] < len(data) // 2
    return np.where(inside & left, data, 0)


def _noise(data: FloatMap, inside: BoolArray) -> FloatMap:
    return np.where(inside, np.random.default_rng(0).uniform(1, 100, data.shape), 0).astype(np.float32)


def _inverted(data: FloatMap, inside: BoolArray) -> FloatMap:
    return np.where(inside, data[inside].max() + 1 - data, 0)


def _ct(data: FloatMap, inside: BoolArray) -> FloatMap:
    low, high = np.percentile(data[inside], (1, 99))
    tissue = 10 + 40 * ((data - low) / (high - low)).clip(0, 1)  # Hounsfield units of fluid to blood
    return np.where(inside, tissue, -1000).astype(np.float32)


MADE: dict[str, tuple[str, Maker]] = {
    "pure noise inside a brain mask": ("mslub", _noise),
    "a brain upside down": ("mslub", _upside_down),
    "half a brain": ("mslub", _half),
    "inverted contrast": ("mslub", _inverted),
    "a CT": ("mslub", _ct),
    "whole head with skull": ("ixi_t1", lambda data, inside: data),
    "a healthy volunteer": ("ixi_t1", lambda data, inside: np.where(inside, data, 0)),
    "MS patient": ("mslub", lambda data, inside: np.where(inside, data, 0)),
    "glioma": ("lgg_flair", lambda data, inside: np.where(inside, data, 0)),
}
"""Input -> the data set whose first scan it is made from (of MS patients the T2), and how."""


def healthy_flair() -> list[HealthyScan]:
    """Measure six healthy FLAIR brains as a calibration would."""
    return [HealthyScan(measured(*brain(900 + k, "flair")), MapMeasures(0.05, 0.1, 0.01)) for k in range(6)]


def what_is_said(model: str, data: Path, device: str, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Score the inputs of :data:`MADE` and collect what is said of each.

    Args:
        model: Model folder or packaged model.
        data: Folder of real scans.
        device: Where to compute.
        names: Only these inputs; all if empty.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="maediff-") as place:
        for number, (name, (source, make)) in enumerate(MADE.items()):
            if names and name not in names:
                continue
            case = search_cases(data_folder(source, data), channel="t2" if source == "mslub" else None).cases[0]
            scan = read_nifti(case.image)
            inside = read_mask(case.mask, scan, "brain mask") if case.mask else scan.data > 0
            path = write_like(Path(place) / f"input-{number}.nii.gz", make(scan.data, inside), scan)
            (outcome,) = infer(model, path, Path(place) / f"out-{number}", device=device).cases
            said = list(outcome.notes) or (
                [f"failed: {outcome.message.replace(f'{place}/', '')}"] if outcome.status == "failed" else []
            )
            row: dict[str, Any] = {"input": name, "score": outcome.score, "standing": outcome.standing}
            rows.append(row | {"flagged_ml": outcome.anomalous_volume_ml, "said": said})
            say(f"{name}: {'; '.join(said) or 'nothing'}")
    return rows


def page_text(results: Mapping[str, Any]) -> str:
    """Write the results as the page shows them."""
    made = results["made"]
    lines = [
        _START,
        f"Of {made['good']} good inputs {made['good_passed']} pass, "
        f"and of {made['bad']} bad ones {made['bad_named']} are named.",
    ]
    if results.get("said"):
        lines += ["", f"With `maediff infer -m {results['model']}`:", ""]
        lines += ["| input | score | flagged | said at the terminal |", "|---|---|---|---|"]
        lines += [_line(row) for row in results["said"]]
    return "\n".join([*lines, _END])


def _line(row: Mapping[str, Any]) -> str:
    score = "–" if row["score"] is None else f"{row['score']:.3f}"
    standing = f", {row['standing']}" if row["standing"] else ""
    flagged = "–" if row["flagged_ml"] is None else f"{row['flagged_ml']:.1f} ml"
    said = "; ".join(row["said"]).replace("|", "\\|") or "nothing"
    return f"| {row['input']} | {score}{standing} | {flagged} | {said} |"


def with_results(page: str, results: Mapping[str, Any]) -> str:
    """Put results between the marks of the page.

    Raises:
        InputError: The page has no marks.
    """
    before, start, rest = page.partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise InputError(f"docs/input-check.md has no place for the results: {_START} … {_END}")
    return f"{before}{page_text(results)}{after}"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen parts, print them, and write the page if wanted."""
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise InputError(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    earlier = read_json(options.json).get("results", {}) if options.json else {}
    results: dict[str, Any] = {
        "model": earlier.get("model", options.model),
        **{part: earlier.get(part) for part in PARTS},
    }
    if "made" in parts:
        results["made"] = judge(healthy_flair())
    if "said" in parts:
        results["model"] = Path(options.model).name
        results["said"] = what_is_said(options.model, options.data, options.device)
    if results["made"]:
        print({name: value for name, value in results["made"].items() if isinstance(value, int)})
    rows = [[row["input"], row["score"], row["flagged_ml"], "; ".join(row["said"])] for row in results["said"] or ()]
    print(table(["input", "score", "flagged ml", "said"], rows))
    if options.write_page:
        write_text(PAGE, with_results(PAGE.read_text(encoding="utf-8"), results))
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark alone."""
    parser.add_argument("--model", default="heads", help="model folder or packaged model (%(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts to run (%(default)s)")
    parser.add_argument("--write-page", action="store_true", help="put the results into docs/input-check.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
