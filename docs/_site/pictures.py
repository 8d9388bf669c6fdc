"""The pictures of the explanation, drawn anew at each build from phantoms and stored results; no scan of a person.

`python docs/_site/pictures.py` draws the one that README.md shows, `docs/images/example.png`.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import tables
import torch
from matplotlib.figure import Figure

import maediff
from maediff import diffusion
from maediff.data.phantom import Phantom, subject
from maediff.diffusion.noise import generator, noise_field
from maediff.evaluation.voxel import voxel_metrics
from maediff.inference.predictor import AnomalyResult, Predictor
from maediff.methods.maediff.partition import visible_cells, window_grid, window_masks
from maediff.volume import Volume
from maediff.working import prepare_label

KEY = (424242, 7)  # of the subject that is shown
WINDOW_COLOUR, TRUTH_COLOUR, MASK_COLOUR = "#ffd24d", "#00c8dc", "#ff9500"
mpl.use("Agg")
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "savefig.bbox": "tight", "savefig.facecolor": "white"})


def draw() -> dict[str, str | bytes]:
    """Draw all pictures: file name in the site -> PNG."""
    makers = {"steps": steps, "sliding": sliding, "example": example, "prevalence": prevalence, "promise": promise}
    return {f"pictures/{name}.png": _png(make()) for name, make in makers.items()}


def steps() -> Figure:
    """What happens to one window of one slice."""
    predictor, scan = _model(), _ill()
    prepared = predictor.prepare(_image(scan)).prepared
    index = int(_axial(scan.label).sum(axis=(1, 2)).argmax())
    x0 = torch.from_numpy(prepared.slices[index])[None, None]
    label = torch.from_numpy(prepare_label(scan.label, prepared.grid)[index])
    window, t = _window_around(label, predictor.config.partition.window), 150
    noise = noise_field("gaussian", (x0.shape[2], x0.shape[3]), generator("docs"))[None]
    abar = diffusion.schedule(predictor.config.diffusion.schedule, predictor.config.diffusion.timesteps)
    perturbed = diffusion.partially_noise(x0, noise, window, abar[t].to(x0))
    side = predictor.config.partition.cell
    cells = visible_cells(window, side)[0].repeat_interleave(side, 0).repeat_interleave(side, 1)
    with torch.inference_mode():
        estimate = predictor.network(perturbed, window, torch.full((1,), t)).prediction
    healthy = torch.where(window > 0, estimate, x0)
    panels = [
        ("the slice $x_0$", x0, "grey"),
        (f"window noised, t = {t}", perturbed, "grey"),
        ("seen by the autoencoder", torch.where(cells[None, None], x0, torch.nan), "grey"),
        ("window as estimated", healthy, "grey"),
        ("difference", (x0 - healthy).abs(), "inferno"),
    ]
    frame = _frame(prepared.mask[index])
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.6))
    for axis, (title, image, colours) in zip(axes, panels, strict=True):
        top = {"grey": 1.2, "inferno": 1.0}[colours]
        shown = mpl.colormaps[colours].with_extremes(bad="#4a5a78")
        bottom = -1 if colours == "grey" else 0
        axis.imshow(_upright(image[0, 0].numpy()[frame]), cmap=shown, vmin=bottom, vmax=top)
        axis.contour(_upright(window[0, 0].numpy()[frame]), [0.5], colors=WINDOW_COLOUR, linewidths=1)
        _anatomy(axis, title)
    return figure


def sliding() -> Figure:
    """How windows cover a slice, and how often each pixel is estimated."""
    config = _model().config
    corners = window_grid(config.data.size, config.partition.window, config.partition.stride)
    covered = window_masks(corners, config.partition.window, config.data.size).sum(0)[0].numpy()
    figure, axis = plt.subplots(figsize=(4.2, 4.2))
    picture = axis.imshow(covered.T, cmap="Blues", vmin=0, origin="lower")
    for row, column in corners.tolist():
        side = config.partition.window
        axis.add_patch(plt.Rectangle((row - 0.5, column - 0.5), side, side, fill=False, color="#c1440e", alpha=0.7))
    figure.colorbar(picture, label="windows that cover the pixel", ticks=range(int(covered.max()) + 1), shrink=0.8)
    width, height = config.data.size
    _plain(axis, f"windows of {config.partition.window}, step {config.partition.stride}, on {width} x {height} pixels")
    return figure


def example() -> Figure:
    """Maps of a brain with a lesion and of a healthy one, on one colour scale."""
    rows = [("with a lesion", _ill()), ("healthy", _healthy())]
    index = int(_axial(_ill().label).sum(axis=(1, 2)).argmax())
    figure, axes = plt.subplots(2, 4, figsize=(10, 6))
    for line, (name, scan) in zip(axes, rows, strict=True):
        result = _result(scan is _ill())
        frame = _frame(scan.brain[:, :, index])
        grey, top = np.percentile(scan.image[scan.brain], 99.5), 3 * float(result.threshold or 1)
        for axis, title, values, colours, limit in zip(
            line,
            (f"scan, {name}", "healthy reconstruction", "anomaly map", "map's mask and truth"),
            (scan.image, result.reconstruction, result.anomaly, scan.image),
            ("grey", "grey", "inferno", "grey"),
            (grey, grey, top, grey),
            strict=True,
        ):
            axis.imshow(_upright(values[:, :, index][frame]), cmap=colours, vmin=0, vmax=limit)
            _anatomy(axis, title)
        for mask, colour in ((result.anomaly_mask, MASK_COLOUR), (scan.label, TRUTH_COLOUR)):
            if mask is not None and mask[:, :, index].any():
                line[3].contour(_upright(mask[:, :, index][frame]).astype(float), [0.5], colors=colour, linewidths=1.2)
    handles = [plt.Line2D([], [], color=c, label=n) for c, n in ((MASK_COLOUR, "mask"), (TRUTH_COLOUR, "true lesion"))]
    figure.legend(handles=handles, loc="lower right", ncols=2, frameon=False, bbox_to_anchor=(0.9, 0.02))
    return figure


def prevalence() -> Figure:
    """One and the same map quality, lesions of other sizes: AUROC stays, AUPRC and the best Dice fall."""
    rng = np.random.default_rng(0)
    shares = np.array([0.0003, 0.001, 0.003, 0.01, 0.03, 0.1])
    found = []
    for share in shares:
        label = np.zeros(200_000, bool)
        label[: round(share * label.size)] = True
        values = rng.normal(0, 1, label.size) + 2.0 * label
        found.append(voxel_metrics(values, np.ones_like(label), label, None))
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    for name, text in (("auroc", "AUROC"), ("auprc", "AUPRC"), ("dice_oracle", "best Dice")):
        axis.plot(100 * shares, [getattr(metrics, name) for metrics in found], marker="o", label=text)
    axis.set(xscale="log", ylim=(0, 1.02), xlabel="lesion, % of the brain", ylabel="metric")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def promise() -> Figure:
    """Promised and measured false-positive rates, from `benchmarks/results/calibration.json`."""
    figure, axis = plt.subplots(figsize=(5.4, 3.6))
    for offset, setting in enumerate(tables.calibration_settings()):
        rates = setting["rates"]
        x = np.array([row["promised_voxels_per_million"] for row in rates]) * 1.12 ** (offset - 1)
        middle, low, high = (
            np.array([max(row[f"{name}_per_million"], 1.0) for row in rates])
            for name in ("measured_voxels", "lowest_scan", "highest_scan")
        )
        label = f"calibration: {setting['calibrated_on']}; tested on {setting['tested_on']}"
        axis.errorbar(x, middle, [middle - low, high - middle], fmt="o", capsize=3, label=label)
    axis.plot([10, 3e5], [10, 3e5], color="grey", linestyle="--", linewidth=1, label="promise kept exactly")
    axis.set(xscale="log", yscale="log", xlabel="promised, voxels per million", ylabel="measured, voxels per million")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    return figure


@cache
def _model() -> Predictor:
    return maediff.load_model("phantom", "cpu")


@cache
def _ill() -> Phantom:
    return subject(KEY, "t2", "tumour")


@cache
def _healthy() -> Phantom:
    return subject((*KEY, 1), "t2")


@cache
def _result(ill: bool) -> AnomalyResult:
    scan = _ill() if ill else _healthy()
    return _model().predict(_image(scan))


def _image(scan: Phantom) -> Volume:
    return Volume(scan.image, scan.affine, nib.Nifti1Header())


def _window_around(label: torch.Tensor, side: int) -> torch.Tensor:
    """Choose the window (1, 1, H, W) that holds most of the lesion (H, W), as near its middle as may be."""
    shape = (label.shape[0], label.shape[1])
    masks = window_masks(window_grid(shape, side, 4), side, shape)
    return max(masks, key=lambda mask: (float((mask[0] * label).sum()), -_offset(mask[0], label)))[None]


def _offset(mask: torch.Tensor, label: torch.Tensor) -> float:
    middle = [values.nonzero().float().mean(0) for values in (mask, label)]
    return float((middle[0] - middle[1]).norm())


def _axial(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, 2, 0)


def _frame(brain: np.ndarray) -> tuple[slice, slice]:
    """Cut a slice (x, y) to its brain and a margin."""
    sides = [np.flatnonzero(brain.any(axis=1 - axis)) for axis in (0, 1)]
    first, second = (slice(max(int(found[0]) - 6, 0), int(found[-1]) + 7) for found in sides)
    return first, second


def _upright(plane: np.ndarray) -> np.ndarray:
    """Hang an axial plane (x to the right, y to the front) as report and viewer do: front up, patient's right left."""
    return plane.T[::-1, ::-1]


def _anatomy(axis: Any, title: str) -> None:
    _plain(axis, title)
    for letter, x, y in (("R", 0.04, 0.5), ("L", 0.96, 0.5), ("A", 0.5, 0.96), ("P", 0.5, 0.04)):
        axis.text(x, y, letter, transform=axis.transAxes, color="white", fontsize=8, ha="center", va="center")


def _plain(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("images", "example.png").write_bytes(_png(example()))
