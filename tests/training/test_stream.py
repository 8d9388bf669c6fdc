"""The stream of training samples: sample k depends on the seed and on k alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from maediff.diffusion.noise import chance, generator, noise_field
from maediff.methods.ddpm import DDPM
from maediff.methods.foreign_anomalies import corrupt
from maediff.methods.maediff.partition import random_window, window_masks
from maediff.training.augment import augment
from maediff.training.pseudo_lesions import add_pseudo_lesions
from maediff.training.stream import SampleStream, Span


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("augmented", [True, False])
def test_a_sample_depends_on_its_number_alone(tiny, discs, augmented):
    short, long = (SampleStream(discs(), tiny(), n, augmented=augmented) for n in (8, 5000))
    wanted = [short[k] for k in range(8)]
    torch.manual_seed(123)
    for k in (5, 0, 7, 5):
        assert same(long[k], wanted[k])
    assert not torch.equal(wanted[0]["noise"], wanted[1]["noise"])


def test_loader_workers_see_the_same_samples(tiny, discs):
    stream = SampleStream(discs(), tiny(), 12, augmented=True)
    here = list(DataLoader(stream, 4, sampler=Span(4, 12)))
    there = list(DataLoader(stream, 4, sampler=Span(4, 12), num_workers=1))
    assert len(here) == len(there) == 2
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert torch.equal(here[0]["clean"][1], stream[5]["clean"])


def test_a_span_numbers_samples():
    assert list(Span(3, 6)) == [3, 4, 5]
    assert len(Span(3, 6)) == 3
    assert len(Span(6, 6)) == 0


def test_seeds_and_purposes_differ(tiny, discs):
    first = SampleStream(discs(), tiny(), 4, augmented=True)[0]
    assert not torch.equal(first["noise"], SampleStream(discs(), tiny("train.seed=1"), 4, augmented=True)[0]["noise"])
    assert not torch.equal(first["noise"], SampleStream(discs(), tiny(), 4, augmented=False)[0]["noise"])


def test_training_never_sees_the_noise_of_the_validation(tiny, discs):
    plain = tiny("train.augment=false")
    learn, judge = (SampleStream(discs(), plain, 8, augmented=augmented) for augmented in (True, False))
    assert not any(torch.equal(learn[k]["noise"], judge[k]["noise"]) for k in range(8))
    usual = SampleStream(discs(), tiny(), 8, augmented=False)
    assert all(same(judge[k], usual[k]) for k in range(8))


def test_samples_have_the_documented_form(tiny, discs):
    config = tiny("diffusion.train_timesteps=[20, 40]", "lesions.share=1")
    stream = SampleStream(discs(), config, 40, augmented=True)
    for k in range(40):
        sample = stream[k]
        assert {name: tuple(value.shape) for name, value in sample.items()} == {
            "image": (1, 32, 32),
            "clean": (1, 32, 32),
            "mask": (1, 32, 32),
            "noise": (1, 32, 32),
            "t": (),
        }
        assert 20 <= int(sample["t"]) <= 40
        assert sample["mask"].sum() == 16 * 16
        for name in ("image", "clean"):
            assert sample[name].dtype == torch.float32
            assert -1 <= float(sample[name].min()) <= float(sample[name].max()) <= config.data.clip
        assert bool(((sample["clean"] > -1) * sample["mask"]).any())  # the window holds brain


def test_pseudo_lesions_change_the_input_and_never_the_answer(tiny, discs):
    with_them, without = (SampleStream(discs(), tiny(f"lesions.share={share}"), 16, augmented=True) for share in (1, 0))
    for k in range(16):
        assert torch.equal(with_them[k]["clean"], without[k]["clean"])
        assert torch.equal(without[k]["image"], without[k]["clean"])
        assert not torch.equal(with_them[k]["image"], with_them[k]["clean"])


@pytest.mark.parametrize("augmented", [True, False])
def test_disyre_corrupts_every_sample_the_more_the_later_its_timestep(tiny, discs, augmented):
    settings = ("method=disyre", "lesions.share=1", "diffusion.train_timesteps=[1, 100]")
    stream = SampleStream(discs(), tiny(*settings), 60, augmented=augmented)
    samples = [stream[k] for k in range(60)]
    assert same(samples[7], SampleStream(discs(), tiny(*settings), 9, augmented=augmented)[7])
    changes = torch.stack([(sample["image"] - sample["clean"]).abs().amax() for sample in samples])
    times = torch.stack([sample["t"] for sample in samples])
    assert (changes > 0).all()
    assert changes[times <= 50].mean() < changes[times > 50].mean()
    assert (changes <= times / 100 * 2.5).all()  # a_t bounds what can change, of a range of 2.5


@pytest.mark.parametrize("method", ["maediff", "disyre"])
def test_the_order_of_random_draws_is_fixed(tiny, discs, method):
    """Slice, augmentation, window, pseudo-lesions, noise, timestep, then the anomaly of a method that brings its own.

    Another order would give every seed other samples, and a resumed run would go on with samples of another run.
    """
    config = tiny(f"method={method}", "lesions.share=0.5", "diffusion.train_timesteps=[1, 100]")
    slices = discs()
    images = torch.from_numpy(slices.images).float()[:, None]
    brains = torch.from_numpy(slices.masks)[:, None]
    stream = SampleStream(slices, config, 16, augmented=True)
    for k in range(16):
        rng = generator("train", config.train.seed, k)
        first = torch.randint(len(images), (), generator=rng)
        clean, brain = augment(images[first], brains[first], config.data.clip, rng)
        window = window_masks(random_window(brain[0], 16, rng)[None], 16, (32, 32))[0]
        image = clean
        if method == "maediff" and chance(0.5, rng):
            donor = images[torch.randint(len(images), (), generator=rng)]
            image = add_pseudo_lesions(clean, brain, donor, config.data.clip, rng, window=window, look=config.lesions)
        noise = noise_field("gaussian", (32, 32), rng, 1)
        t = torch.randint(1, 101, (), generator=rng)
        if method == "disyre":
            other = torch.randint(len(images), (), generator=rng)
            foreign = (images[other], brains[other])
            image = corrupt(clean, brain, foreign, rng, severity=int(t) / 100, clip=config.data.clip)
        assert same(stream[k], {"image": image, "clean": clean, "mask": window, "noise": noise, "t": t})


def test_a_share_of_the_patches_is_hidden_at_the_last_timestep(tiny, discs):
    def times(share):
        settings = ["diffusion.train_timesteps=[1, 100]", f"diffusion.hidden_share={share}"]
        stream = SampleStream(discs(), tiny(*settings), 60, augmented=True)
        return torch.stack([stream[k]["t"] for k in range(60)])

    assert (times(0) <= 100).all()
    assert (times(1) == 1000).all()
    mixed = times(0.5)
    assert set(mixed.tolist()) - {1000} <= set(range(1, 101))
    assert 18 <= int((mixed == 1000).sum()) <= 42  # of 60, three standard deviations


def test_several_windows_are_noised_together_and_pseudo_lesions_start_in_any(tiny, discs):
    one = SampleStream(discs(), tiny("partition.window=8"), 40, augmented=True)
    several = SampleStream(discs(), tiny("partition.window=8", "train.windows=4"), 40, augmented=True)
    areas = [int(stream[k]["mask"].sum()) for stream in (one, several) for k in range(40)]
    assert set(areas[:40]) == {64}
    assert min(areas[40:]) == 64
    assert 128 <= max(areas[40:]) <= 256


def test_any_method_may_bring_its_own_anomalies(tiny, discs, monkeypatch):
    """They replace pseudo-lesions; the timestep as a share of the last one is their severity."""

    def shifted(clean, brain, foreign, rng, *, severity, clip):
        assert foreign[0].shape == clean.shape
        assert clip == 1.5
        return clean + severity * brain

    monkeypatch.setattr(DDPM, "anomalies", staticmethod(shifted))
    config = tiny("method=ddpm", "lesions.share=1", "diffusion.train_timesteps=[1, 100]")
    stream = SampleStream(discs(), config, 8, augmented=True)
    for sample in (stream[k] for k in range(8)):
        brain = sample["clean"] > -1
        torch.testing.assert_close((sample["image"] - sample["clean"])[brain].mean(), sample["t"] / 100)


def test_validation_is_not_augmented(tiny, discs):
    slices = discs()
    stream = SampleStream(slices, tiny("lesions.share=0"), 6, augmented=False)
    images = torch.from_numpy(slices.images).float()
    for k in range(6):
        assert any(torch.equal(stream[k]["clean"][0], image) for image in images)
    plain = SampleStream(slices, tiny("train.augment=false", "lesions.share=0"), 6, augmented=True)
    assert any(torch.equal(plain[0]["clean"][0], image) for image in images)


# Neighbours


def test_neighbours_come_behind_the_slice_in_all_images(tiny, discs):
    config = tiny("data.neighbours=2", "lesions.share=0", "train.augment=false")
    slices = discs(5, neighbours=2)
    stream = SampleStream(slices, config, 30, augmented=True)
    images = torch.from_numpy(slices.images).float()
    beyond = 0
    for k in range(30):
        clean = stream[k]["clean"]
        assert clean.shape == stream[k]["image"].shape == stream[k]["noise"].shape == (5, 32, 32)
        (own,) = [index for index in range(5) if torch.equal(images[index], clean[0])]
        for found, offset in zip(clean[1:], config.data.offsets, strict=True):
            inside = 0 <= own + offset < 5
            beyond += not inside
            assert torch.equal(found, images[own + offset] if inside else torch.full((32, 32), -1.0))
    assert beyond > 10


def test_a_sample_with_neighbours_depends_on_its_number_alone(tiny, discs):
    config = tiny("data.neighbours=1", "lesions.share=1")
    short, long = (SampleStream(discs(neighbours=1), config, n, augmented=True) for n in (3, 500))
    assert all(same(short[k], long[k]) for k in (2, 0, 1))


def test_alone_by_name_is_alone(tiny, discs):
    """A table of places without neighbours gives the samples that no table gives."""
    named = replace(discs(), places=np.arange(12)[:, None])
    first, second = (SampleStream(source, tiny(), 6, augmented=True) for source in (named, discs()))
    assert all(same(first[k], second[k]) for k in range(6))


def test_slices_that_are_neighbours_only_are_never_trained_on(tiny, discs):
    slices = discs(5, neighbours=1)
    slices = replace(slices, places=slices.places[[1, 3]], subjects=("a", "a"))
    assert len(slices) == 2
    stream = SampleStream(
        slices, tiny("data.neighbours=1", "train.augment=false", "lesions.share=0"), 20, augmented=True
    )
    images = torch.from_numpy(slices.images).float()
    shown = {index for k in range(20) for index in range(5) if torch.equal(stream[k]["clean"][0], images[index])}
    assert shown == {1, 3}
