"""Shares of a batch: the same losses and gradients as the whole batch, the same bits each time, errors passed on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maediff.errors import MAEDiffError
from maediff.methods.build import build_network
from maediff.training.loop import Losses
from maediff.training.shares import Shares, share_count
from maediff.training.stream import sample_stream

CPU = torch.device("cpu")


@pytest.fixture
def losses(tiny):
    """Return the losses of a method whose weights, zero at the start, are random, in full precision."""

    def build(method):
        torch.manual_seed(0)
        module = Losses(tiny(f"method={method}")).train()
        for value in module.parameters():
            if not value.any():
                nn.init.normal_(value, std=0.05)
        return module

    return build


@pytest.fixture
def batch(tiny, discs):
    stream = sample_stream(discs(), tiny(), 7, augmented=True)
    return {name: torch.stack([stream[index][name] for index in range(7)]) for name in stream[0]}


def gradients(module, batch, count, **weights):
    module.zero_grad()
    with Shares(module, list(module.parameters()), count) as shares:
        found = shares.backward(batch, **weights)
    return torch.stack(found), {name: value.grad for name, value in module.named_parameters()}


@pytest.mark.parametrize("method", ["maediff", "ddpm", "pddpm", "disyre", "dae", "vae"])
def test_shares_have_the_gradient_of_the_whole_batch(losses, batch, method):
    module = losses(method)
    loss, auxiliary = module(batch)
    (0.5 * (loss + 0.3 * auxiliary)).backward()
    whole = {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
    scale = torch.stack([value.norm() for value in whole.values()]).norm()
    assert scale > 0
    for count in (1, 2, 3, 100):
        found, parts = gradients(module, batch, count, weight=0.5, auxiliary_weight=0.3)
        torch.testing.assert_close(found, torch.stack([loss, auxiliary]).detach())
        assert {name for name, value in parts.items() if value is not None} == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5 * float(scale))


def test_the_same_number_of_threads_gives_the_same_bits(losses, batch):
    module = losses("maediff")
    with torch.autocast("cpu", torch.bfloat16):
        (first, ours), (second, theirs) = (gradients(module, batch, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_gradients_add_up_over_batches(losses, batch):
    module = losses("ddpm")
    once = {name: value.clone() for name, value in gradients(module, batch, 2)[1].items()}
    with Shares(module, list(module.parameters()), 2) as shares:
        shares.backward(batch)
    for name, value in module.named_parameters():
        torch.testing.assert_close(value.grad, 2 * once[name])


def test_an_error_in_a_share_is_raised_and_threads_are_as_before(losses, batch):
    def broken(part):
        raise MAEDiffError("broken")

    before = torch.get_num_threads()
    with pytest.raises(MAEDiffError, match="broken"), Shares(broken, [], 2) as shares:
        shares.backward(batch)
    assert torch.get_num_threads() == before


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_of_torch_decide_the_number_of_shares(tiny):
    network = build_network(tiny())
    assert [share_count(network, CPU, size) for size in (1, 2, 16)] == [1, 2, 3]
    assert share_count(network, torch.device("meta"), 16) == 1


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("method", ["autoddpm", "latent_diffusion"])
def test_methods_that_learn_from_a_batch_as_a_whole_are_not_divided(tiny, method):
    assert share_count(build_network(tiny(f"method={method}")), CPU, 16) == 1
