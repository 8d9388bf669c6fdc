"""Cross-attention computes what torch's does, adds nothing while its output is zero, and finds tokens by place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maediff.methods.cross_attention import Attending, CrossAttention, attend
from maediff.methods.folded_unet import FoldedUNet
from maediff.methods.maediff.mae import sincos_position


@pytest.fixture
def model(tiny):
    return tiny().model


def shaken(module):
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng)
    return module.eval()


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_it_is_the_attention_of_torch(model):
    ours = shaken(CrossAttention(8, model, 0.5))
    theirs = nn.MultiheadAttention(model.mae_width, model.mae_heads, bias=False, batch_first=True)
    features, tokens = randn(2, 8, 4, 6), randn(2, 5, model.mae_width)
    queries = ours.query(ours.norm(features).flatten(2).transpose(1, 2))
    queries = queries + ours.place(sincos_position((4, 6), model.mae_width, 0.5))
    with torch.no_grad():
        same = torch.eye(model.mae_width)
        theirs.in_proj_weight.copy_(torch.cat([same, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(same)
    found = ours.out(theirs(queries, tokens, tokens)[0])
    expected = features + found.transpose(1, 2).reshape(features.shape)
    torch.testing.assert_close(ours(features, tokens), expected)
    assert (expected - features).abs().max() > 0.1


def test_the_order_of_tokens_does_not_matter(model):
    attention = shaken(CrossAttention(8, model, 0.5))
    features, tokens = randn(2, 8, 4, 4), randn(2, 7, model.mae_width)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(features, tokens[:, order]), attention(features, tokens))


def test_each_place_finds_the_token_of_its_cell(tiny):
    """Nothing but places counts, and sharply; the tokens are the positions of the cells."""
    model = tiny("model.mae_heads=1").model
    width = model.mae_width
    attention = CrossAttention(width, model, 1.0)
    cells = sincos_position((3, 5), width)
    with torch.no_grad():
        for layer, factor in ((attention.query, 0), (attention.place, 60), (attention.key, 60)):
            layer.weight.copy_(factor * torch.eye(width))
        attention.query.bias.zero_()
        attention.value.weight.copy_(torch.eye(width))
        attention.out.weight.copy_(torch.eye(width))
        found = attention(torch.zeros(1, width, 3, 5), cells[None])
    torch.testing.assert_close(found.flatten(2)[0].T, cells, rtol=0, atol=1e-3)


def test_a_fresh_layer_changes_no_bit_and_none_without_a_context(model):
    block = nn.Conv2d(8, 8, 3, padding=1)
    features, tokens = randn(2, 8, 4, 4), randn(2, 5, model.mae_width)
    fresh = Attending(block, CrossAttention(8, model, 1.0))
    assert torch.equal(fresh(features, context=tokens), block(features))
    other = Attending(block, shaken(CrossAttention(8, model, 1.0)))
    assert torch.equal(other(features, context=None), block(features))
    assert not torch.equal(other(features, context=tokens), block(features))


@pytest.mark.parametrize("levels", [2, 3])
def test_every_layer_sees_the_grid_that_its_step_says(tiny, levels):
    """A U-Net of 16 x 24 pixels whose pixels lie half a cell apart covers 8 x 12 cells at every depth."""
    widths = {2: "model.channels=[8, 16]", 3: "model.channels=[8, 16, 16]"}[levels]
    model = tiny(widths, f"model.attention={[False] * levels}", "data.size=[32, 32]").model
    net, grids = FoldedUNet(model, (1, 1), latent=True), []
    attend(net.unet, model, 0.5)
    for layer in net.modules():
        if isinstance(layer, CrossAttention):
            layer.register_forward_hook(
                lambda layer, given, _: grids.append([layer.step * n for n in given[0].shape[2:]])
            )
    net(randn(1, 1, 16, 24), torch.tensor([3]), context=randn(1, 5, model.mae_width))
    assert grids == [[8, 12]] * (levels + 1)
