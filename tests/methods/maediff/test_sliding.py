"""Sliding-window reconstruction, with networks whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from maediff import diffusion
from maediff.diffusion.noise import generator
from maediff.methods.maediff import memory
from maediff.methods.maediff.layout import lay_out
from maediff.methods.maediff.partition import window_masks
from maediff.methods.maediff.sliding import SlidingReconstructor

CPU = torch.device("cpu")
STEP = 0.125
SAMPLERS = (
    ["diffusion.sampler=single_step"],
    ["diffusion.sampler=ddim", "diffusion.sampler_steps=3"],
    ["diffusion.sampler=ancestral", "diffusion.test_timesteps=[3]"],
)


def stack(count=3, side=32):
    """Slices that differ by a constant, and their brains."""
    base = torch.rand(side, side, generator=generator("base")) - 0.5
    slices = torch.stack([base + STEP * k for k in range(count)])
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    mask[:, 6:26, 8:24] = True
    return slices, mask


class StandIn:
    """Stands in for a network without features of the visible region."""

    def features(self, image, mask):
        return None


class Perfect(StandIn):
    """Knows the healthy slice: which one it is shows outside the window."""

    def __init__(self, config):
        self.base = stack()[0][0]
        self.config, self.windows = config, 0
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)

    def truth(self, perturbed, window):
        outside = (perturbed - self.base) * (1 - window)
        return self.base + (outside.sum((1, 2, 3)) / (1 - window).sum((1, 2, 3))).reshape(-1, 1, 1, 1)

    def __call__(self, perturbed, window, steps):
        self.windows += len(perturbed)
        x0 = self.truth(perturbed, window)
        abar_t, abar_s = (diffusion.level(self.abar, t, perturbed) for t in (steps, steps - 1))
        wanted = diffusion.target(self.config.diffusion.objective, perturbed, x0, abar_t, abar_s)
        return SimpleNamespace(prediction=wanted)


def engine(config, network):
    return SlidingReconstructor(network, config, CPU, bf16=False)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["eps", "x0", "v", "mu"])
@pytest.mark.parametrize("blend", ["uniform", "gaussian"])
def test_a_perfect_network_gives_back_the_slice(tiny, objective, blend, sampler):
    together = 1 if blend == "uniform" else 2
    config = tiny(f"diffusion.objective={objective}", f"infer.blend={blend}", f"infer.together={together}", *sampler)
    slices, mask = stack()
    healthy = engine(config, Perfect(config))(slices, mask, (0, "scan"))
    assert healthy.deviation is None
    torch.testing.assert_close(healthy.mean, slices, rtol=0, atol=2e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_result_does_not_depend_on_the_batch_size(tiny, random_network, sampler):
    slices, mask = stack(2)
    results = []
    for size in (1, 3, 64):
        config = tiny(f"infer.batch_size={size}", "partition.stride=16", *sampler)
        results.append(engine(config, random_network(config))(slices, mask, (0,)).mean)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-5)
    assert float((results[0] - slices).abs().max()) > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_slices_do_not_matter(tiny, random_network, sampler):
    """The noise depends on a slice's index, so slice 0 is compared with slice 0."""
    config = tiny(*sampler)
    slices, mask = stack()
    run = engine(config, random_network(config))
    whole = run(slices, mask, (0,)).mean
    alone = run(slices[:1], mask[:1], (0,)).mean
    order = [0, 2, 1]
    turned = run(slices[order], mask[order], (0,)).mean
    torch.testing.assert_close(alone[0], whole[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(turned[0], whole[0], rtol=0, atol=1e-5)


def test_key_and_seed_decide_the_noise(tiny, random_network):
    config = tiny()
    slices, mask = stack(1)
    run = engine(config, random_network(config))
    first, again, other = (run(slices, mask, key).mean for key in ((0, "a"), (0, "a"), (1, "a")))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_without_brain_are_not_computed(tiny):
    config = tiny()
    slices, mask = stack()
    mask[1] = False
    mask[2] = False
    mask[2, 0, 0] = True  # one window only reaches this corner
    network = Perfect(config)
    healthy = engine(config, network)(slices, mask, (0,))
    layout = lay_out(mask, config)
    assert (layout.slice_index == 1).sum() == 0
    assert (layout.slice_index == 2).sum() == 1
    assert network.windows == len(layout) == 9 + 1
    assert layout.steps == 1
    assert torch.equal(healthy.mean[1], slices[1])  # as it came
    assert torch.equal(healthy.mean[2, 16:], slices[2, 16:])


def test_no_brain_at_all_is_no_work(tiny):
    network = Perfect(tiny())
    slices, mask = stack()
    healthy = engine(tiny(), network)(slices, torch.zeros_like(mask), (0,))
    assert network.windows == 0
    assert torch.equal(healthy.mean, slices)


def test_timesteps_are_averaged_and_their_spread_reported(tiny, random_network):
    slices, mask = stack()
    network = random_network(tiny())
    one, other = (engine(tiny(f"diffusion.test_timesteps=[{t}]"), network)(slices, mask, (0,)) for t in (200, 400))
    both = engine(tiny("diffusion.test_timesteps=[200, 400]"), network)(slices, mask, (0,))
    pair = torch.stack([one.mean, other.mean])
    torch.testing.assert_close(both.mean, pair.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(both.deviation, pair.std(0), rtol=1e-3, atol=1e-5)


def test_draws_differ_and_are_averaged(tiny, random_network):
    slices, mask = stack(2)
    mask[1] = False
    network, seen = random_network(tiny()), []
    config = tiny("infer.draws=3")
    healthy = engine(config, network)(slices, mask, (0,), lambda *counts: seen.append(counts))
    single = engine(tiny(), network)(slices, mask, (0,))
    assert float(healthy.deviation[0].max()) > 1e-4
    assert float(healthy.deviation[1].max()) == 0
    assert not torch.equal(healthy.mean, single.mean)
    assert lay_out(mask, config).steps == 3
    assert seen[-1] == (27, 27)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_perfect_network_leaves_no_spread(tiny):
    config = tiny("infer.draws=3")
    slices, mask = stack()
    healthy = engine(config, Perfect(config))(slices, mask, (0,))
    assert float(healthy.deviation.max()) < 1e-4


def test_overlaps_are_weighted_averages(tiny):
    """A network that answers with the window's number: every pixel is the weighted mean of its windows."""

    class Numbered(StandIn):
        calls = 0

        def __call__(self, perturbed, window, steps):
            self.calls += 1
            return SimpleNamespace(prediction=torch.full_like(perturbed, float(self.calls)))

    config = tiny("diffusion.objective=x0", "infer.batch_size=1", "infer.blend=uniform", "partition.stride=16")
    slices, mask = stack(1)
    mask[:] = True
    healthy = engine(config, Numbered())(slices, mask, (0,)).mean[0]
    assert healthy[::16, ::16].tolist() == [[1, 2], [3, 4]]
    config = tiny("diffusion.objective=x0", "infer.batch_size=1", "infer.blend=uniform")
    healthy = engine(config, Numbered())(slices, mask, (0,)).mean[0]
    assert healthy[4, 4] == 1
    assert healthy[4, 12] == 1.5  # windows 1 and 2
    assert healthy[12, 12] == pytest.approx((1 + 2 + 4 + 5) / 4)


@pytest.mark.parametrize("shape", [(32, 44), (40, 36)])
def test_a_grown_slice_need_not_be_a_multiple_of_the_cells(tiny, random_network, shape):
    config = tiny("partition.cell=16", "infer.draws=2", "partition.stride=16")
    slices = torch.rand(1, *shape, generator=generator(1))
    healthy = engine(config, random_network(config))(slices, torch.ones(1, *shape, dtype=torch.bool), (0,))
    assert healthy.mean.shape == healthy.deviation.shape == slices.shape
    assert bool((healthy.mean != slices).all())


class Pointwise(StandIn):
    """Looks at single pixels, so that it cannot notice how much of the slice it is shown."""

    def __init__(self):
        self.shapes = []

    def __call__(self, perturbed, window, steps):
        self.shapes.append(tuple(perturbed.shape[2:]))
        return SimpleNamespace(prediction=0.5 * perturbed + 0.25 * window)


CONTEXTS = ("brain", "0", "3", "16")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_less_context_changes_nothing_for_a_network_that_looks_at_pixels(tiny, context, sampler):
    slices, mask = stack()
    whole = engine(tiny(*sampler), Pointwise())(slices, mask, (0,)).mean
    network = Pointwise()
    less = engine(tiny(f"infer.context={context}", *sampler), network)(slices, mask, (0,)).mean
    torch.testing.assert_close(less[mask], whole[mask], rtol=0, atol=1e-5)
    assert max(rows * columns for rows, columns in network.shapes) <= 32 * 16  # the brain's box in steps of 8


def test_without_brain_around_it_the_context_is_the_window(tiny):
    slices, mask = stack(1)
    mask[:] = True
    network = Pointwise()
    engine(tiny("infer.context=0"), network)(slices, mask, (0,))
    assert set(network.shapes) == {(16, 16)}
    engine(tiny("infer.context=8"), network)(slices, mask, (0,))
    assert set(network.shapes) == {(16, 16), (24, 24), (24, 32), (32, 24), (32, 32)}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("context", ["slice", "brain", "3"])
def test_windows_that_share_a_pass_change_nothing_for_a_network_that_looks_at_pixels(tiny, context, sampler):
    slices, mask = stack()
    mask[1, 10:] = False
    base = (f"infer.context={context}", *sampler)
    alone, shared = Pointwise(), Pointwise()
    expected = engine(tiny(*base), alone)(slices, mask, (0,)).mean
    found = engine(tiny("infer.together=2", "infer.batch_size=1", *base), shared)(slices, mask, (0,)).mean
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-6)
    steps = lay_out(mask, tiny(*sampler)).steps
    assert len(shared.shapes) == (5 + 4 + 5) * steps  # 9 windows, 6, and 9: the middle ones fit with none


@pytest.mark.parametrize(("together", "most"), [(1, 1), (2, 2), (3, 3), (64, 8)])
def test_windows_of_a_pass_do_not_overlap_and_leave_half_of_the_slice(tiny, together, most):
    config = tiny(f"infer.together={together}", "partition.window=8", "partition.stride=4")
    _, mask = stack()
    mask[1, 10:] = False
    layout, single = lay_out(mask, config), lay_out(mask, tiny("partition.window=8", "partition.stride=4"))
    assert layout.corner_index.shape[1] == most
    found = []
    for index, corners in zip(layout.slice_index.tolist(), layout.corner_index.tolist(), strict=True):
        group = sorted(set(corners))
        hidden = window_masks(layout.corners[group], 8, (32, 32)).sum(0)
        assert hidden.max() == 1
        assert hidden.mean() <= 0.5
        found += [(index, one) for one in group]
    alone = zip(single.slice_index.tolist(), single.corner_index[:, 0].tolist(), strict=True)
    assert sorted(found) == sorted(alone)  # each once
    assert len(layout) <= 2 * len(single) / most


def test_where_no_two_windows_fit_nothing_is_shared(tiny, random_network):
    slices, mask = stack()
    base = ("partition.window=24", "partition.stride=8")
    network = random_network(tiny(*base))
    alone, shared = (engine(tiny(*base, f"infer.together={n}"), network)(slices, mask, (0,)).mean for n in (1, 4))
    assert torch.equal(alone, shared)


@pytest.mark.parametrize("condition", ["residual", "cross_attention", "none"])
@pytest.mark.parametrize(("setting", "brain_rows"), [("infer.context=8", 8), ("infer.together=2", 10)])
def test_with_less_context_or_shared_passes_other_slices_and_the_batch_size_do_not_matter(
    tiny, random_network, setting, brain_rows, condition
):
    slices, mask = stack()
    mask[1, brain_rows:] = False
    base = (setting, f"model.condition={condition}", "model.attention=[false, true]")
    network = random_network(tiny(*base))
    found = engine(tiny(*base), network)(slices, mask, (0,)).mean
    one_by_one = engine(tiny(*base, "infer.batch_size=1"), network)(slices, mask, (0,)).mean
    alone = engine(tiny(*base), network)(slices[:1], mask[:1], (0,)).mean
    torch.testing.assert_close(one_by_one, found, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone[0], found[0], rtol=0, atol=1e-5)
    without = engine(tiny(*base[1:]), network)(slices, mask, (0,)).mean
    assert float((without - found).abs().max()) > 1e-3  # a network that looks around notices


def test_the_condition_is_computed_once_for_all_steps_of_the_sampler(tiny, random_network, monkeypatch):
    config = tiny("diffusion.sampler=ddim", "diffusion.sampler_steps=3")
    slices, mask = stack(1)
    network, calls = random_network(config), []
    encode = network.mae.forward
    monkeypatch.setattr(network.mae, "forward", lambda *inputs: calls.append(len(inputs[0])) or encode(*inputs))
    engine(config, network)(slices, mask, (0,))
    assert sum(calls) == 9  # windows, not windows times steps


def test_bf16_stays_close(tiny, random_network):
    config = tiny()
    slices, mask = stack()
    network = random_network(config)
    exact = SlidingReconstructor(network, config, CPU, bf16=False)(slices, mask, (0,)).mean
    coarse = SlidingReconstructor(network, config, CPU, bf16=True)(slices, mask, (0,)).mean
    assert coarse.dtype == torch.float32
    assert float((coarse - exact).abs().mean()) < 0.05


def test_convolutions_in_bf16_are_what_autocast_makes_of_them(tiny, random_network):
    config = tiny()
    slices, mask = stack(1)
    run = SlidingReconstructor(random_network(config), config, CPU, bf16=True)
    ours = run(slices, mask, (0,)).mean
    assert run.network.unet.conv_in.conv.weight.dtype == torch.bfloat16
    run.network = random_network(config)
    assert torch.equal(ours, run(slices, mask, (0,)).mean)


class Greedy(StandIn):
    """Runs out of memory above a number of windows, as PyTorch's CPU allocator tells it."""

    def __init__(self, network, limit):
        self.network, self.limit, self.sizes = network, limit, []

    def __call__(self, perturbed, window, steps):
        self.sizes.append(len(perturbed))
        if len(perturbed) > self.limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried ...")
        return self.network(perturbed, window, steps)


def test_out_of_memory_halves_the_batch_and_goes_on(tiny, random_network, caplog):
    config = tiny("infer.batch_size=16")
    slices, mask = stack()
    network = random_network(config)
    greedy = Greedy(network, 5)
    run = engine(config, greedy)
    with caplog.at_level("WARNING", logger="maediff"):
        healthy = run(slices, mask, (0,)).mean
    torch.testing.assert_close(healthy, engine(config, network)(slices, mask, (0,)).mean, rtol=0, atol=1e-5)
    assert greedy.sizes == [16, 8, 4, 4, 4, 4, 4, 4, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 16 windows per pass; going on with 8",
        "out of memory with 8 windows per pass; going on with 4",
    ]
    run(slices, mask, (0,))
    assert greedy.sizes[9] == 4  # remembered


def test_one_window_that_does_not_fit_and_other_errors_are_raised(tiny, random_network):
    slices, mask = stack(1)
    config = tiny("infer.batch_size=2")
    with pytest.raises(RuntimeError, match="not enough memory"):
        engine(config, Greedy(random_network(config), 0))(slices, mask, (0,))

    class Broken(StandIn):
        def __call__(self, *_):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        engine(config, Broken())(slices, mask, (0,))


def test_the_batch_is_sized_to_memory(tiny, random_network, monkeypatch):
    config = tiny("infer.batch_size=auto")
    size = memory.window_bytes(config, (32, 32), bf16=False)
    assert memory.window_bytes(config, (32, 32), bf16=True) < size
    assert memory.window_bytes(config, (64, 32), bf16=False) == pytest.approx(2 * size, rel=1e-3)
    for free, windows in ((0, 1), (5 * size, 3), (10**12, 32), (None, 32)):
        monkeypatch.setattr(memory, "available_bytes", lambda _, free=free: free)
        assert memory.choose_batch(size, CPU) == windows
    monkeypatch.setattr(memory, "available_bytes", lambda _: 5 * size)
    slices, mask = stack()
    greedy = Greedy(random_network(config), 3)
    engine(config, greedy)(slices, mask, (0,))
    assert set(greedy.sizes) == {3}
