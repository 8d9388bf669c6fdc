"""How much of a lesion does a model trained on label maps take out, on slices of heads that it never saw?

python -m benchmarks.quality.restoration --model heads [--model RUN/model] [--samples 300] [--picture FILE.png]

Slices of the held-out heads are drawn as training's validation draws them. Per contrast, and per size of the lesion:
the share of the squared change by lesions that is left after one pass, 1 if nothing is taken out; and beside the
lesions the root mean square of what is changed, in working units (the brain spans 2). `--picture` shows slices with
lesions, without, as the model restores them, and what it took out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from benchmarks.common import Benchmark, lesion_shapes, say, table
from maediff import diffusion
from maediff.config import Config
from maediff.heads.headset import read_head_set, split_heads
from maediff.inference.load import load_model
from maediff.methods.objective import VISIBLE_LESION, perturb
from maediff.training.stream import HeadStream

BENCHMARK = Benchmark(__file__, __doc__, page="docs/packaged-model.md", results=("restoration.json",))
SIZES = (0, 10, 40, 150, 600, 100_000)
"""Limits of lesion sizes, pixels."""


class Restored(NamedTuple):
    """A slice with lesions, the same without, and as a model restores it, each (H, W)."""

    kind: str
    image: Tensor
    clean: Tensor
    restored: Tensor

    def row(self) -> dict[str, Any]:
        """Compare squared changes inside the visible lesion, and what is changed beside it."""
        lesion = (self.image - self.clean).abs() > VISIBLE_LESION
        beside = (self.clean > -1) & ~lesion
        return {
            "contrast": self.kind,
            "pixels": int(lesion.sum()),
            "before": float((self.image - self.clean)[lesion].square().sum()),
            "after": float((self.restored - self.clean)[lesion].square().sum()),
            "beside": float((self.restored - self.image)[beside].square().mean()),
        }


@torch.inference_mode()
def restore(model: str, options: argparse.Namespace) -> list[Restored]:
    """Draw slices of held-out heads and restore each in one pass, at the timestep that it was drawn for."""
    loaded = load_model(model, options.device)
    config = _with_shapes(loaded.config, options.data)
    _, paths = split_heads(options.data / "head_labels", config.data.validation_fraction)
    stream = HeadStream(read_head_set(paths, config.heads), config, options.samples, augmented=False)
    abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)
    found = []
    for index in range(options.samples):
        sample, kind = stream[index], stream.drawn(index).kind
        batch = {name: value[None].to(loaded.device) for name, value in sample.items()}
        noised = perturb(batch, batch["mask"], abar.to(loaded.device))
        restored = loaded.network(noised.image, noised.mask, batch["t"]).prediction
        found.append(Restored(kind, sample["image"][0], sample["clean"][0], restored[0, 0].float().cpu()))
    return found


def _with_shapes(config: Config, data: Path) -> Config:
    """Take lesion shapes from the real masks, as training did; a packaged model knows no folders."""
    return config.model_copy(update={"heads": config.heads.model_copy(update=lesion_shapes(data))})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Restore with each model, print and return."""
    results = {}
    for model in options.models or ["heads"]:
        found = restore(model, options)
        rows = pd.DataFrame([item.row() for item in found])
        rows = rows[rows.before > 0]
        results[model] = {
            "slices": len(rows),
            "left": _left(rows),
            "left_by_contrast": {str(kind): _left(part) for kind, part in rows.groupby("contrast")},
            "left_by_pixels": {
                str(size): _left(part) for size, part in rows.groupby(pd.cut(rows.pixels, SIZES), observed=True)
            },
            "changed_beside": float(rows.beside.mean() ** 0.5),
        }
        say(f"{model}: {results[model]['left']:.3f} of the lesions left")
        if options.picture:
            draw(found[: options.columns], options.picture)
    print(table(["model", "left", "changed beside"], [[m, r["left"], r["changed_beside"]] for m, r in results.items()]))
    return results


def _left(rows: pd.DataFrame) -> float:
    return float(rows.after.sum() / rows.before.sum())


def draw(found: Sequence[Restored], path: Path) -> None:
    """Draw slices, a column each."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, len(found), figsize=(2.2 * len(found), 10), squeeze=False)
    for column, item in zip(axes.T, found, strict=True):
        for axis, values in zip(column, (item.image, item.clean, item.restored), strict=False):
            axis.imshow(values.T.flip(0), cmap="gray", vmin=-1, vmax=1.2)
        column[3].imshow((item.image - item.restored).T.flip(0), cmap="RdBu_r", vmin=-1, vmax=1)
        column[0].set_title(item.kind)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=60)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", dest="models", action="append", metavar="MODEL", help="model; repeatable (heads)")
    parser.add_argument("--samples", type=int, default=300, help="slices (%(default)s)")
    parser.add_argument("--picture", type=Path, help="PNG of the first slices")
    parser.add_argument("--columns", type=int, default=10, help="slices in it (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
