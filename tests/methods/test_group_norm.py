"""Group normalisation in channels-last order is PyTorch's own, but for the rounding of bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maediff.config import load_config
from maediff.methods import group_norm
from maediff.methods.build import build_network
from maediff.methods.group_norm import GroupNorm, replace_group_norms

SMALL, LARGE = (3, 24, 14, 18), (2, 32, 36, 40)


def norm(channels, kind=GroupNorm, groups=8):
    torch.manual_seed(0)
    built = kind(groups, channels)
    nn.init.normal_(built.weight)
    nn.init.normal_(built.bias)
    return built


def draw(shape, mean=0.0, dtype=torch.bfloat16, seed=1):
    torch.manual_seed(seed)
    return (torch.randn(shape) * 2 + mean).to(dtype).to(memory_format=torch.channels_last)


def run(layer, x, slope):
    """Return y and the gradients of x, weight and bias, in float32."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(slope.to(y.dtype))
    return [value.detach().float() for value in (y, x.grad, layer.weight.grad, layer.bias.grad)]


def ours_is_used(monkeypatch, layer, x):
    calls = []
    apply = group_norm._GroupNorm.apply
    monkeypatch.setattr(group_norm._GroupNorm, "apply", lambda *given: calls.append(1) or apply(*given))
    layer(x)
    return bool(calls)


@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 8, 5, 7)])
@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_values_and_gradients_are_those_of_float32_within_the_rounding_of_bfloat16(shape, mean, monkeypatch):
    x, slope = draw(shape, mean), draw(shape, 0.1, seed=2)
    layer = norm(shape[1])
    assert ours_is_used(monkeypatch, layer, x.requires_grad_())
    exact = run(norm(shape[1], nn.GroupNorm), x.float(), slope.float())
    for found, wanted in zip(run(layer, x, slope), exact, strict=True):
        error = (found - wanted).norm() / wanted.norm()
        assert error < 0.015, error


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_in_float64_the_formulas_are_exact(shape, monkeypatch):
    monkeypatch.setattr(group_norm, "_slow", lambda x, groups: True)
    x, slope = draw(shape, 3.0, torch.float64), draw(shape, 0.1, torch.float64, seed=2)
    ours = run(norm(shape[1]).double(), x, slope)
    torchs = run(norm(shape[1], nn.GroupNorm).double(), x, slope)
    for found, wanted in zip(ours, torchs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-4)  # sums are float32


def test_a_group_without_variance_is_its_bias():
    layer = norm(24)
    x = torch.full(SMALL, 5.0, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = layer(x)
    assert torch.equal(y, layer.bias.to(y.dtype)[None, :, None, None].expand(SMALL))
    assert all(value.isfinite().all() for value in run(layer, x, draw(SMALL, seed=2)))


def test_an_image_is_normalised_alone():
    layer, x = norm(24), draw(SMALL)
    with torch.no_grad():
        together, alone = (
            layer(x),
            torch.cat([layer(x[[k]].contiguous(memory_format=torch.channels_last)) for k in (0, 1, 2)]),
        )
    assert torch.equal(together, alone)


def test_results_are_in_channels_last_order():
    for shape in (SMALL, LARGE):
        x = draw(shape).requires_grad_()
        y = norm(shape[1])(x)
        y.backward(draw(shape, seed=2))
        for value in (y, x.grad):
            assert value.is_contiguous(memory_format=torch.channels_last)
            assert value.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        (SMALL, lambda x: x.float()),
        (SMALL, lambda x: x.contiguous()),
        ((3, 24, 18), lambda x: x),
        ((2, 128, 14, 18), lambda x: x),  # 16 channels in a group
        (LARGE, lambda x: x),  # without a gradient
    ],
)
def test_where_pytorch_is_fast_it_computes(shape, change, monkeypatch):
    torch.manual_seed(1)
    x = torch.randn(shape).bfloat16()
    x = change(x.to(memory_format=torch.channels_last) if len(shape) == 4 else x)
    layer = norm(shape[1])
    with torch.no_grad():
        assert not ours_is_used(monkeypatch, layer, x)
        assert torch.equal(layer(x), norm(shape[1], nn.GroupNorm)(x))


def test_a_network_keeps_its_weights_and_its_answers():
    config = load_config("quick")
    ours = build_network(config).eval().to(memory_format=torch.channels_last)
    for value in ours.parameters():
        nn.init.normal_(value, std=0.1)  # the last layer starts at zero
    torchs = copy.deepcopy(ours)
    norms = [module for module in torchs.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    for module in norms:
        assert type(module) is GroupNorm
        module.__class__ = nn.GroupNorm
    torch.manual_seed(3)
    image, mask, t = (
        torch.rand(2, 1, *config.data.size) * 2 - 1,
        torch.zeros(2, 1, *config.data.size),
        torch.full((2,), 40),
    )
    mask[..., : config.partition.window, : config.partition.window] = 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = (network(image, mask, t).prediction.float() for network in (ours, torchs))
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() < 0.03 * wanted.norm()
    replace_group_norms(torchs)
    assert all(type(module) is GroupNorm for module in norms)
    assert torchs.state_dict().keys() == ours.state_dict().keys()
