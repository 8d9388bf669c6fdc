"""Which objective, and which variance? DDPM's Table 2 in small, on the 8 x 8 digits that scikit-learn ships.

    python -m benchmarks.quality.digits --json benchmarks/results/digits.json

Half of the digits train each network (method `ddpm`, L_simple of its objective; with a learned variance the hybrid loss
of Nichol and Dhariwal 2021). Samples are judged by the Frechet distance to the other half in the hidden layer of a
classifier, as FID is in Inception's, and the bound by its value on the other half, in nats per pixel. Sampling takes 50
of 1000 steps, with the estimate of x_0 clipped to the range of images as Ho et al. do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from benchmarks.common import Benchmark, say, table
from maediff import diffusion
from maediff.config import Config, load_config
from maediff.diffusion import variational
from maediff.evaluation import Estimate
from maediff.methods.ddpm import DDPM

BENCHMARK = Benchmark(__file__, __doc__, page="docs/diffusion.md", results=("digits.json",))
OBJECTIVES = ("eps", "x0", "v", "mu")
VARIANCES = ("posterior", "beta", "learned")
SETTINGS = (
    "method=ddpm",
    "data.size=[8, 8]",
    "partition.window=4",
    "partition.stride=4",
    "partition.cell=4",
    "diffusion.schedule=linear",
    "diffusion.loss=simple",
    "diffusion.train_timesteps=[1, 1000]",
    "diffusion.test_timesteps=[1000]",
    "diffusion.sampler=ancestral",
    "model.channels=[16, 32]",
    "model.attention=[false, false]",
    "model.input_skip=false",
    "train.lr=2.0e-3",
    "train.lesion_weight=0",
)
BATCH, SAMPLES, SAMPLER_STEPS, HIDDEN, BOUND_TIMES = 64, 500, 50, 64, 20
Features = npt.NDArray[np.float64]


class Judge:
    """Frechet distance between sets of digits, in the hidden layer of a classifier of digits."""

    def __init__(self, images: Features, labels: npt.NDArray[np.int64]) -> None:
        self.classifier = MLPClassifier((HIDDEN,), max_iter=1000, random_state=0).fit(images, labels)

    def features(self, images: Features) -> Features:
        """Compute the hidden layer (N, 64) of flat images (N, 64)."""
        hidden: Features = np.maximum(images @ self.classifier.coefs_[0] + self.classifier.intercepts_[0], 0)
        return hidden

    def distance(self, images: Features, others: Features) -> float:
        """Compare two sets of images."""
        return frechet(self.features(images), self.features(others))


def frechet(first: Features, second: Features) -> float:
    """Frechet distance of the Gaussians fitted to two sets: ``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))``."""
    gap = first.mean(0) - second.mean(0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shared = np.linalg.eigvals(one @ two).real.clip(min=0)  # those of C C', whose roots sum to the trace of its root
    return float(gap @ gap + np.trace(one + two) - 2 * np.sqrt(shared).sum())


def halves() -> tuple[Tensor, Tensor, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split the digits at random: images (N, 1, 8, 8) in [-1, 1] and labels of both halves."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.tensor(digits.images[order] / 8 - 1, dtype=torch.float32)[:, None]
    labels, middle = digits.target[order], len(order) // 2
    return images[:middle], images[middle:], labels[:middle], labels[middle:]


def config_for(objective: str, *, learned: bool) -> Config:
    """Configure the network of an objective, with a variance that is learned or not."""
    more = ["diffusion.variance=learned", "diffusion.bound_weight=0.001"] if learned else []
    return load_config("quick", [*SETTINGS, f"diffusion.objective={objective}", *more])


def fit(config: Config, images: Tensor, steps: int, seed: int) -> DDPM:
    """Train a network on clean images; the last fifth of the steps lowers the learning rate to 0."""
    torch.manual_seed(seed)
    network = DDPM(config).train()
    optimizer = torch.optim.Adam(network.parameters(), config.train.lr)
    slope = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 5 * (1 - step / steps)))
    for _ in range(steps):
        clean = images[torch.randint(len(images), (BATCH,))]
        t = torch.randint(1, config.diffusion.timesteps + 1, (BATCH,))
        loss, _ = network.losses({"image": clean, "clean": clean, "noise": torch.randn_like(clean), "t": t})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        slope.step()
    return network.eval()


@torch.inference_mode()
def draw(network: DDPM, variance: str, seed: int) -> Tensor:
    """Sample digits from noise."""
    rng = torch.Generator().manual_seed(seed)
    shape = (SAMPLES, 1, 8, 8)

    def estimate(x: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        x0, share = network.estimate(x, t, None)
        return x0.clamp(-1, 1), share

    def noise(_step: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    times = diffusion.descend(network.kind.timesteps, SAMPLER_STEPS)
    return variational.sample(estimate, noise(0), network.abar, times, kind=variance, draw_noise=noise)


@torch.inference_mode()
def bound(network: DDPM, variance: str, images: Tensor) -> float:
    """Estimate the variational bound on unseen images, nats per pixel, at the same random timesteps for all networks.

    The prior's term is left out: it holds no parameter and is below 0.001.
    """
    rng = torch.Generator().manual_seed(0)
    abar = network.abar
    least = variational.step_variance("posterior", abar[2], abar[1]).float()
    terms = []
    for _ in range(BOUND_TIMES):
        t = torch.randint(1, network.kind.timesteps + 1, (len(images),), generator=rng)
        levels = diffusion.level(abar, t, images), diffusion.level(abar, t - 1, images)
        x_t = diffusion.add_noise(images, torch.randn(images.shape, generator=rng), levels[0])
        prediction, share, _ = network.predict(x_t, t, None)
        x0 = diffusion.x0_from(network.kind.objective, prediction, x_t, *levels).clamp(-1, 1)
        step = variational.step_variance(variance, *levels, share, least)
        terms.append(float(variational.bound_term(x_t, images, x0, levels, step).mean()))
    return network.kind.timesteps * float(np.mean(terms))


def measure(steps: int, seeds: int) -> Mapping[str, Any]:
    """Train and judge every objective with every variance."""
    train, unseen, labels, other_labels = halves()
    flat, flat_unseen = (part.flatten(1).double().numpy() for part in (train, unseen))
    judge = Judge(flat, labels)
    found: dict[str, dict[str, list[float]]] = {}
    for objective in OBJECTIVES:
        for seed in range(seeds):
            for learned in (False, True):
                start = time.perf_counter()
                network = fit(config_for(objective, learned=learned), train, steps, seed)
                for variance in ["learned"] if learned else ["posterior", "beta"]:
                    samples = draw(network, variance, seed).flatten(1).double().numpy()
                    row = found.setdefault(f"{objective} {variance}", {"distance": [], "bound": []})
                    row["distance"].append(judge.distance(samples, flat_unseen))
                    row["bound"].append(bound(network, variance, unseen))
                say(f"{objective}, seed {seed}, learned {learned}: {time.perf_counter() - start:.0f} s")
    names = [f"{objective} {variance}" for objective in OBJECTIVES for variance in VARIANCES]
    rows = {name: {metric: _spread(values) for metric, values in found[name].items()} for name in names}
    floor = judge.distance(flat, flat_unseen)
    say(table(["objective, variance", "Frechet distance", "bound"], [[n, *rows[n].values()] for n in names]))
    say(f"real digits against real digits: {floor:.3f}")
    accuracy = float(judge.classifier.score(flat_unseen, other_labels))
    return {"steps": steps, "seeds": seeds, "rows": rows, "real_distance": floor, "judge_accuracy": accuracy}


def _spread(values: Sequence[float]) -> Estimate:
    """Mean over seeds; the ends are the lowest and the highest."""
    return Estimate(float(np.mean(values)), min(values), max(values), len(values))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--steps", type=int, default=600, help="of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each objective (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: measure(options.steps, options.seeds), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
