"""MAEDiff in three dimensions: the network, and cubes that slide through a volume."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from maediff.config import load_config
from maediff.diffusion.noise import generator
from maediff.errors import ConfigError
from maediff.methods.build import build_network
from maediff.methods.maediff.mae import sincos_position
from maediff.methods.maediff.partition import blend_weight, visible_cells, window_grid, window_masks
from maediff.methods.volumetric import CubeReconstructor, Place

CPU = torch.device("cpu")
SMALL = (
    "data.size=[16, 24]",
    "heads.slices=16",
    "partition.window=8",
    "partition.stride=6",
    "partition.cell=8",
    "model.channels=[8, 16]",
    "model.attention=[false, false]",
    "model.mae_width=16",
    "model.mae_depth=1",
)


def config(*overrides):
    return load_config("volumetric", (*SMALL, *overrides))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(config()).eval()


def scan(slices=19, shape=(16, 20)):
    """A stack with brain in slices 4 to 14."""
    stack = torch.rand(slices, *shape, generator=generator("volume")) - 0.5
    mask = torch.zeros(slices, *shape, dtype=torch.bool)
    mask[4:15, 2:14, 3:18] = True
    return torch.where(mask, stack, -1.0), mask


def test_what_a_cube_hides_does_not_reach_the_autoencoder(network):
    volume = torch.rand(1, 1, 16, 16, 24)
    window = window_masks(torch.tensor([[8, 0, 8]]), 8, (16, 16, 24))
    other = torch.where(window > 0, torch.rand_like(volume), volume)
    assert torch.equal(network.features(volume, window), network.features(other, window))
    assert not torch.equal(network.features(volume, window), network.features(volume + 0.1, window))
    assert network.features(volume, window).shape == (1, 16, 2, 2, 3)


def test_cubes_in_pure_form():
    corners = window_grid((10, 8, 9), 4, 3)
    assert len(corners) == 3 * 3 * 3
    assert corners[-1].tolist() == [6, 4, 5]
    masks = window_masks(corners, 4, (10, 8, 9))
    assert masks.shape == (27, 1, 10, 8, 9)
    assert (masks.amax(0) == 1).all()  # they cover the volume
    first, second, third = corners[5].tolist()
    assert masks[5].sum() == 4**3
    assert masks[5, 0, first : first + 4, second : second + 4, third : third + 4].all()
    hidden = ~visible_cells(window_masks(torch.tensor([[0, 0, 3]]), 4, (8, 8, 8)), 4)
    assert hidden[0].nonzero().tolist() == [[0, 0, 0], [0, 0, 1]]  # a cell that is touched is hidden
    gaussian = blend_weight(4, "gaussian", dims=3)
    torch.testing.assert_close(gaussian, gaussian.permute(2, 0, 1))
    square = blend_weight(4, "gaussian")
    torch.testing.assert_close(gaussian[1] / gaussian[1, 1, 1], square / square[1, 1])


def test_positions_of_cells_differ_along_each_axis():
    table = sincos_position((2, 3, 4), 16)
    assert table.shape == (24, 16)
    assert len(table.unique(dim=0)) == 24


def test_losses_train_every_parameter(network):
    own = build_network(config())
    volume = torch.rand(2, 1, 16, 16, 24) - 0.5
    window = window_masks(torch.tensor([[8, 0, 8], [0, 8, 16]]), 8, (16, 16, 24))
    batch = {"image": volume, "clean": 0.9 * volume, "mask": window, "noise": torch.randn_like(volume)}
    loss, auxiliary = own.losses(batch | {"t": torch.tensor([5, 90])})
    (loss + auxiliary).backward()
    without = [name for name, value in own.named_parameters() if value.grad is None]
    assert not without
    assert float(auxiliary.detach()) > 0


class Constant:
    """Restores every voxel to the same intensity."""

    def features(self, volume, window):
        return None

    def __call__(self, volume, window, steps):
        return SimpleNamespace(prediction=torch.full_like(volume, 0.25))


class Echo(Constant):
    """Returns what it sees, noise included."""

    def __call__(self, volume, window, steps):
        return SimpleNamespace(prediction=volume)


def test_covered_voxels_are_restored_and_others_stay():
    slices, mask = scan()
    engine = CubeReconstructor(Constant(), config(), CPU, bf16=False)
    calls = []
    healthy = engine(slices, mask, (0, "case"), lambda done, of: calls.append((done, of)))
    assert healthy.deviation is None
    assert (healthy.mean[mask] == 0.25).all()
    assert torch.equal(healthy.mean[:4], slices[:4])  # no brain, no cube
    assert torch.equal(healthy.mean[15:], slices[15:])
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_without_noise_a_network_that_returns_its_input_returns_the_faded_scan():
    """x_t = sqrt(abar_t) x without noise, in every cube alike, so that blending changes nothing."""
    slices, mask = scan()
    engine = CubeReconstructor(Echo(), config("diffusion.noise=none"), CPU, bf16=False)
    healthy = engine(slices, mask, (0, "case")).mean
    faded = engine.abar[40].sqrt().float() * slices
    torch.testing.assert_close(healthy[mask], faded[mask])


def test_the_noise_depends_on_the_key_alone(network):
    slices, mask = scan()
    engine = CubeReconstructor(network, config(), CPU, bf16=False)
    once, again = engine(slices, mask, (0, "case")), engine(slices, mask, (0, "case"))
    assert torch.equal(once.mean, again.mean)
    assert not torch.equal(once.mean, engine(slices, mask, (1, "case")).mean)


def test_threads_change_nothing(network):
    slices, mask = scan()
    engine = CubeReconstructor(network, config(), CPU, bf16=False)
    count = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(engine(slices, mask, (0, "case")).mean)
    finally:
        torch.set_num_threads(count)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("sampler", ["single_step", "ddim", "ancestral"])
def test_several_timesteps_and_every_sampler(network, sampler):
    slices, mask = scan()
    timesteps = "[3]" if sampler == "ancestral" else "[20, 40]"
    settings = config(f"diffusion.sampler={sampler}", f"diffusion.test_timesteps={timesteps}", "infer.draws=2")
    healthy = CubeReconstructor(network, settings, CPU, bf16=False)(slices, mask, (0, "case"))
    assert healthy.mean.shape == healthy.deviation.shape == slices.shape
    assert float(healthy.deviation[mask].max()) > 0
    assert float(healthy.deviation[:4].max()) == 0


def test_a_stack_without_brain_stays_as_it_is(network):
    slices, mask = scan()
    healthy = CubeReconstructor(network, config(), CPU, bf16=False)(slices, torch.zeros_like(mask), (0, "case"))
    assert torch.equal(healthy.mean, slices)


def test_a_slab_thinner_than_the_cube_is_reconstructed(network):
    slices, mask = scan()
    mask[6:] = False
    healthy = CubeReconstructor(network, config("partition.window=16"), CPU, bf16=False)(slices, mask, (0, "case"))
    assert not torch.equal(healthy.mean[4:6], slices[4:6])
    assert torch.equal(healthy.mean[6:], slices[6:])


@pytest.mark.parametrize("slices", [5, 8, 19])
def test_a_volume_is_put_back_where_it_came_from(slices):
    stack, mask = scan()
    mask = mask[:slices]
    place = Place.around(mask, 8, 24)
    volume = place.fit(stack[:slices], -1.0)
    assert all(side % 8 == 0 and side >= 24 for side in volume.shape)
    assert torch.equal(place.put_back(volume, stack[:slices]), stack[:slices])
    changed = place.put_back(volume + 1, stack[:slices])
    inside = mask.flatten(1).any(1)
    assert torch.equal(changed[inside], stack[:slices][inside] + 1)
    assert torch.equal(changed[~inside], stack[:slices][~inside])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["heads.enabled=false"], "method volumetric needs heads.enabled=true"),
        (["data.slice_spacing_mm=null"], "needs data.slice_spacing_mm=2.5"),
        (["diffusion.noise=simplex"], "needs diffusion.noise=gaussian or none"),
        (["infer.orientations=[axial, coronal]"], r"needs infer.orientations=\[axial\]"),
        (["infer.together=2"], "needs infer.context=slice and infer.together=1"),
        (["heads.slices=60"], "heads.slices 60 must be a multiple of 4"),
        (["structure.kinds=[t2i]", "structure.guides=[edges]"], "structure goes with method maediff"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        config(*overrides)
