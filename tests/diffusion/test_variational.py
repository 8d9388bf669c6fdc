"""Variances, the bound and Langevin sampling, against diffusers, torch.distributions and closed forms."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maediff import diffusion
from maediff.diffusion import variational

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDPMScheduler

T = 1000
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [2, 40, 500, 999])
@pytest.mark.parametrize("name", BETAS)
def test_variances_are_those_of_diffusers(name, t):
    abar = diffusion.schedule(name, T)
    wanted = DDPMScheduler(num_train_timesteps=T, clip_sample=False, **BETAS[name])
    share = torch.linspace(-1, 1, 5, dtype=torch.float64)
    levels = abar[t], abar[t - 1]
    for kind, theirs in (("posterior", "fixed_small"), ("beta", "fixed_large")):
        found = variational.step_variance(kind, *levels)
        assert float(found) == pytest.approx(float(wanted._get_variance(t - 1, variance_type=theirs)), rel=2e-3)
    found = variational.step_variance("learned", *levels, share).log()
    log_variance = wanted._get_variance(t - 1, predicted_variance=share, variance_type="learned_range")
    torch.testing.assert_close(found, log_variance.double(), rtol=2e-3, atol=2e-3)


@given(st.floats(0.01, 0.98), st.floats(0.02, 0.98), st.floats(-1, 1))
def test_a_learned_variance_lies_between_the_fixed_ones(abar_t, part, share):
    levels = [torch.tensor(value, dtype=torch.float64) for value in (abar_t, abar_t + (1 - abar_t) * part)]
    low, high = (float(variational.step_variance(kind, *levels)) for kind in ("posterior", "beta"))
    found = float(variational.step_variance("learned", *levels, torch.tensor(share, dtype=torch.float64)))
    assert low * (1 - 1e-9) <= found <= high * (1 + 1e-9)


def test_an_unknown_variance_is_refused():
    one = torch.tensor(0.5)
    for kind in ("free", "learned"):
        with pytest.raises(ValueError, match="is unknown or lacks a share"):
            variational.step_variance(kind, one, one)


def test_kl_is_that_of_torch():
    mean, other, scale, wide = normal(6), normal(6, seed=1), normal(6, seed=2).exp(), normal(6, seed=3).exp()
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, scale.sqrt()), torch.distributions.Normal(other, wide.sqrt())
    )
    torch.testing.assert_close(variational.gaussian_kl(mean, scale, other, wide), wanted)


@pytest.mark.parametrize("t", [2, 300, 999])
@pytest.mark.parametrize("kind", ["posterior", "beta"])
def test_the_bound_is_a_weighted_l_simple(kind, t):
    """DDPM eq. 12: up to a constant without parameters, L_{t-1} is bound_weight times the squared error of eps."""
    abar = diffusion.schedule("linear", T)
    levels = abar[t], abar[t - 1]
    x0, eps, wrong = (normal(1, 1, 4, 4, seed=k) for k in range(3))
    x_t = diffusion.add_noise(x0, eps, levels[0])
    variance = variational.step_variance(kind, *levels)
    terms = [
        variational.bound_term(x_t, x0, diffusion.x0_from("eps", guess, x_t, *levels), levels, variance)
        for guess in (wrong, eps)
    ]
    weight = variational.bound_weight(*levels, variance)
    torch.testing.assert_close(terms[0] - terms[1], weight * (wrong - eps) ** 2, rtol=1e-6, atol=1e-9)


def test_a_perfect_network_pays_nothing_for_steps_with_the_posterior_variance():
    abar = diffusion.schedule("cosine", T)
    x0 = normal(3, 1, 4, 4)
    t = torch.tensor([2, 400, 1000])
    levels = diffusion.level(abar, t, x0), diffusion.level(abar, t - 1, x0)
    x_t = diffusion.add_noise(x0, normal(3, 1, 4, 4, seed=1), levels[0])
    for kind, free in (("posterior", True), ("beta", False)):
        term = variational.bound_term(x_t, x0, x0, levels, variational.step_variance(kind, *levels))
        assert bool((term.abs() < 1e-9).all()) == free
        assert (term > -1e-9).all()


def test_the_last_term_is_the_density_of_the_image():
    abar = diffusion.schedule("linear", T)
    x0, guess, x_t = (normal(1, 1, 4, 4, seed=k) for k in range(3))
    variance = torch.tensor(0.3, dtype=torch.float64)
    found = variational.bound_term(x_t, x0, guess, (abar[1], abar[0]), variance)
    torch.testing.assert_close(found, -torch.distributions.Normal(guess, variance.sqrt()).log_prob(x0))


def test_the_bound_bounds_the_likelihood():
    """One number, data N(0, 1), exact denoiser: the whole bound is above -log p(x0) and, with many steps, close."""
    abar = diffusion.schedule("linear", T)
    x0 = normal(2000)
    total = 0.5 * (abar[-1] * x0**2 + (1 - abar[-1]) - 1 - (1 - abar[-1]).log())  # KL(q(x_T | x0) || N(0, 1))
    least = variational.step_variance("posterior", abar[2], abar[1])
    for t in range(1, T + 1):
        levels = abar[t], abar[t - 1]
        x_t = diffusion.add_noise(x0, normal(2000, seed=t), abar[t])
        variance = variational.step_variance("beta", *levels, least=least)
        total = total + variational.bound_term(x_t, x0, abar[t].sqrt() * x_t, levels, variance)
    true = -torch.distributions.Normal(0.0, 1.0).log_prob(x0).mean()
    assert float(true) - 0.02 < float(total.mean()) < float(true) + 0.1


@pytest.mark.parametrize("kind", ["posterior", "beta", "learned"])
def test_sampling_a_gaussian_returns_its_moments(kind):
    """Data N(0.5, 0.6^2) and the exact posterior mean as denoiser."""
    abar = diffusion.schedule("linear", T)
    mean, spread = 0.5, 0.6

    def estimate(x, t):
        a = abar[t]
        gain = a.sqrt() * spread**2 / (a * spread**2 + 1 - a)
        return mean + gain * (x - a.sqrt() * mean), torch.zeros_like(x)

    rng = torch.Generator().manual_seed(0)
    start = torch.randn(4000, generator=rng, dtype=torch.float64)

    def draw(step):
        return torch.randn(4000, generator=rng, dtype=torch.float64)

    found = variational.sample(estimate, start, abar, diffusion.descend(T, T), kind=kind, draw_noise=draw)
    assert float(found.mean()) == pytest.approx(mean, abs=0.04)
    assert float(found.std()) == pytest.approx(spread, abs=0.04)


def test_posterior_sampling_is_the_plain_sampler_s():
    abar = diffusion.schedule("cosine", T)
    x_t, fields = normal(1, 1, 3, 3), {s: normal(1, 1, 3, 3, seed=s) for s in range(T)}
    times = diffusion.descend(600, 7)
    plain = diffusion.sample(lambda x, _: 0.5 * x, x_t, abar, times, fields.__getitem__)
    found = variational.sample(
        lambda x, _: (0.5 * x, None), x_t, abar, times, kind="posterior", draw_noise=fields.__getitem__
    )
    torch.testing.assert_close(found, plain)
    with pytest.raises(ValueError, match="end in 0"):
        variational.sample(lambda x, _: (x, None), x_t, abar, [5, 3], kind="beta", draw_noise=fields.__getitem__)


# The score view


def test_the_score_function_is_the_gradient_of_the_log_density():
    abar_t = torch.tensor(0.4, dtype=torch.float64)
    x0, x_t = normal(5), normal(5, seed=3).requires_grad_()
    density = torch.distributions.Normal(abar_t.sqrt() * x0, (1 - abar_t).sqrt()).log_prob(x_t).sum()
    (score,) = torch.autograd.grad(density, x_t)
    torch.testing.assert_close(diffusion.score_from_x0(x_t.detach(), x0, abar_t), score)


def test_langevin_has_its_stationary_distribution():
    """One noise level, data N(m, v): y is a Gaussian chain whose stationary variance is V / (1 - alpha / (4 V))."""
    abar = diffusion.schedule("linear", T)
    mean, var = 0.3, 0.25
    t = 400
    noise = float((1 - abar[t]) / abar[t])
    seen = []

    def denoise(x, _):
        y = x / abar[t].sqrt()
        seen.append(y)
        return mean + var / (var + noise) * (y - mean)

    rng = torch.Generator().manual_seed(0)
    diffusion.langevin(
        denoise,
        torch.zeros(5000, dtype=torch.float64),
        abar,
        [t, 0],
        lambda *_: torch.randn(5000, generator=rng, dtype=torch.float64),
        steps=80,
        step_size=0.3,
    )
    total, alpha = var + noise, 0.3 * noise
    assert len(seen) == 81
    assert float(seen[-1].mean()) == pytest.approx(mean, abs=0.06)
    assert float(seen[-1].var()) == pytest.approx(total / (1 - alpha / (4 * total)), rel=0.06)


def test_annealed_langevin_samples_two_modes():
    """Two points -1 and 1: annealing splits the samples between them, and the last denoising lands on them."""
    abar = diffusion.schedule("linear", T)

    def denoise(x, t):
        return torch.tanh(abar[t].sqrt() * x / (1 - abar[t]))

    rng = torch.Generator().manual_seed(0)

    def draw(*_):
        return torch.randn(1000, generator=rng, dtype=torch.float64)

    found = diffusion.langevin(denoise, draw(), abar, diffusion.descend(T, 40), draw, steps=10, step_size=0.2)
    assert float((found.abs() - 1).abs().max()) < 0.05
    assert 0.4 < float((found > 0).double().mean()) < 0.6
