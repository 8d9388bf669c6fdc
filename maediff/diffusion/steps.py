"""Diffusion as pure functions of a schedule table and of noise levels.

A schedule is the tensor `abar` of length T + 1 with `abar[0] = 1` and `abar[t]` the share of signal variance left
after t steps, so timesteps run from 1 (nearly clean) to T (nearly noise) and 0 is the image itself. Functions take
`abar` values that broadcast against images, see :func:`level`. Sources: Ho et al. 2020 (DDPM), Song et al. 2021
(DDIM), Salimans and Ho 2022 (v), Nichol and Dhariwal 2021 (cosine schedule).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t, t) -> estimate of x_0."""


def schedule(name: str, timesteps: int) -> Tensor:
    """Tabulate `abar` for a named schedule.

    Args:
        name: "linear" (betas 1e-4 to 0.02, DDPM), "scaled_linear" (square roots of betas linear from 0.00085 to
            0.012, latent diffusion) or "cosine" (Nichol and Dhariwal, betas at most 0.999).
        timesteps: Length T of the chain. As in the papers, betas do not rescale with T.

    Returns:
        (T + 1,) float64, decreasing from 1.

    Raises:
        ValueError: Unknown name.
    """
    if name == "linear":
        betas = torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)
    elif name == "scaled_linear":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, timesteps, dtype=torch.float64) ** 2
    elif name == "cosine":
        position = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        curve = torch.cos((position + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"schedule {name!r} is unknown; use 'linear', 'scaled_linear' or 'cosine'")
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])


def level(abar: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Look up `abar[t]` for a batch, shaped (B, 1, ...) and typed to broadcast against `like`.

    Kept in float32 at least, so that a low-precision image does not coarsen the schedule.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    value = abar[t.to(abar.device)].to(device=like.device, dtype=dtype)
    return value.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, abar_t: Tensor) -> Tensor:
    """Sample q(x_t | x_0): ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`` (DDPM eq. 4)."""
    return abar_t.sqrt() * x0 + (1 - abar_t).sqrt() * noise


def partially_noise(x0: Tensor, noise: Tensor, mask: Tensor, abar_t: Tensor) -> Tensor:
    """Noise inside the patch only: ``x~_t = M x_t + (1 - M) x_0`` (MAEDiff, pDDPM)."""
    return mask * add_noise(x0, noise, abar_t) + (1 - mask) * x0


def posterior(x_t: Tensor, x0: Tensor, abar_t: Tensor, abar_s: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of q(x_s | x_t, x_0) for any earlier s < t (DDPM eqs. 6 and 7 at s = t - 1).

    With ``alpha = abar_t / abar_s`` and ``beta = 1 - alpha``:
    ``mean = sqrt(alpha) (1 - abar_s) / (1 - abar_t) x_t + sqrt(abar_s) beta / (1 - abar_t) x_0``,
    ``variance = (1 - abar_s) / (1 - abar_t) beta``.
    """
    alpha = abar_t / abar_s
    beta = 1 - alpha
    rest = 1 - abar_t
    mean = alpha.sqrt() * (1 - abar_s) / rest * x_t + abar_s.sqrt() * beta / rest * x0
    return mean, (1 - abar_s) / rest * beta


def eps_from_x0(x_t: Tensor, x0: Tensor, abar_t: Tensor) -> Tensor:
    """Compute the noise that leads from `x0` to `x_t`: ``(x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)``."""
    return (x_t - abar_t.sqrt() * x0) / (1 - abar_t).sqrt()


def score_from_x0(x_t: Tensor, x0: Tensor, abar_t: Tensor) -> Tensor:
    """Compute the gradient of log q(x_t | x_0), the score: ``-eps / sqrt(1 - abar_t)`` (Song and Ermon 2019)."""
    return -eps_from_x0(x_t, x0, abar_t) / (1 - abar_t).sqrt()


def target(objective: str, x_t: Tensor, x0: Tensor, abar_t: Tensor, abar_s: Tensor) -> Tensor:
    """Express `x0` as what a network with the given objective predicts.

    Args:
        objective: "eps"; "x0"; "v", ``sqrt(abar_t) eps - sqrt(1 - abar_t) x_0``; or "mu", the posterior mean.
        x_t: Noised image.
        x0: Image, or an estimate of it.
        abar_t: Level of `x_t`.
        abar_s: Level of the step before, used by "mu" only.

    Raises:
        ValueError: Unknown objective.
    """
    if objective == "x0":
        return x0
    if objective == "eps":
        return eps_from_x0(x_t, x0, abar_t)
    if objective == "v":
        return abar_t.sqrt() * eps_from_x0(x_t, x0, abar_t) - (1 - abar_t).sqrt() * x0
    if objective == "mu":
        return posterior(x_t, x0, abar_t, abar_s)[0]
    raise ValueError(f"objective {objective!r} is unknown; use 'eps', 'x0', 'v' or 'mu'")


def x0_from(objective: str, prediction: Tensor, x_t: Tensor, abar_t: Tensor, abar_s: Tensor) -> Tensor:
    """Turn a network's prediction into its estimate of x_0; the inverse of :func:`target`.

    Raises:
        ValueError: Unknown objective.
    """
    if objective == "x0":
        return prediction
    if objective == "eps":
        return (x_t - (1 - abar_t).sqrt() * prediction) / abar_t.sqrt()
    if objective == "v":
        return abar_t.sqrt() * x_t - (1 - abar_t).sqrt() * prediction
    if objective == "mu":
        alpha = abar_t / abar_s
        rest = 1 - abar_t
        return (prediction - alpha.sqrt() * (1 - abar_s) / rest * x_t) * rest / (abar_s.sqrt() * (1 - alpha))
    raise ValueError(f"objective {objective!r} is unknown; use 'eps', 'x0', 'v' or 'mu'")


def patch_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the pixels of the patch, with equal weight for each image.

    Args:
        values: (B, C, H, W).
        mask: (B, 1, H, W), 1 inside the patch.

    Returns:
        Scalar.
    """
    mask = mask.expand_as(values)
    return ((values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)).mean()


def simple_loss(prediction: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Compute L_simple (DDPM eq. 14) within the patch: squared error between prediction and :func:`target`."""
    return patch_mean((prediction - wanted) ** 2, mask)


def x0_loss(estimate: Tensor, x0: Tensor, mask: Tensor, norm: str) -> Tensor:
    """Compute the distance of the x_0 estimate within the patch; `norm` is "l1" (pDDPM) or "l2"."""
    difference = estimate - x0
    return patch_mean(difference.abs() if norm == "l1" else difference**2, mask)


def ddim_step(x_t: Tensor, x0: Tensor, abar_t: Tensor, abar_s: Tensor) -> Tensor:
    """Take a deterministic step from t to any earlier s (DDIM eq. 12, eta = 0).

    ``x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps`` with the noise that leads from `x0` to `x_t`.
    """
    return add_noise(x0, eps_from_x0(x_t, x0, abar_t), abar_s)


def ancestral_step(x_t: Tensor, x0: Tensor, abar_t: Tensor, abar_s: Tensor, noise: Tensor) -> Tensor:
    """Take a random step from t to any earlier s (DDPM Algorithm 2, variance beta~): posterior mean plus noise."""
    mean, variance = posterior(x_t, x0, abar_t, abar_s)
    return mean + variance.sqrt() * noise


def descend(start: int, steps: int) -> list[int]:
    """Space timesteps evenly from `start` down to 0, both included, in at most `steps` steps.

    Example:
        >>> descend(500, 4)
        [500, 375, 250, 125, 0]
    """
    times = torch.linspace(start, 0, min(steps, start) + 1, dtype=torch.float64).round().long()
    return [int(t) for t in times]


def sample(
    denoise: Denoiser,
    x_t: Tensor,
    abar: Tensor,
    times: Sequence[int],
    draw_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Walk down a list of timesteps, from a partially noised image to its estimate of x_0.

    Args:
        denoise: Estimates x_0 from (x_t, t).
        x_t: Image at level ``times[0]``.
        abar: Schedule table.
        times: Decreasing timesteps that end in 0; two entries give the single-step estimate.
        draw_noise: Returns fresh noise for the ancestral step to s; None takes DDIM steps.

    Returns:
        Estimate of x_0, of the shape of `x_t`.
    """
    for t, s in pairwise(times):
        x0 = denoise(x_t, t)
        if s == 0:
            return x0
        abar_t, abar_s = (level(abar, torch.tensor([k]), x_t) for k in (t, s))
        if draw_noise is None:
            x_t = ddim_step(x_t, x0, abar_t, abar_s)
        else:
            x_t = ancestral_step(x_t, x0, abar_t, abar_s, draw_noise(s))
    raise ValueError(f"timesteps {list(times)} must have two entries at least and end in 0")


def langevin(
    denoise: Denoiser,
    x_t: Tensor,
    abar: Tensor,
    times: Sequence[int],
    draw_noise: Callable[[int, int], Tensor],
    *,
    steps: int = 10,
    step_size: float = 0.1,
) -> Tensor:
    """Walk down the noise levels by annealed Langevin dynamics, the score view (Song and Ermon 2019, Algorithm 1).

    In their scaling ``y = x_t / sqrt(abar_t) = x_0 + sigma_t eps`` with ``sigma_t^2 = (1 - abar_t) / abar_t`` and score
    ``s(y) = (x^_0 - y) / sigma_t^2``, each level takes `steps` times ``y <- y + alpha / 2 s(y) + sqrt(alpha) z`` with
    ``alpha = step_size sigma_t^2``. Their noise stays in the last sample; here the last estimate of x_0 is returned, as
    Jolicoeur-Martineau et al. 2020 advise.

    Args:
        denoise: Estimates x_0 from (x_t, t).
        x_t: Image at level ``times[0]``.
        abar: Schedule table.
        times: Decreasing timesteps, each at least 1; a final 0 is ignored.
        draw_noise: Returns fresh noise for (t, step).
        steps: Langevin steps per level.
        step_size: alpha as a share of the noise's variance.

    Returns:
        Estimate of x_0, of the shape of `x_t`.
    """
    y = x_t / level(abar, torch.tensor(times[:1]), x_t).sqrt()
    estimate = y
    for t in (t for t in times if t > 0):
        abar_t = level(abar, torch.tensor([t]), x_t)
        size = step_size * (1 - abar_t) / abar_t
        for step in range(steps):
            estimate = denoise(abar_t.sqrt() * y, t)
            # the score of y is that of x_t times sqrt(abar_t)
            score = abar_t.sqrt() * score_from_x0(abar_t.sqrt() * y, estimate, abar_t)
            y = y + size / 2 * score + size.sqrt() * draw_noise(t, step)
        estimate = denoise(abar_t.sqrt() * y, t)
    return estimate
