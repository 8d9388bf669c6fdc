"""Diffusion identities, against diffusers and against closed forms computed another way."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maediff import diffusion

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDIMScheduler, DDPMScheduler

SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
OBJECTIVES = ("eps", "x0", "v", "mu")
T = 1000


def oracle(kind, name, **changes):
    return kind(num_train_timesteps=T, clip_sample=False, **SCHEDULES[name], **changes)


def images(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at(abar, t):
    return abar[t].reshape(1, 1, 1, 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_diffusers(name):
    abar = diffusion.schedule(name, T)
    assert abar.dtype == torch.float64
    assert abar.shape == (T + 1,)
    assert abar[0] == 1
    assert (abar.diff() < 0).all()
    assert abar[-1] > 0
    wanted = oracle(DDPMScheduler, name)
    betas = 1 - abar[1:] / abar[:-1]
    torch.testing.assert_close(betas, wanted.betas.double(), rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(abar[1:], wanted.alphas_cumprod.double(), rtol=2e-3, atol=1e-7)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule 'sigmoid' is unknown"):
        diffusion.schedule("sigmoid", 10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noising_is_that_of_diffusers(name):
    x0, noise = images(4, 1, 5, 5), images(4, 1, 5, 5, seed=1)
    t = torch.tensor([1, 10, 500, T])
    x_t = diffusion.add_noise(x0, noise, diffusion.level(diffusion.schedule(name, T), t, x0))
    torch.testing.assert_close(x_t, oracle(DDPMScheduler, name).add_noise(x0, noise, t - 1), rtol=1e-3, atol=1e-3)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 200))
def test_the_chain_has_the_closed_form_s_mean_and_variance(name, t):
    abar = diffusion.schedule(name, T)
    mean, variance = 1.0, 0.0  # of x_t given x_0 = 1, one step after another
    for s in range(1, t + 1):
        alpha = float(abar[s] / abar[s - 1])
        mean, variance = mean * alpha**0.5, alpha * variance + (1 - alpha)
    assert mean == pytest.approx(float(abar[t].sqrt()), rel=1e-9)
    assert variance == pytest.approx(float(1 - abar[t]), rel=1e-9, abs=1e-12)


def test_partial_noise_stays_inside_the_patch():
    x0, noise = images(2, 1, 6, 6), images(2, 1, 6, 6, seed=1)
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    mask[:, :, 1:4, 2:5] = 1
    abar_t = torch.tensor(0.3, dtype=torch.float64)
    x_t = diffusion.partially_noise(x0, noise, mask, abar_t)
    assert torch.equal(x_t[mask == 0], x0[mask == 0])
    torch.testing.assert_close(x_t[mask == 1], diffusion.add_noise(x0, noise, abar_t)[mask == 1])


# Posterior and steps


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [2, 50, 700, T])
def test_posterior_variance_is_that_of_diffusers(name, t):
    abar = diffusion.schedule(name, T)
    _, variance = diffusion.posterior(images(1), images(1), abar[t], abar[t - 1])
    wanted = oracle(DDPMScheduler, name)._get_variance(t - 1)
    assert float(variance) == pytest.approx(float(wanted), rel=2e-3)


@given(st.floats(0.01, 0.98), st.floats(0.02, 0.98))
def test_posterior_is_bayes_rule(abar_t, share):
    """q(x_s | x_t, x_0) from the product of two Gaussians, in numpy."""
    abar_s = abar_t + (1 - abar_t) * share
    alpha = abar_t / abar_s
    x0, x_t = 0.7, -0.4
    precision = 1 / (1 - abar_s) + alpha / (1 - alpha)
    mean = (np.sqrt(abar_s) * x0 / (1 - abar_s) + np.sqrt(alpha) * x_t / (1 - alpha)) / precision
    found, variance = diffusion.posterior(
        *(torch.tensor(value, dtype=torch.float64) for value in (x_t, x0, abar_t, abar_s))
    )
    assert float(variance) == pytest.approx(1 / precision, rel=1e-6)
    assert float(found) == pytest.approx(mean, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("t", [2, 300, 999])
def test_posterior_mean_has_ddpm_s_second_form(t):
    abar = diffusion.schedule("linear", T)
    x0, eps = images(1, 1, 4, 4), images(1, 1, 4, 4, seed=1)
    x_t = diffusion.add_noise(x0, eps, abar[t])
    beta = 1 - abar[t] / abar[t - 1]
    second = (x_t - beta / (1 - abar[t]).sqrt() * eps) / (1 - beta).sqrt()
    torch.testing.assert_close(diffusion.posterior(x_t, x0, abar[t], abar[t - 1])[0], second)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [2, 400, 900])
def test_ancestral_step_is_ddpm_s(name, t):
    """Same mean and, by the difference of two noises, same spread as diffusers' step."""
    abar = diffusion.schedule(name, T)
    x_t, eps = images(1, 1, 4, 4, seed=2), images(1, 1, 4, 4, seed=1)
    x0 = diffusion.x0_from("eps", eps, x_t, abar[t], abar[t - 1])
    scheduler = oracle(DDPMScheduler, name)
    step = scheduler.step(eps, t - 1, x_t, generator=torch.Generator().manual_seed(5)).prev_sample
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(5), dtype=x_t.dtype)
    found = diffusion.ancestral_step(x_t, x0, abar[t], abar[t - 1], noise)
    torch.testing.assert_close(found, step, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [10, 50, 200])
def test_ddim_step_is_that_of_diffusers(name, n):
    abar = diffusion.schedule(name, T)
    scheduler = oracle(DDIMScheduler, name, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(n)
    x_t, eps = images(1, 1, 4, 4, seed=2), images(1, 1, 4, 4, seed=1)
    for step in (1, n // 2, n - 1):
        t = int(scheduler.timesteps[step])
        s = t - T // n
        x0 = diffusion.x0_from("eps", eps, x_t, abar[t + 1], abar[t])
        found = diffusion.ddim_step(x_t, x0, abar[t + 1], abar[s + 1])
        wanted = scheduler.step(eps, t, x_t, eta=0.0).prev_sample
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


# Objectives


@pytest.mark.parametrize("t", [1, 2, 37, 500, 999])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_objectives_convert_there_and_back(name, objective, t):
    abar = diffusion.schedule(name, T)
    x0, eps = images(2, 1, 4, 4), images(2, 1, 4, 4, seed=1)
    x_t = diffusion.add_noise(x0, eps, abar[t])
    wanted = diffusion.target(objective, x_t, x0, abar[t], abar[t - 1])
    back = diffusion.x0_from(objective, wanted, x_t, abar[t], abar[t - 1])
    torch.testing.assert_close(back, x0, rtol=1e-7, atol=1e-7)


def test_targets_are_what_their_names_say():
    abar = diffusion.schedule("cosine", T)
    x0, eps = images(1, 1, 4, 4), images(1, 1, 4, 4, seed=1)
    x_t = diffusion.add_noise(x0, eps, abar[300])
    found = {name: diffusion.target(name, x_t, x0, abar[300], abar[299]) for name in OBJECTIVES}
    torch.testing.assert_close(found["eps"], eps)
    torch.testing.assert_close(found["x0"], x0)
    torch.testing.assert_close(found["mu"], diffusion.posterior(x_t, x0, abar[300], abar[299])[0])
    velocity = oracle(DDPMScheduler, "cosine").get_velocity(x0, eps, torch.tensor([299]))
    torch.testing.assert_close(found["v"], velocity, rtol=1e-3, atol=1e-3)


def test_score_is_the_gradient_of_the_log_density():
    """-eps / sqrt(1 - abar) equals d/dx log N(x; sqrt(abar) x0, 1 - abar), by autograd."""
    abar_t = torch.tensor(0.4, dtype=torch.float64)
    x0 = images(5)
    x_t = images(5, seed=3).requires_grad_()
    density = torch.distributions.Normal(abar_t.sqrt() * x0, (1 - abar_t).sqrt())
    (score,) = torch.autograd.grad(density.log_prob(x_t).sum(), x_t)
    torch.testing.assert_close(score, -diffusion.eps_from_x0(x_t.detach(), x0, abar_t) / (1 - abar_t).sqrt())


def test_an_unknown_objective_is_refused():
    one = torch.ones(1)
    for convert in (diffusion.target, diffusion.x0_from):
        with pytest.raises(ValueError, match="objective 'score' is unknown"):
            convert("score", one, one, one, one)


# Losses


def test_losses_see_the_patch_alone():
    estimate, x0 = images(3, 1, 6, 6), images(3, 1, 6, 6, seed=1)
    mask = torch.zeros(3, 1, 6, 6, dtype=torch.float64)
    mask[0, :, :2, :2], mask[1, :, 2:, 2:], mask[2, :, 0, 0] = 1, 1, 1
    changed = torch.where(mask == 1, estimate, 1e9)
    for loss in (
        lambda e: diffusion.simple_loss(e, x0, mask),
        lambda e: diffusion.x0_loss(e, x0, mask, "l1"),
        lambda e: diffusion.x0_loss(e, x0, mask, "l2"),
    ):
        assert float(loss(changed)) == float(loss(estimate))
        leaf = changed.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        assert (gradient[mask == 0] == 0).all()
        assert (gradient[mask == 1] != 0).all()


def test_each_image_counts_the_same_whatever_its_patch():
    difference = torch.stack([torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), 3.0)])
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, 0, 0], mask[1] = 1, 1
    assert float(diffusion.x0_loss(difference, torch.zeros(2, 1, 4, 4), mask, "l1")) == 2.5
    assert float(diffusion.x0_loss(difference, torch.zeros(2, 1, 4, 4), mask, "l2")) == 6.5
    assert float(diffusion.patch_mean(difference, torch.zeros(2, 1, 4, 4))) == 0  # an empty patch is no division by 0


# Precision and sampling


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coarse_image_does_not_coarsen_the_schedule(dtype):
    abar = diffusion.schedule("cosine", T)
    x0 = images(2, 1, 4, 4).to(dtype)
    value = diffusion.level(abar, torch.tensor([3, 700]), x0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.flatten().double(), abar[[3, 700]], rtol=1e-6, atol=1e-7)
    assert diffusion.add_noise(x0, x0, value).dtype == torch.float32
    assert abar.dtype == torch.float64
    walked = diffusion.sample(lambda x, _: x, x0, abar, [2, 1, 0])  # in bf16 abar[1] and abar[2] would both be 1
    assert torch.isfinite(walked).all()


def test_level_takes_one_step_an_image():
    abar = diffusion.schedule("linear", T)
    value = diffusion.level(abar, torch.tensor([0, 5]), torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert value.shape == (2, 1, 1, 1)
    assert value.flatten().tolist() == [1, float(abar[5])]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_true_noise_at_every_ddim_step_leaves_nothing(name, steps):
    """x0 = 0: given the noise that is truly in x_t, every step keeps exactly its share of it."""
    abar = diffusion.schedule(name, T)
    eps = images(1, 1, 4, 4)
    times = diffusion.descend(T, steps)
    assert len(times) == steps + 1
    x_t = diffusion.add_noise(torch.zeros_like(eps), eps, at(abar, T))
    for t, s in pairwise(times):
        x0 = diffusion.x0_from("eps", eps, x_t, at(abar, t), at(abar, t - 1))
        x_t = diffusion.ddim_step(x_t, x0, at(abar, t), at(abar, s))
        torch.testing.assert_close(x_t, (1 - abar[s]).sqrt() * eps, rtol=0, atol=1e-6)
    assert float(x_t.abs().max()) < 1e-6


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_true_x0_at_every_ancestral_step_keeps_the_marginals(steps):
    """x0 = 0: each x_s has variance 1 - abar_s, and nothing is left at 0."""
    abar = diffusion.schedule("linear", T)
    rng = torch.Generator().manual_seed(0)
    x_t = diffusion.add_noise(torch.zeros(4000), torch.randn(4000, generator=rng), abar[T].float())
    variance = float(1 - abar[T])
    for t, s in pairwise(diffusion.descend(T, steps)):
        noise = torch.randn(4000, generator=rng)
        x_t = diffusion.ancestral_step(x_t.double(), torch.zeros(4000), abar[t], abar[s], noise)
        gain, added = diffusion.posterior(torch.ones(1), torch.zeros(1), abar[t], abar[s])
        variance = float(gain) ** 2 * variance + float(added)
        assert variance == pytest.approx(float(1 - abar[s]), rel=1e-5, abs=1e-7)
    assert float(x_t.abs().max()) == 0


def test_the_mean_of_ancestral_steps_with_the_true_x0_returns_it():
    abar = diffusion.schedule("cosine", T)
    x0 = images(1, 1, 4, 4)
    x_t = diffusion.add_noise(x0, images(1, 1, 4, 4, seed=1), at(abar, 800))
    silent = diffusion.sample(lambda *_: x0, x_t, abar, diffusion.descend(800, 40), lambda _: torch.zeros_like(x0))
    torch.testing.assert_close(silent, x0)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_descent_falls_evenly_to_zero(start, steps):
    times = diffusion.descend(start, steps)
    assert times[0] == start
    assert times[-1] == 0
    gaps = [t - s for t, s in pairwise(times)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1
    assert len(gaps) == min(start, steps)


def test_sampling_calls_the_network_once_a_step():
    seen = []

    def denoise(x_t, t):
        seen.append(t)
        return torch.full_like(x_t, 0.25)

    x_t = images(1, 1, 2, 2)
    abar = diffusion.schedule("cosine", T)
    assert (diffusion.sample(denoise, x_t, abar, [500, 0]) == 0.25).all()
    assert (diffusion.sample(denoise, x_t, abar, [500, 200, 0]) == 0.25).all()
    assert seen == [500, 500, 200]
    for times in ([], [5], [5, 3]):
        with pytest.raises(ValueError, match="end in 0"):
            diffusion.sample(denoise, x_t, abar, times)
