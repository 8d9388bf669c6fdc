"""Low-rank updates: nothing at the start, the same merged or not, and refused where they do not belong."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from maediff.errors import ConfigError, ModelError
from maediff.low_rank import Adapter, LowRank, attach, detached


@pytest.fixture(params=["maediff", "ddpm", "disyre", "ae"])
def network(request, tiny, random_network):
    """A network of convolutions, linear layers and, in MAEDiff's case, attention."""
    return random_network(tiny(f"method={request.param}"))


def batch(tiny):
    rng = torch.Generator().manual_seed(3)
    image = torch.rand(2, 1, 32, 32, generator=rng)
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 4:20] = 1
    noise = torch.randn(2, 1, 32, 32, generator=rng)
    return {"image": image, "clean": image, "mask": mask, "noise": noise, "t": torch.tensor([5, 300])}


def shaken(network):
    """Give every update values."""
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, LowRank):
                module.up.copy_((0.05 * torch.randn(module.up.shape, generator=rng)).half())
                module.down.copy_(module.down.half())
    return network


def losses(network, tiny):
    network.eval()
    with torch.no_grad():
        return torch.stack(network.losses(batch(tiny)))


def test_a_fresh_update_is_the_base_bit_for_bit(network, tiny):
    before = losses(network, tiny)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    attach(network, 2)
    assert torch.equal(losses(network, tiny), before)
    merged = Adapter(detached(network), {}).merged(weights)
    assert merged.keys() == weights.keys()
    assert all(torch.equal(merged[name], weights[name]) for name in weights)


def test_merged_and_unmerged_are_the_same_network(network, tiny):
    plain = copy.deepcopy(network)
    before = losses(network, tiny)
    attach(network, 2)
    adapter = Adapter.from_bytes(Adapter(detached(shaken(network)), {}).to_bytes())
    plain.load_state_dict(adapter.merged(plain.state_dict()))
    unmerged = losses(network, tiny)
    assert not torch.allclose(unmerged, before, rtol=1e-5)
    torch.testing.assert_close(losses(plain, tiny), unmerged, rtol=1e-6, atol=1e-7)


def test_updates_have_the_rank_and_are_the_product_that_numpy_finds(network):
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    attach(network, 3)
    adapter = Adapter(detached(shaken(network)), {})
    merged = adapter.merged(weights)
    for name in adapter.names:
        change = (merged[name] - weights[name]).flatten(1).double().numpy()
        up, down = (adapter.updates[name + end].double().numpy() for end in (".up", ".down"))
        np.testing.assert_allclose(change, up @ down, atol=1e-5)
        assert np.linalg.matrix_rank(up @ down) <= 3
    untouched = weights.keys() - set(adapter.names)
    assert all(torch.equal(merged[name], weights[name]) for name in untouched)


def test_all_that_learns_are_the_updates(network, tiny):
    names = {name for name, _ in network.named_parameters()}
    trained = attach(network, 2)
    network.train()
    sum(network.losses(batch(tiny))).backward()
    assert sum(p.requires_grad for p in network.parameters()) == len(trained)
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert len(frozen) == len(names)
    assert all(p.grad is None for p in frozen)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_every_linear_and_convolution_layer_is_updated_if_it_is_large_enough(tiny, random_network):
    network = random_network(tiny())
    sizes = {
        f"{name}.{kind}".removeprefix("."): tuple(getattr(module, kind).shape)
        for name, module in network.named_modules()
        for kind in ("weight", "in_proj_weight")
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)) and hasattr(module, kind)
    }
    attach(network, 4)
    wanted = {name for name, (out, *rest) in sizes.items() if min(out, math.prod(rest)) >= 4}
    assert set(Adapter(detached(network), {}).names) == wanted
    assert any("self_attn.in_proj_weight" in name for name in wanted)
    assert wanted != sizes.keys()  # the last convolution has one channel out


def test_a_rank_that_fits_nothing_is_refused(network):
    with pytest.raises(ConfigError, match=r"rank 5 does not fit a layer of 4 x 27; use 1 to 4"):
        LowRank((4, 3, 3, 3), 5)
    with pytest.raises(ConfigError, match=r"rank 5000 is larger than every layer of this network; use 1 to \d+"):
        attach(network, 5000)


def test_a_file_of_more_than_a_mebibyte_is_refused_and_the_rank_that_fits_is_named():
    def adapter(rank):
        return Adapter({"w.up": torch.zeros(40_000, rank), "w.down": torch.zeros(rank, 40_000)}, {})

    with pytest.raises(
        ConfigError, match=r"rank 9 makes an adapter of 1\.38 MiB; at most 1 MiB are kept: use --rank 6"
    ):
        adapter(9).check_size()
    adapter(6).check_size()
    assert len(adapter(6).to_bytes()) < 2**20


def test_an_adapter_of_another_network_is_refused(network):
    weights = dict(network.state_dict())
    attach(network, 2)
    adapter = Adapter(detached(network), {})
    name = adapter.names[0]
    with pytest.raises(ModelError, match="which its base does not have: it belongs to another network"):
        adapter.merged({other: value for other, value in weights.items() if other != name})
    with pytest.raises(ModelError, match="belongs to another network"):
        adapter.merged(weights | {name: torch.zeros(3, 5)})


def test_a_file_keeps_updates_and_facts_and_a_damaged_one_is_refused(network):
    attach(network, 2)
    adapter = Adapter(detached(shaken(network)), {"rank": 2, "base": "phantom"})
    again = Adapter.from_bytes(adapter.to_bytes())
    assert again.facts == {"rank": 2, "base": "phantom"}
    assert all(torch.equal(again.updates[name], adapter.updates[name]) for name in adapter.updates)
    for data in (b"", adapter.to_bytes()[:-40], b"\xff" * 80):
        with pytest.raises(ModelError, match="the adapter is damaged"):
            Adapter.from_bytes(data)
