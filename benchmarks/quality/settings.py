"""Choose timesteps and score settings on labelled validation patients; each timestep is reconstructed once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import say, table
from maediff.config import ScoreConfig, override
from maediff.data.cases import Case
from maediff.evaluation import VoxelMetrics, voxel_metrics
from maediff.inference.predictor import LoadedScan, Predictor, content_key
from maediff.methods.base import Healthy
from maediff.scoring import anomaly_map, eroded
from maediff.volume import read_mask
from maediff.working import WorkingScan, prepare_label

TIMESTEPS: tuple[tuple[int, ...], ...] = ((50,), (100,), (150,), (200,), (300,), (100, 200))
SIGNS: tuple[Literal["abs", "bright"], ...] = ("abs", "bright")
MEDIANS_MM = (0.0, 5.0, 10.0, 15.0)  # 1, 3, 5 and 7 pixels of 2 to 2.4 mm
EROSIONS_MM = (0.0, 4.0)
SEED = 0
FloatMap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """What can be chosen after training."""

    timesteps: tuple[int, ...]
    sign: Literal["abs", "bright", "dark"]
    median_mm: float
    erode_mm: float

    def overrides(self) -> tuple[str, ...]:
        """Express the setting as configuration overrides."""
        return (
            f"diffusion.test_timesteps={list(self.timesteps)}",
            f"score.sign={self.sign}",
            f"score.median_mm={self.median_mm}",
            f"score.erode_mm={self.erode_mm}",
        )


def choose(predictor: Predictor, cases: Sequence[Case]) -> dict[str, Any]:
    """Score every setting on labelled patients, on the working grid, and take the highest mean AUPRC.

    Args:
        predictor: Trained model.
        cases: Validation patients with lesion labels; never the test.

    Returns:
        ``best`` (a setting), ``grid`` (all settings with mean metrics, best first) and ``patients``, how many.
    """
    scores: dict[Setting, list[VoxelMetrics]] = {}
    for number, case in enumerate(cases, start=1):
        start = time.perf_counter()
        for setting, metrics in _score(predictor, case):
            scores.setdefault(setting, []).append(metrics)
        say(f"choose: patient {number} of {len(cases)}, {time.perf_counter() - start:.0f} s")
    grid = [asdict(setting) | _means(rows) for setting, rows in scores.items()]
    grid.sort(key=lambda row: -row["auprc"])
    best = {name: grid[0][name] for name in Setting.__dataclass_fields__}
    return {"best": best, "patients": len(cases), "grid": grid}


def grid_table(found: Mapping[str, Any], rows: int = 12) -> str:
    """Show the best settings, and the best of each choice of timesteps where it is not among them."""
    grid = found["grid"]
    shown = grid[:rows]
    for row in grid[rows:]:
        if all(row["timesteps"] != other["timesteps"] for other in shown):
            shown = [*shown, row]
    lengths, metrics = ("median_mm", "erode_mm"), ("auroc", "auprc", "dice_oracle")
    lines = []
    for row in shown:
        times, millimetres = ",".join(map(str, row["timesteps"])), [f"{row[name]:g}" for name in lengths]
        lines.append([times, row["sign"], *millimetres, *(row[name] for name in metrics)])
    return table(["timesteps", "sign", *lengths, *metrics], lines)


def reconstruct(predictor: Predictor, scan: LoadedScan, t: int) -> Healthy:
    """Reconstruct the healthy working slices at one timestep, with the noise that inference uses by default.

    A method that takes no timesteps, or chooses its own, is asked once.
    """
    prepared, key = scan.prepared, (SEED, content_key(scan))
    slices, mask = torch.from_numpy(prepared.slices), torch.from_numpy(prepared.mask)
    return at_timestep(predictor, t).reconstruct(slices, mask, key)


def at_timestep(predictor: Predictor, t: int) -> Predictor:
    """Let a model reconstruct at one timestep instead of its own."""
    return replace(predictor, config=override(predictor.config, [f"diffusion.test_timesteps=[{t}]"]))


def maps(prepared: WorkingScan, healthy: Mapping[int, FloatMap]) -> Iterator[tuple[Setting, FloatMap]]:
    """Make the map of every setting from one reconstruction a timestep; several timesteps are averaged."""
    spacing = prepared.grid.spacing_mm
    inside = {depth: eroded(prepared.mask, spacing, depth) for depth in EROSIONS_MM}
    for timesteps, sign, median in product(TIMESTEPS, SIGNS, MEDIANS_MM):
        mean: FloatMap = np.mean([healthy[t] for t in timesteps], axis=0, dtype=np.float32)
        config = ScoreConfig(sign=sign, median_mm=median)
        filtered = anomaly_map(prepared.slices, mean, prepared.mask, spacing, config)
        for depth in EROSIONS_MM:
            yield Setting(timesteps, sign, median, depth), np.where(inside[depth], filtered, np.float32(0))


def _score(predictor: Predictor, case: Case) -> Iterator[tuple[Setting, VoxelMetrics]]:
    scan = predictor.prepare(case.image, case.mask)
    prepared = scan.prepared
    truth = prepare_label(read_mask(case.label or "", scan.volume, "label"), prepared.grid)
    wanted = sorted({t for timesteps in TIMESTEPS for t in timesteps})
    healthy = {t: reconstruct(predictor, scan, t).mean.numpy() for t in wanted}
    for setting, values in maps(prepared, healthy):
        yield setting, voxel_metrics(values, prepared.mask, truth, None)


def _means(rows: Sequence[VoxelMetrics]) -> dict[str, float]:
    names = ("auroc", "auprc", "dice_oracle")
    return {name: float(np.nanmean([getattr(row, name) for row in rows])) for name in names}
