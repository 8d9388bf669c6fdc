"""Latent diffusion under a condition: the plain one until it learns, and no lesion comes back through its tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maediff.config import load_config
from maediff.errors import ConfigError
from maediff.inference.load import load_model
from maediff.methods.build import build_network
from maediff.methods.conditioned_latent_diffusion import quantiles
from maediff.methods.maediff.partition import window_masks
from maediff.methods.objective import whole

METHOD = "method=conditioned_latent_diffusion"
CPU = torch.device("cpu")
KEY = (0, "a")
CORNERS = torch.tensor([[0, 8], [9, 3], [16, 0]])


@pytest.fixture
def network(tiny, random_network):
    return random_network(tiny(METHOD))


@pytest.fixture
def images(discs):
    return torch.from_numpy(discs(3).images).float()[:, None]


@pytest.fixture
def batch(images):
    rng = torch.Generator().manual_seed(0)
    windows = window_masks(CORNERS, 16, (32, 32))
    noise = torch.randn(images.shape, generator=rng)
    return {"image": images, "clean": images, "mask": windows, "noise": noise, "t": torch.tensor([5, 300, 900])}


def pair(tiny, random_network, *settings):
    """A network without a condition, and one with fresh cross-attention and otherwise the same weights."""
    plain = random_network(tiny("method=latent_diffusion", *settings))
    conditioned = build_network(tiny(METHOD, *settings)).eval()
    own = conditioned.state_dict()
    shared = {name: name.replace(".block.", ".") for name in own if name.replace(".block.", ".") in plain.state_dict()}
    assert set(shared.values()) == set(plain.state_dict())
    conditioned.load_state_dict(own | {name: plain.state_dict()[other] for name, other in shared.items()})
    return plain, conditioned


# The plain latent diffusion


def test_a_fresh_condition_changes_no_bit(tiny, random_network, batch):
    plain, conditioned = pair(tiny, random_network)
    batch = batch | {"mask": whole(batch["clean"])}
    assert torch.equal(conditioned.losses(batch)[0], plain.losses(batch)[0])
    latent, t = plain.encoded(batch["image"]), batch["t"]
    features = conditioned.features(batch["image"], window_masks(CORNERS, 16, (32, 32)))
    expected = plain.predict(latent, t, None)
    assert torch.equal(conditioned.predict(latent, t, features), expected)
    assert expected.abs().max() > 0.01


def test_fresh_it_reconstructs_as_the_plain_one_whatever_the_windows(tiny, random_network, discs):
    slices = discs(2, side=41)
    images, masks = torch.from_numpy(slices.images).float(), torch.from_numpy(slices.masks)
    for settings in ((), ("diffusion.sampler=ddim", "infer.blend=uniform", "partition.stride=12")):
        plain, conditioned = pair(tiny, random_network, *settings)
        found, expected = (
            one.engine(tiny(f"method={name}", *settings), CPU, bf16=False)(images, masks, KEY).mean
            for one, name in ((conditioned, "conditioned_latent_diffusion"), (plain, "latent_diffusion"))
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_tokens_it_is_the_plain_one_whatever_it_has_learnt(tiny, random_network, network, images):
    plain, t = random_network(tiny("method=latent_diffusion")), torch.tensor([5, 300, 900])
    state = network.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict() if name in state}, strict=False)
    wrapped = {name.replace(".block.", "."): value for name, value in state.items() if ".block." in name}
    plain.load_state_dict(wrapped, strict=False)
    latent = plain.encoded(images)
    assert torch.equal(network.predict(latent, t, None), plain.predict(latent, t, None))
    features = network.features(images, whole(images))
    assert not torch.equal(network.predict(latent, t, features), plain.predict(latent, t, None))


# The tokens


def test_no_pixel_of_the_window_enters_the_condition(network, images):
    windows = window_masks(CORNERS, 16, (32, 32))
    seen = network.features(images, windows)
    lesion = torch.where(windows > 0, 1.5, images)
    assert torch.equal(network.features(lesion, windows), seen)
    beside = torch.where((windows == 0) & (images > -1), images + 0.3, images)
    assert (network.features(beside, windows) != seen).any((1, 2)).all()


def test_the_order_of_tokens_does_not_matter_and_their_content_does(network, images):
    t, latent = torch.tensor([5, 300, 900]), network.encoded(images)
    features = network.features(images, window_masks(CORNERS, 16, (32, 32)))
    order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(0))
    found = network.predict(latent, t, features)
    torch.testing.assert_close(network.predict(latent, t, features[:, order]), found, rtol=1e-4, atol=1e-5)
    for index in (0, -1):  # a cell, the contrast
        other = features.clone()
        other[:, index] += 1
        assert (network.predict(latent, t, other) - found).abs().max() > 1e-4


def test_the_severity_is_the_share_of_the_last_trained_timestep(tiny, random_network, images):
    features, t = None, torch.tensor([10, 20, 40])
    tokens = []
    for last in (1000, 500):
        network = random_network(tiny(METHOD, f"diffusion.train_timesteps=[1,{last}]"))
        features = network.features(images, whole(images))
        context = network.context(features, t * last // 500)
        assert torch.equal(context[:, :-1], features)
        tokens.append(context[:, -1])
    torch.testing.assert_close(tokens[0], tokens[1])
    assert (tokens[0][0] != tokens[0][1]).any()
    beyond = network.context(features, torch.tensor([500, 501, 1000]))[:, -1]  # of wholly hidden patches
    assert torch.equal(beyond, beyond[:1].expand(3, -1))


def test_quantiles_are_those_of_numpy(images):
    """Of 101 and of 11 pixels, whose deciles need no interpolation; none of an empty mask."""
    order = torch.randperm(images[0].numel(), generator=torch.Generator().manual_seed(0)).reshape(images[0].shape)
    masks = torch.stack([order < count for count in (101, 11, 0)])
    found = quantiles(images, masks, 9)
    for row, image, mask in list(zip(found, images, masks, strict=True))[:2]:
        np.testing.assert_array_equal(row, np.quantile(image[mask], np.arange(1, 10) / 10).astype(np.float32))
    assert (found[2] == -1).all()


# Training and inference


def test_the_loss_counts_in_the_window_alone(network, batch):
    kept = []

    def predict(x_t, t, features):
        kept.append(torch.zeros_like(x_t, requires_grad=True))
        return kept[0]

    network.predict = predict
    network.losses(batch)[0].backward()
    touched = F.max_pool2d(batch["mask"], 4).expand_as(kept[0])
    assert torch.equal(kept[0].grad != 0, touched > 0)


def test_gradients_reach_the_mae_and_the_embeddings(network, batch):
    network.losses(batch)[0].backward()
    for part in (network.mae.embed, network.mae.encoder, network.mae.decoder, network.contrast, network.severity):
        assert all((parameter.grad != 0).any() for parameter in part.parameters() if parameter.numel() > 1)
    assert network.mae.to_pixels.weight.grad is None
    network.losses(batch)[1].backward()
    assert (network.mae.to_pixels.weight.grad != 0).any()


def test_the_auxiliary_loss_is_the_error_of_the_maes_image_in_the_window(tiny, random_network, network, batch):
    features = network.features(batch["image"], batch["mask"])
    image = network.mae.pixels(features[:, :16].transpose(1, 2).reshape(3, -1, 4, 4))
    hidden = batch["mask"] > 0
    torch.testing.assert_close(network.losses(batch)[1], (image - batch["clean"])[hidden].abs().mean())
    assert random_network(tiny(METHOD, "model.mae_loss_weight=0")).losses(batch)[1] == 0


def test_each_pixel_is_made_healthy_while_it_is_hidden(network, images):
    """A pass that returned what is visible would show here as not a number."""
    network.encoded = lambda given: F.avg_pool2d(given, 4).expand(-1, 4, -1, -1)
    network.decoded = lambda latent: latent
    network.features = lambda given, hidden: hidden
    network.walk = lambda latent, t, draw, hidden: (
        torch.where(F.avg_pool2d(hidden, 4) == 1, 5.0, torch.nan) + 0 * latent
    )
    found = network.reconstruct(images, images > -1, 300, None)
    torch.testing.assert_close(found, torch.full((3, 4, 8, 8), 5.0))


def test_a_saved_model_reconstructs_the_same(tiny, make_model, network, discs, tmp_path):
    config = tiny(METHOD)
    images, masks = torch.from_numpy(discs(2).images).float(), torch.from_numpy(discs(2).masks)
    loaded = load_model(make_model(tmp_path / "model", config), "cpu")
    found, expected = (
        one.engine(config, CPU, bf16=False)(images, masks, KEY).mean for one in (loaded.network, network)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the memory format differs
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["partition.stride=6"], r"window 40 and stride 6 must be multiples of 4.*conditioned_latent_diffusion"),
        (["partition.window=42"], r"window 42 and stride 20 must be multiples of 4"),
        (["baselines.latent_levels=3"], r"stride 20 must be multiples of 8"),
        (["diffusion.noise=simplex"], "conditioned_latent_diffusion needs diffusion.noise gaussian"),
        (["data.channels=[t1, t2]"], "'conditioned_latent_diffusion' takes one"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [METHOD, *settings])
    load_config("tiny", ["method=latent_diffusion", "partition.stride=6"])
