"""Variance of the reverse steps and the variational bound, as pure functions.

The reverse step p(x_s | x_t) is a Gaussian; its mean is the posterior mean at the estimate of x_0, and its variance is
fixed at beta, fixed at beta~, or learned between the two. Sources: Ho et al. 2020 (DDPM, eqs. 5 to 12 and Table 2),
Nichol and Dhariwal 2021 (learned variance, hybrid loss). Our images are real numbers, so the last term of the bound is
the density of x_0, where the papers integrate it over the 256 grey values [ours].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from maediff.diffusion.steps import level, posterior

LEAST_VARIANCE = 1e-20
"""Smallest beta~; it is 0 for the step to the image itself."""

Estimator = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
"""(x_t, t) -> estimate of x_0 and, if the variance is learned, where it lies between beta~ (-1) and beta (1)."""


def step_variance(
    kind: str, abar_t: Tensor, abar_s: Tensor, share: Tensor | None = None, least: float | Tensor = LEAST_VARIANCE
) -> Tensor:
    """Compute the variance of the reverse step from t to an earlier s.

    Args:
        kind: "beta", ``1 - abar_t / abar_s``; "posterior", ``beta~ = (1 - abar_s) / (1 - abar_t) beta``; or "learned",
            ``exp(v log beta + (1 - v) log beta~)`` with ``v = (share + 1) / 2`` (Nichol and Dhariwal eq. 15).
        abar_t: Level of the start of the step.
        abar_s: Level of its end.
        share: The network's output for "learned", -1 to 1 by convention, not clipped.
        least: Lower limit of beta~; training uses the value of the second step (Nichol and Dhariwal).

    Returns:
        Variance, broadcast over its arguments.

    Raises:
        ValueError: Unknown kind, or "learned" without a share.
    """
    beta = 1 - abar_t / abar_s
    small = ((1 - abar_s) / (1 - abar_t) * beta).clamp(min=least)
    if kind == "beta":
        return beta
    if kind == "posterior":
        return small
    if kind == "learned" and share is not None:
        v = (share + 1) / 2
        return torch.exp(v * beta.log() + (1 - v) * small.log())
    raise ValueError(f"variance {kind!r} is unknown or lacks a share; use 'beta', 'posterior', or 'learned' with one")


def gaussian_kl(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """Compute the divergence KL(N(mean, variance) || N(other_mean, other_variance)), nats, element by element."""
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - other_mean) ** 2 / other_variance)


def bound_term(x_t: Tensor, x0: Tensor, estimate: Tensor, levels: tuple[Tensor, Tensor], variance: Tensor) -> Tensor:
    """Compute the term of the variational bound for the step from t to s, nats per pixel (DDPM eq. 5).

    ``L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t))``; for the step to the image itself (``abar_s = 1``)
    ``L_0 = -log p(x_0 | x_1)``.

    Args:
        x_t: Noised image.
        x0: Image.
        estimate: The network's estimate of it.
        levels: ``abar_t`` and ``abar_s``.
        variance: Of the reverse step, see :func:`step_variance`.

    Returns:
        The shape of `x_t`.
    """
    abar_t, abar_s = levels
    true_mean, true_variance = posterior(x_t, x0, abar_t, abar_s)
    mean, _ = posterior(x_t, estimate, abar_t, abar_s)
    divergence = gaussian_kl(true_mean, true_variance.clamp(min=LEAST_VARIANCE), mean, variance)
    likelihood = 0.5 * (math.log(2 * math.pi) + variance.log() + (x0 - mean) ** 2 / variance)
    return torch.where(abar_s < 1, divergence, likelihood)


def bound_weight(abar_t: Tensor, abar_s: Tensor, variance: Tensor) -> Tensor:
    """Compute the weight of ``(eps - eps_theta)^2`` in the bound (DDPM eq. 12).

    It is ``beta^2 / (2 sigma^2 alpha (1 - abar_t))``; L_simple sets it to 1.
    """
    alpha = abar_t / abar_s
    return (1 - alpha) ** 2 / (2 * variance * alpha * (1 - abar_t))


def sample(
    estimate: Estimator,
    x_t: Tensor,
    abar: Tensor,
    times: Sequence[int],
    *,
    kind: str,
    draw_noise: Callable[[int], Tensor],
) -> Tensor:
    """Walk down a list of timesteps by ancestral steps of any variance (DDPM Algorithm 2).

    Args:
        estimate: Estimates x_0, and the share of a learned variance, from (x_t, t).
        x_t: Image at level ``times[0]``.
        abar: Schedule table.
        times: Decreasing timesteps that end in 0.
        kind: Variance, see :func:`step_variance`.
        draw_noise: Returns fresh noise for the step to s.

    Returns:
        Estimate of x_0, of the shape of `x_t`.

    Raises:
        ValueError: The timesteps do not end in 0.
    """
    for t, s in pairwise(times):
        x0, share = estimate(x_t, t)
        if s == 0:
            return x0
        abar_t, abar_s = (level(abar, torch.tensor([k]), x_t) for k in (t, s))
        mean, _ = posterior(x_t, x0, abar_t, abar_s)
        x_t = mean + step_variance(kind, abar_t, abar_s, share).sqrt() * draw_noise(s)
    raise ValueError(f"timesteps {list(times)} must have two entries at least and end in 0")
