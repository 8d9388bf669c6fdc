"""How should MAE features enter the U-Net? The same short training with residuals, cross-attention and without.

python -m benchmarks.quality.condition --run runs/condition --steps 500 --json benchmarks/results/condition.json

Each variant sees the same samples of the same synthetic brains, and is judged by its validation loss and by the AUPRC
of unseen validation brains with lesions. A short training says which one learns faster here, not which is better after
days on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark, say, table
from benchmarks.quality.stacks import auprc_by_kind, validation_cases
from maediff.config import load_config
from maediff.data.cases import find_cases
from maediff.data.slices import healthy_slices
from maediff.data.synthesis import synthesise
from maediff.inference.predictor import Predictor
from maediff.jobs.train import split_cases
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.training.loop import fit

BENCHMARK = Benchmark(__file__, __doc__, page="docs/measured.md", results=("condition.json",))
VARIANTS = ("residual", "cross_attention", "none")
COHORT = {"subjects": 24, "seed": 31, "modality": "t2"}


def compare(run_dir: Path, steps: int) -> dict[str, Any]:
    """Train and judge every variant."""
    data = run_dir / "data"
    if not (data / "cases.csv").is_file():
        synthesise(data, healthy_only=True, **COHORT)  # type: ignore[arg-type]
    found = {name: judge(name, run_dir, steps) for name in VARIANTS}
    rows = [[name, *(row[key] for key in next(iter(found.values())))] for name, row in found.items()]
    say(table(["condition", *next(iter(found.values()))], rows))
    return {"steps": steps, "cohort": COHORT, "variants": found}


def judge(condition: str, run_dir: Path, steps: int) -> dict[str, float]:
    """Train one variant of the tiny preset and measure it."""
    config = load_config("tiny", [f"model.condition={condition}", f"train.max_steps={steps}", "train.workers=1"])
    learn, held_out = split_cases(find_cases(run_dir / "data" / "cases.csv"), config, None)
    cache, device = run_dir / "cache", torch.device("cpu")
    slices, validation = (healthy_slices(cases, config.data, cache) for cases in (learn, held_out))
    start = time.perf_counter()
    result = fit(config, slices, validation, run_dir / condition, device=device)
    seconds = time.perf_counter() - start
    network = Reconstructor(config)
    network.load_state_dict(result.weights)
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    predictor = Predictor(config, network, None, "", device)
    scores = auprc_by_kind(predictor, validation_cases(run_dir, "t2")[:6], every=3)
    return {"validation_loss": result.best_loss, **scores, "seconds": seconds}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--run", type=Path, default=Path("runs/condition"), metavar="RUN", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="of each training (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: compare(options.run, options.steps), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
