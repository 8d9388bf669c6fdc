"""How good is the packaged brain extraction, beside a published network?

python -m benchmarks.quality.brain_extraction --json benchmarks/results/brain_extraction.json

On ``ixi_t1`` (T1, 2 mm, whole heads): Dice and 95th percentile Hausdorff distance to the reference masks, and seconds.
On ``lgg_flair`` (thick-sliced FLAIR of gliomas): volume of the old rough masks and of the new ones, and the share of
the tumour that each holds; slices lie some 5 mm apart there, so volumes are rough. The published network is brainchop's
``mindgrab`` (MIT), whose weights lie in ../shared/data/reference_brain_extraction; ``--reference 0`` leaves it out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from benchmarks.common import Benchmark, say, shared_data
from maediff.data.cases import Case, find_cases
from maediff.errors import InputError
from maediff.evaluation import dice
from maediff.extraction import extract_brain
from maediff.volume import Volume, read_mask, read_nifti
from maediff.working.components import bounding_box, largest_component
from maediff.working.resample import index_map, resample

BoolArray = npt.NDArray[np.bool_]
BENCHMARK = Benchmark(__file__, __doc__, page="docs/prepare.md", results=("brain_extraction.json",))
DILATIONS = (16, 8, 4, 2, 1) * 5
CHANNELS, SIDE, MARGIN = 15, 256, 20


class Reference:
    """Brainchop's ``mindgrab``: 25 dilated convolutions of 15 channels on 1 mm voxels, 256 cubed, LIA."""

    def __init__(self, folder: Path) -> None:
        values = np.fromfile(folder / "model.bin", np.float32)
        sizes = [27 * (CHANNELS if layer else 1) * CHANNELS for layer in range(len(DILATIONS))]
        parts = np.split(values, np.cumsum([*sizes, CHANNELS * 2]))
        self.kernels = [
            torch.from_numpy(part.reshape(3, 3, 3, -1, CHANNELS).transpose(4, 3, 0, 1, 2).copy()) for part in parts[:-2]
        ]
        self.output = torch.from_numpy(parts[-2].reshape(CHANNELS, 2).T.copy())[:, :, None, None, None]
        self.bias = torch.from_numpy(parts[-1].copy())

    def __call__(self, volume: Volume) -> BoolArray:
        """Find the brain on the voxels of a scan."""
        conformed = np.diag([-1.0, 1.0, 1.0, 1.0]) @ np.array(
            [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float
        )
        middle = volume.affine @ np.array([*(np.array(volume.data.shape) - 1) / 2, 1.0])
        conformed[:3, 3] = middle[:3] - conformed[:3, :3] @ np.full(3, (SIDE - 1) / 2)
        image = resample(volume.data, index_map(volume.affine, conformed), (SIDE, SIDE, SIDE))
        top = np.percentile(image[image > 0], 99.9)
        image = (np.round(np.clip(image / top, 0, 1) * 255) / 255).astype(np.float32)
        box = bounding_box(image > 0.5)
        if box is None:
            raise InputError(f"{volume.name} has no bright voxels")
        box = tuple(slice(max(0, s.start - MARGIN), min(SIDE, s.stop + MARGIN)) for s in box)  # type: ignore[assignment]
        found = np.zeros((SIDE,) * 3, bool)
        found[box] = self._forward(image[box].astype(np.float32))
        mask = largest_component(found)
        back: BoolArray = resample(mask, index_map(conformed, volume.affine), volume.data.shape) >= 0.5
        return back

    def _forward(self, image: npt.NDArray[np.float32]) -> BoolArray:
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 1, 0)))[None, None]
        x = x.to(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for kernel, dilation in zip(self.kernels, DILATIONS, strict=True):
                x = F.conv3d(x, kernel, padding=dilation, dilation=dilation)
                x = F.gelu(F.instance_norm(x))
            scores = F.conv3d(x, self.output, self.bias)[0].float()
        result: BoolArray = (scores[1] > scores[0]).numpy().transpose(2, 1, 0)
        return result


def ours(volume: Volume) -> BoolArray:
    """Find the brain with the packaged network."""
    return extract_brain(volume).mask


def hausdorff_95(first: BoolArray, second: BoolArray, spacing_mm: tuple[float, float, float]) -> float:
    """Return the larger of the 95th percentiles of the distances between two surfaces, mm."""
    rims = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    distances = [ndimage.distance_transform_edt(~rim, sampling=spacing_mm) for rim in rims]
    return float(max(np.percentile(distances[1][rims[0]], 95), np.percentile(distances[0][rims[1]], 95)))


def on_ixi(cases: list[Case], method: Callable[[Volume], BoolArray], name: str) -> dict[str, Any]:
    """Measure masks against the reference masks."""
    rows = {}
    for case in cases:
        volume = read_nifti(case.image)
        truth = read_mask(str(case.mask), volume, "brain mask")
        start = time.perf_counter()
        mask = method(volume)
        seconds = time.perf_counter() - start
        distance = hausdorff_95(mask, truth, volume.spacing_mm)
        rows[case.id] = {"dice": dice(mask, truth), "hd95_mm": distance, "seconds": round(seconds, 1)}
        say(f"{name} {case.id}: Dice {rows[case.id]['dice']:.4f}, HD95 {distance:.1f} mm, {seconds:.1f} s")
    values = {key: [row[key] for row in rows.values()] for key in ("dice", "hd95_mm", "seconds")}
    summary = {f"mean_{key}": float(np.mean(column)) for key, column in values.items()}
    return {"scans": rows, **summary, "lowest_dice": min(values["dice"]), "highest_hd95_mm": max(values["hd95_mm"])}


def on_gliomas(cases: list[Case]) -> dict[str, Any]:
    """Compare old masks and new ones of scans without a reference mask."""
    rows = {}
    for case in cases:
        volume = read_nifti(case.image)
        tumour = read_mask(str(case.label), volume, "lesion mask")
        old = read_mask(str(case.mask), volume, "brain mask")
        found = extract_brain(volume)
        ml = (found.slice_mm or volume.spacing_mm[2]) * volume.spacing_mm[0] * volume.spacing_mm[1] / 1000
        rows[case.id] = {
            "old_ml": round(float(old.sum()) * ml),
            "new_ml": round(float(found.mask.sum()) * ml),
            "tumour_in_old": float((tumour & old).sum() / tumour.sum()),
            "tumour_in_new": float((tumour & found.mask).sum() / tumour.sum()),
            "certainty": found.certainty,
        }
        say(f"{case.id}: {rows[case.id]}")
    kept = [row["tumour_in_new"] for row in rows.values()]
    volumes = {name: np.percentile([row[name] for row in rows.values()], (0, 50, 100)) for name in ("old_ml", "new_ml")}
    return {
        "scans": rows,
        **{name: values.tolist() for name, values in volumes.items()},
        "mean_tumour_in_new": float(np.mean(kept)),
        "lowest_tumour_in_new": min(kept),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both networks on the data sets that are there."""
    result: dict[str, Any] = {}
    weights = options.data / "reference_brain_extraction"
    if folder := shared_data("ixi_t1", options.data):
        cases = find_cases(folder)
        result["ixi_t1"] = {"ours": on_ixi(cases, ours, "ours")}
        if weights.is_dir() and options.reference:
            result["ixi_t1"]["reference"] = on_ixi(cases[: options.reference], Reference(weights), "reference")
    if folder := shared_data("lgg_flair", options.data):
        result["lgg_flair"] = on_gliomas(find_cases(folder))
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--reference", type=int, default=10, help="IXI scans that the published network sees")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
