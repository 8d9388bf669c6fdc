"""Neighbouring slices as context: what the network sees of them, what it does not, and that nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from maediff import diffusion
from maediff.config import Config, override
from maediff.diffusion.noise import generator, noise_field
from maediff.errors import ConfigError
from maediff.inference.cost import window_inputs
from maediff.methods.build import build_network
from maediff.methods.maediff.partition import window_masks
from maediff.methods.maediff.sliding import SlidingReconstructor
from maediff.methods.neighbours import with_neighbours
from maediff.training.stream import SampleStream

CPU = torch.device("cpu")
DDPM = "method=ddpm"
WAYS = (
    (),
    ("model.condition=cross_attention",),
    ("model.condition=none", "model.mask_channel=false"),
    ("infer.context=3", "infer.together=2"),
    ("data.channels=[t1, t2]", "diffusion.sampler=ddim", "diffusion.sampler_steps=2"),
    (DDPM,),
)


def scan(count=6, channels=1, side=32):
    """Slices of noise and their brains; with several channels (S, C, H, W)."""
    slices = torch.rand(count, channels, side, side, generator=generator("scan")) - 0.5
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    mask[:, 6:26, 8:24] = True
    slices = torch.where(mask[:, None], slices, -1.0)
    return (slices if channels > 1 else slices[:, 0]), mask


def ready(tiny, random_network, settings, neighbours=1):
    """Make a network, a scan and an engine that takes the scan and its mask."""
    config = tiny(f"data.neighbours={neighbours}", "partition.stride=16", *settings)
    network = random_network(config)
    slices, mask = scan(channels=config.data.channel_count)
    engine = network.engine(config, CPU, bf16=False)
    return config, network, slices, mask, lambda x, m=mask: engine(x, m, ("a",)).mean


def changed_slices(first, second):
    return {k for k, (a, b) in enumerate(zip(first, second, strict=True)) if float((a - b).abs().max()) > 1e-5}


# The setting


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.neighbours=-1"], "greater than or equal to 0"),
        (["data.neighbours=2", "method=pddpm"], "methods maediff and ddpm, not 'pddpm'; set data.neighbours=0"),
        (["data.neighbours=2", "method=intensity"], "methods maediff and ddpm"),
        (["data.neighbours=2", DDPM, "diffusion.sampler=ddim"], r"single_step, not 'ddim'.*would show a lesion"),
        (["data.neighbours=1", "heads.enabled=true"], "needs scans, and heads.enabled draws single slices"),
        (
            ["data.neighbours=1", "structure.kinds=[t2i]", "structure.guides=[edges]"],
            "does not go with side networks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), settings)


def test_offsets_are_those_of_the_slices_before_and_after(tiny):
    assert tiny().data.offsets == ()
    assert tiny("data.neighbours=2").data.offsets == (-2, -1, 1, 2)
    assert tiny("data.neighbours=2", "data.channels=[t1, t2]").neighbour_channels == 8


# Taking slices


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_neighbours_come_behind_the_slice_and_are_empty_beyond_the_scan(tiny, count):
    images = torch.arange(5.0).reshape(5, 1, 1, 1) + torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1)
    offsets = tiny(f"data.neighbours={count}").data.offsets
    found = with_neighbours(images, torch.tensor([3, 0]), offsets)
    assert found.shape == (2, 2 * (1 + 2 * count), 1, 1)
    for row, index in zip(found.flatten(1).tolist(), (3, 0), strict=True):
        places = [index, *(index + offset for offset in offsets)]
        assert row == [value for k in places for value in ([k, k + 0.5] if 0 <= k < 5 else [-1, -1])]


# Laws of both engines


@pytest.mark.parametrize("settings", WAYS)
@pytest.mark.parametrize("neighbours", [1, 2])
def test_a_slice_depends_on_its_neighbours_alone(tiny, random_network, settings, neighbours):
    _, _, slices, _, run = ready(tiny, random_network, settings, neighbours)
    before = run(slices)
    other = slices.clone()
    other[2] = torch.where(other[2] > -1, -other[2], other[2])
    near = set(range(2 - neighbours, 3 + neighbours))
    assert changed_slices(run(other), before) == near


@pytest.mark.parametrize("settings", WAYS)
def test_a_swap_of_two_far_slices_changes_nothing_else(tiny, random_network, settings):
    _, _, slices, _, run = ready(tiny, random_network, settings)
    order = [0, 1, 2, 5, 4, 3]
    assert changed_slices(run(slices[order]), run(slices)) == {2, 3, 4, 5}


@pytest.mark.parametrize("settings", WAYS)
def test_the_result_does_not_depend_on_the_batch_size(tiny, random_network, settings):
    *_, slices, _, run = ready(tiny, random_network, settings)
    *_, one_by_one = ready(tiny, random_network, (*settings, "infer.batch_size=1"))
    torch.testing.assert_close(one_by_one(slices), run(slices), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", WAYS)
def test_empty_slices_at_the_end_change_nothing(tiny, random_network, settings):
    *_, slices, mask, run = ready(tiny, random_network, settings)
    longer = torch.cat([slices, torch.full_like(slices[:3], -1.0)])
    found = run(longer, torch.cat([mask, torch.zeros_like(mask[:3])]))
    torch.testing.assert_close(found[: len(slices)], run(slices), rtol=0, atol=1e-5)
    assert (found[len(slices) :] == -1).all()


@pytest.mark.parametrize(
    "settings",
    [(), ("model.condition=none", "model.mask_channel=false"), ("data.channels=[t1, t2]", "model.patch=2"), (DDPM,)],
)
def test_a_network_that_ignores_them_is_the_network_without_them(tiny, random_network, settings):
    """Weights of the neighbours' channels set to 0, the others copied: the same reconstruction."""
    _, wide, slices, _, run = ready(tiny, random_network, settings, 2)
    plain_config = tiny("partition.stride=16", *settings)
    plain = random_network(plain_config)
    state = plain.state_dict()
    own, fold = plain_config.data.channel_count, plain_config.model.patch**2
    for name, value in wide.state_dict().items():
        if value.shape == state[name].shape:
            value.copy_(state[name])
            continue
        unit = 1 if name == "mae.embed.weight" else fold
        width = own * unit
        value.zero_()
        value[:, :width] = state[name][:, :width]
        rest = state[name].shape[1] - width  # the mask of the window comes last
        if rest:
            value[:, -rest:] = state[name][:, -rest:]
    expected = plain.engine(plain_config, CPU, bf16=False)(slices, scan()[1], ("a",)).mean
    torch.testing.assert_close(run(slices), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [(), (DDPM,)])
def test_bf16_stays_close(tiny, random_network, settings):
    config, network, slices, mask, run = ready(tiny, random_network, settings)
    coarse = network.engine(config, CPU, bf16=True)(slices, mask, ("a",)).mean
    assert float((coarse - run(slices)).abs().mean()) < 0.05


class NextSlice:
    """A stand-in for a network that returns the slice after the one that it is asked for."""

    def __init__(self, channels, place):
        self.channels, self.place = channels, place

    def features(self, image, mask):
        return None

    def __call__(self, perturbed, window, steps):
        first = self.place * self.channels
        return SimpleNamespace(prediction=perturbed[:, first : first + self.channels])


@pytest.mark.parametrize("channels", [(), ("data.channels=[t1, t2]",)])
@pytest.mark.parametrize("view", [(), ("infer.context=3",), ("infer.together=2",)])
def test_the_engine_shows_the_neighbours_of_each_window(tiny, channels, view):
    config = tiny("data.neighbours=2", "diffusion.objective=x0", *channels, *view)
    slices, mask = scan(channels=config.data.channel_count)
    for place, offset in enumerate((-2, -1, 1, 2), start=1):
        network = NextSlice(config.data.channel_count, place)
        found = SlidingReconstructor(network, config, CPU, bf16=False)(slices, mask, (0,)).mean
        for k in range(len(slices)):
            inside = mask[k].expand_as(slices[k])
            wanted = slices[k + offset] if 0 <= k + offset < len(slices) else torch.full_like(slices[k], -1.0)
            torch.testing.assert_close(found[k][inside], wanted[inside], rtol=0, atol=1e-6)


# What is hidden


@pytest.mark.parametrize("condition", ["residual", "cross_attention", "none"])
@torch.inference_mode()
def test_the_window_of_the_neighbours_is_hidden(tiny, random_network, condition):
    config = tiny("data.neighbours=2", "data.channels=[t1, t2]", f"model.condition={condition}")
    network = random_network(config)
    image = torch.randn(2, 10, 32, 32, generator=generator("image"))
    mask = window_masks(torch.tensor([[0, 8], [9, 13]]), 16, (32, 32))
    t = torch.tensor([40, 700])
    found = network(image, mask, t).prediction
    assert found.shape == (2, 2, 32, 32)
    inside = image.clone()
    inside[:, 2:] += 5 * mask  # whatever lies in the window of the neighbours
    assert torch.equal(network(inside, mask, t).prediction, found)
    outside = image.clone()
    outside[:, 2:] += 5 * (1 - mask)
    assert not torch.allclose(network(outside, mask, t).prediction, found)


def test_a_window_as_large_as_the_slice_hides_the_neighbours_wholly(tiny, random_network):
    settings = ("partition.window=32", "partition.stride=32")
    _, _, slices, mask, run = ready(tiny, random_network, settings)
    other = torch.where(mask, -slices, slices)
    other[3] = slices[3]
    assert torch.equal(run(other)[3], run(slices)[3])


def test_ddpm_sees_its_neighbours_noised_like_the_slice(tiny, random_network):
    config, network, slices, _, run = ready(tiny, random_network, (DDPM,), 2)
    seen = []
    predict = network.predict
    network.predict = lambda x, t, c: seen.append(x) or predict(x, t, c)
    run(slices)
    (x_t,) = seen
    level = network.abar[300]
    for k in range(len(slices)):
        noise = noise_field("gaussian", (32, 32), generator("a", 300, 0, k), 5)
        wanted = diffusion.add_noise(
            with_neighbours(slices[:, None], torch.tensor([k]), config.data.offsets), noise, level
        )
        torch.testing.assert_close(x_t[k : k + 1], wanted)
    assert torch.equal(noise[:1], noise_field("gaussian", (32, 32), generator("a", 300, 0, k)))  # as without neighbours


# Training and cost


@pytest.mark.parametrize("settings", [(), ("model.condition=none",), (DDPM,), (DDPM, "model.gate=true")])
def test_the_loss_counts_the_slice_alone_and_teaches_every_input(tiny, discs, random_network, settings):
    gate = ("diffusion.objective=x0", "model.input_skip=true") if "model.gate=true" in settings else ()
    config = tiny("data.neighbours=1", "train.lesion_weight=0.5", "lesions.share=1", *settings, *gate)
    network = random_network(config)
    batch = next(iter(DataLoader(SampleStream(discs(neighbours=1), config, 4, augmented=True), 4)))
    assert batch["image"].shape == (4, 3, 32, 32)
    loss, auxiliary = network.losses(batch)
    (loss + auxiliary).backward()
    width = next(value for name, value in network.named_parameters() if "conv_in" in name and value.ndim == 4)
    assert (width.grad.flatten(2).abs().sum((0, 2)) > 0).all()  # each input channel teaches
    other = {**batch, "clean": batch["clean"].clone()}
    other["clean"][:, 1:] = 7.0
    assert torch.equal(network.losses(other)[0], loss)


@pytest.mark.parametrize("settings", [("data.channels=[t1, t2]",), (DDPM,)])
def test_a_batch_to_measure_has_the_neighbours(tiny, settings):
    config = tiny("data.neighbours=2", *settings)
    network = build_network(config)
    image, _, _ = window_inputs(network, (32, 32), 16, 3)
    assert image.shape == (3, 5 * config.data.channel_count, 32, 32)
