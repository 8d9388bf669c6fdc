"""What finds the brain? Train the packaged brain extraction on synthetic heads, and write its weights.

    python -m benchmarks.release.brain_extraction_model train --run runs/extraction  (two hours on one core, resumable)
    python -m benchmarks.release.brain_extraction_model export --run runs/extraction   (into maediff/weights)

Heads 01 to 18 of ../shared/data/head_labels are learned from, 19 and 20 validate. No real scan is used. The first
steps see heads at 3 mm, which is three times as fast; the rest see them at 2 mm, as the product does. The last 1,200
go on from a raised learning rate. When the packaged weights were made, only these saw fat between the muscles of the
neck; the command shows it in all.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.common import Benchmark, say
from maediff.extraction.network import ExtractionNet
from maediff.extraction.synthetic import TrueBrain, draw, true_brain
from maediff.heads.labels import find_heads, read_head
from maediff.typing import FloatMap

BENCHMARK = Benchmark(__file__, __doc__, page="docs/prepare.md")
VALIDATION = ("19", "20")
SEED = 2026
STAGES = ((3.0, (64, 80, 64), 2600), (2.0, (96, 112, 96), 2700))  # voxel size in mm, shape, steps
RAISED_AT = 4100  # the step from which the learning rate rises and falls once more
WARMUP, WEIGHT_DECAY, EMA = 50, 1e-4, 0.99
VALIDATE_EVERY, SAVE_EVERY, VALIDATION_SAMPLES = 250, 50, 8
PACKAGED = Path("maediff/weights/extraction")
CARD = """---
license: apache-2.0
---
# Brain extraction

Weights of the network with which `maediff prepare` and `maediff infer` find the brain in a raw head scan of any
contrast: `maediff/extraction/network.py`, 1.4 million parameters in half precision. Research use only.

## How it was made
Trained from random weights in {steps} steps of one synthetic head each, on one CPU core, with
`python -m benchmarks.release.brain_extraction_model train`. No real scan was used. Heads have the anatomy of 18 label
maps, random pose, deformation, contrast (from tissue relaxation times, or any), fat between the muscles of the neck,
lesions, field of view, slice thickness, bias field, blur, ghosts and noise. Two more label maps validated.

The label maps are `data/training_label_maps` of SynthSeg (github.com/BBillot/SynthSeg, commit 66342c1, Apache License
2.0, (c) Benjamin Billot): Billot et al., SynthSeg, Medical Image Analysis 2023. They were merged into tissue classes;
the maps themselves are not part of this package. The idea of training brain extraction on synthetic heads is
SynthStrip's (Hoopes et al., NeuroImage 2022).

## What counts as brain
Brain tissue with the fluid around it, up to the inner table of the skull, and the brain stem down to 3 mm below the
cerebellum. Falx and tentorium belong to it, the spinal canal does not.

## Measured
docs/prepare.md and benchmarks/results/brain_extraction.json (`python -m benchmarks.quality.brain_extraction`).

## Limits
Adult heads alone were learned from. Heads after resection, children's heads, and scans that show less than half of
the brain were not tested. Look at the mask; a better one can be given with `--mask`.
"""


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on where an earlier run ended."""
    run = options.run
    torch.manual_seed(SEED)
    run.mkdir(parents=True, exist_ok=True)
    training, validation = read_heads(options.data / "head_labels")
    net = ExtractionNet()
    net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate(0), weight_decay=WEIGHT_DECAY)
    first = resume(run, net, average, optimizer)
    losses, began = [], time.perf_counter()
    for step in range(first, total_steps()):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        losses.append(train_step(net, optimizer, training, step))
        decay = min(EMA, (step + 1) / (step + 10))
        for name, value in net.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total_steps():
            save(run, net, average, optimizer, step + 1)
            seconds = (time.perf_counter() - began) / len(losses)
            report(run, step + 1, loss=float(np.mean(losses[-SAVE_EVERY:])), seconds_per_step=seconds)
        if (step + 1) % VALIDATE_EVERY == 0 or step + 1 == total_steps():
            report(run, step + 1, validation_dice=validate(average, validation, step))
    return {"steps": total_steps()}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write the averaged weights of a run, in half precision, and their card into the package."""
    state = torch.load(options.run / "last.pt", weights_only=True)
    PACKAGED.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in state["average"].items()}
    save_file(weights, PACKAGED / "model.safetensors")
    (PACKAGED / "README.md").write_text(CARD.format(steps=state["step"]))
    size = (PACKAGED / "model.safetensors").stat().st_size
    say(f"{PACKAGED}: step {state['step']}, {size / 2**20:.2f} MiB")
    return {"steps": state["step"], "bytes": size}


def read_heads(folder: Path) -> tuple[list[TrueBrain], list[TrueBrain]]:
    """Read label maps: those to learn from and those that validate."""
    parts: tuple[list[TrueBrain], list[TrueBrain]] = ([], [])
    for path in find_heads(folder):
        parts[path.name.split("_")[1] in VALIDATION].append(true_brain(read_head(path)))
    return parts


def total_steps() -> int:
    """Count the steps of all stages."""
    return sum(steps for *_, steps in STAGES)


def stage(step: int) -> tuple[float, tuple[int, int, int]]:
    """Return voxel size and shape of the samples of a step."""
    for spacing_mm, shape, steps in STAGES:
        if step < steps:
            return spacing_mm, shape
        step -= steps
    return STAGES[-1][:2]


def learning_rate(step: int) -> float:
    """Rise linearly, then fall as a cosine does to a hundredth; then the same again, less high."""
    start, end, highest = (0, RAISED_AT, 3e-3) if step < RAISED_AT else (RAISED_AT, total_steps(), 1e-3)
    fallen = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * (step - start) / (end - start)))
    return highest * min(1.0, (step - start + 1) / WARMUP) * fallen


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, heads: list[TrueBrain], step: int) -> float:
    """Draw a sample and learn from it."""
    rng = np.random.default_rng((SEED, step))
    spacing_mm, shape = stage(step)
    sample = draw(heads[rng.integers(len(heads))], rng, spacing_mm, shape)
    image, brain = (torch.from_numpy(values)[None, None] for values in (sample.image, sample.brain))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(image.to(memory_format=torch.channels_last_3d))
    loss = objective(logits.float(), brain)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return float(loss)


def objective(logits: Tensor, brain: Tensor) -> Tensor:
    """Cross entropy with the share of brain, and soft Dice."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * brain).sum() / (probability.sum() + brain.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, brain) + 0.5 * (1 - overlap)


def validate(weights: dict[str, Tensor], heads: list[TrueBrain], step: int) -> float:
    """Return the mean Dice on the same synthetic scans of unseen heads each time."""
    net = ExtractionNet().eval()
    net.load_state_dict(weights)
    spacing_mm, shape = stage(step)
    found = []
    for image, brain in validation_samples(heads, spacing_mm, shape):
        with torch.inference_mode():
            mask = net(image)[0, 0].numpy() > 0
        truth = brain >= 0.5
        found.append(2 * float((mask & truth).sum()) / max(1, int(mask.sum()) + int(truth.sum())))
    return float(np.mean(found))


def validation_samples(
    heads: list[TrueBrain], spacing_mm: float, shape: tuple[int, int, int]
) -> Iterator[tuple[Tensor, FloatMap]]:
    """Draw the validation scans."""
    for k in range(VALIDATION_SAMPLES):
        sample = draw(heads[k % len(heads)], np.random.default_rng((7, k)), spacing_mm, shape)
        yield torch.from_numpy(sample.image)[None, None], sample.brain


def save(run: Path, net: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the checkpoint, complete or not at all."""
    state = {"step": step, "net": net.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
    torch.save(state, run / "last.tmp")
    (run / "last.tmp").replace(run / "last.pt")


def resume(run: Path, net: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint, if there is one, and return the step to go on with."""
    if not (run / "last.pt").is_file():
        return 0
    state = torch.load(run / "last.pt", weights_only=True)
    net.load_state_dict(state["net"])
    average.update(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def report(run: Path, step: int, **values: float) -> None:
    """Say a line and keep it in the log of the run."""
    line = json.dumps({"step": step} | {name: round(value, 4) for name, value in values.items()})
    say(line)
    with (run / "log.jsonl").open("a") as stream:
        stream.write(line + "\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--run", type=Path, default=Path("runs/extraction"), help="folder of the run (%(default)s)")


STEPS = {"train": train, "export": export}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: STEPS[options.step](options), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
