"""Synthetic slices, whole scans, and the stream that a training reads."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.config import load_config, override
from maediff.diffusion.noise import chance, generator, noise_field
from maediff.heads import sample
from maediff.heads.headset import read_head_set, split_heads
from maediff.heads.sample import Look, draw_slice
from maediff.heads.scan import draw_scan
from maediff.methods.foreign_anomalies import corrupt
from maediff.methods.maediff.partition import random_window, window_masks
from maediff.training.stream import HeadStream, sample_stream, severity

SHAPE = (48, 56)


def test_lesions_change_nothing_but_themselves(head, masks):
    """Healthy and lesioned slice share anatomy, contrast and noise."""
    changed = 0
    for seed in range(12):
        drawn = draw_slice([head], masks, SHAPE, 1.2, torch.Generator().manual_seed(seed))
        far = torch.nn.functional.max_pool2d(drawn.lesion[None, None], 13, 1, 6)[0, 0] == 0
        difference = (drawn.image - drawn.healthy).abs()
        assert float(difference[far].abs().sum()) < 1.0
        changed += bool(difference.max() > 0.05)
    assert changed > 5


def test_working_units(head):
    highest = []
    for seed in range(8):
        drawn = draw_slice([head], [], SHAPE, 1.2, torch.Generator().manual_seed(seed))
        assert drawn.image.min() >= -1
        assert drawn.image.max() <= 1.5
        assert (drawn.image[~drawn.brain] == -1).all()
        highest.append(float(drawn.healthy[drawn.brain].max()))
    assert max(highest) > 0.9  # the 99th percentile of the whole scan, which some slices do not reach


def test_in_some_scans_a_bright_lesion_is_the_last_percentile(head, monkeypatch):
    """Healthy tissue is darker there, though the slice itself may show no lesion."""

    def dark():
        highest = []
        for seed in range(120):
            rng = torch.Generator().manual_seed(seed)
            found = draw_slice([head], [], (48, 48), 2.0, rng, look=Look(lesions=False, random_share=0, kind="flair"))
            highest.append(float(found.healthy[found.brain].quantile(0.99)))
        return np.mean(np.array(highest) < 0.6)

    some = dark()
    monkeypatch.setattr(sample, "_BRIGHT_SHARE", 0.0)
    none = dark()
    assert none + 0.08 < some < none + 0.3


def test_some_brain_masks_hold_other_tissue_at_places(head, monkeypatch):
    """A mask that leaks holds all that it would hold otherwise, and the rest of it is as it was."""

    def masks(share):
        monkeypatch.setattr(sample, "_LEAK_SHARE", share)
        drawn = [draw_slice([head], [], SHAPE, 2.0, torch.Generator().manual_seed(seed)) for seed in range(24)]
        return torch.stack([one.brain for one in drawn])

    tight, leaking = masks(0.0), masks(1.0)
    assert not (tight & ~leaking).any()
    added = (leaking & ~tight).flatten(1).float().mean(1)  # of all pixels
    assert (added > 0.01).sum() > 6
    assert float(added.max()) < 0.5


def test_without_lesions_a_slice_is_healthy(head, masks):
    drawn = draw_slice([head], masks, SHAPE, 1.2, torch.Generator().manual_seed(0), look=Look(lesions=False))
    assert torch.equal(drawn.image, drawn.healthy)
    assert drawn.lesion.max() == 0


@pytest.mark.parametrize("lesion", ["tumour", "ms", None])
def test_scans_have_exact_truth(head, masks, lesion):
    drawn = draw_scan(head, masks, torch.Generator().manual_seed(4), kind="t2", lesion=lesion, spacing_mm=(2.0, 3.0))
    assert drawn.image.shape == drawn.brain.shape == drawn.lesion.shape
    assert (drawn.image[~drawn.brain] == 0).all()
    assert not drawn.lesion[~drawn.brain].any()
    assert drawn.lesion.any() == (lesion is not None)
    np.testing.assert_allclose(np.diag(drawn.affine), [2, 2, 3, 1])
    if lesion == "tumour":  # T2: brighter than the rest of the tissue
        tissue = drawn.image[drawn.brain & ~drawn.lesion]
        assert np.median(drawn.image[drawn.lesion]) > np.median(tissue)


def test_a_lesion_without_a_mask_is_refused(head, rng):
    with pytest.raises(ValueError, match="no lesion mask for stroke"):
        draw_scan(head, [], rng, kind="t1", lesion="stroke")
    with pytest.raises(ValueError, match="'cyst' is unknown; use tumour, ms or stroke"):
        draw_scan(head, [], rng, kind="t1", lesion="cyst")


@pytest.fixture
def config(mask_folder):
    return load_config(
        "heads",
        ["data.size=[48,64]", "partition.window=32", "partition.stride=16", f"heads.lesion_masks={mask_folder}"],
    )


@pytest.fixture
def source(head_folder, config):
    learned, _ = split_heads(head_folder, 0.3)
    return read_head_set(learned, config.heads)


def test_the_last_heads_are_held_out(head_folder):
    learned, held_out = split_heads(head_folder, 0.34)
    assert [path.name for path in held_out] == ["head_3.nii.gz"]
    assert len(learned) == 2


def test_a_copy_on_disk_gives_the_same_heads_and_a_damaged_one_is_read_again(head_folder, config, tmp_path):
    paths, _ = split_heads(head_folder, 0.3)
    first = read_head_set(paths[:1], config.heads, tmp_path)
    again = read_head_set(paths[:1], config.heads, tmp_path)
    assert torch.equal(first.heads[0].classes, again.heads[0].classes)
    next(tmp_path.glob("head-*.npz")).write_bytes(b"damaged")
    assert torch.equal(read_head_set(paths[:1], config.heads, tmp_path).heads[0].depth, first.heads[0].depth)


def test_sample_k_depends_on_seed_and_k_alone(source, config):
    stream, longer = (HeadStream(source, config, length, augmented=True) for length in (5, 9))
    first, second = stream[3], longer[3]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(stream[2]["clean"], first["clean"])
    validation = HeadStream(source, config, 5, augmented=False)[3]
    assert not torch.equal(validation["clean"], first["clean"])


def test_samples_have_the_shapes_of_a_training(source, config):
    sample = sample_stream(source, config, 1, augmented=True)[0]
    assert (
        sample["image"].shape == sample["clean"].shape == sample["noise"].shape == sample["mask"].shape == (1, 48, 64)
    )
    assert sample["mask"].sum() == 32 * 32
    first, last = config.diffusion.train_timesteps
    assert first <= int(sample["t"]) <= last


def test_severity_rises_with_the_timestep():
    assert severity(1, (1, 120)) == pytest.approx(0.4)
    assert severity(120, (1, 120)) == 1
    assert severity(7, (7, 7)) == 1
    assert severity(1000, (1, 120)) == 1  # a hidden patch


@pytest.mark.parametrize("method", ["maediff", "disyre"])
def test_training_from_label_maps(head_folder, tmp_path, method):
    from maediff import train

    overrides = [f"method={method}"]
    overrides += ["data.size=[32,32]", "data.spacing_mm=3.0", "partition.window=16", "partition.stride=16"]
    overrides += ["model.channels=[8,16]", "model.attention=[false,false]", "model.mae_width=16", "model.mae_depth=1"]
    overrides += ["train.max_steps=2", "train.batch_size=2", "train.val_every=2", "train.log_every=1"]
    model = train(load_config("heads", overrides), head_folder, tmp_path / "run", device="cpu")
    assert (model / "model.safetensors").is_file()
    assert "label maps of heads" in (model / "README.md").read_text()


def test_disyre_trains_on_healthy_slices_of_label_maps_with_its_own_anomalies(source, config):
    """The clean slice is as one drawn without lesions; the change lies within the brain and is bounded by a_t."""
    config = override(config, ["method=disyre", "heads.lesions=1"])
    stream = HeadStream(source, config, 8, augmented=True)
    last = config.diffusion.train_timesteps[1]
    for k in range(8):
        sample = stream[k]
        change = (sample["image"] - sample["clean"]).abs()
        assert 0 < float(change.max()) <= 2.5 * int(sample["t"]) / last
        assert not change[sample["clean"] == -1].gt(2.5 * int(sample["t"]) / last).any()
        assert torch.equal(sample["image"], stream[k]["image"])


@pytest.mark.parametrize("method", ["maediff", "disyre"])
def test_the_order_of_random_draws_is_fixed(source, config, method):
    """Timestep, whether there are lesions, orientation, slice; a method's own anomaly; where the window is; noise."""
    config = override(config, [f"method={method}", "heads.lesions=0.5"])
    stream = HeadStream(source, config, 6, augmented=True)
    first, last = config.diffusion.train_timesteps

    def slice_at(t, rng):
        return draw_slice(
            source.heads,
            source.masks,
            config.data.size,
            config.data.spacing_mm,
            rng,
            look=Look(
                severity=severity(t, (first, last)),
                faintest=config.heads.faintest,
                lesions=method == "maediff" and chance(0.5, rng),
                random_share=config.heads.random_contrasts,
                percentiles=config.data.percentiles,
                clip=config.data.clip,
            ),
            orientation=config.heads.orientations[torch.randint(len(config.heads.orientations), (), generator=rng)],
        )

    for k in range(6):
        rng = generator("train", config.train.seed, k)
        t = torch.randint(first, last + 1, (), generator=rng)
        drawn = slice_at(int(t), rng)
        image, clean = drawn.image[None], drawn.healthy[None]
        if method == "disyre":
            other = slice_at(int(t), rng)
            foreign = (other.healthy[None], other.brain[None])
            image = corrupt(clean, drawn.brain[None], foreign, rng, severity=int(t) / last, clip=config.data.clip)
        lesion = drawn.lesion > 0.2
        aim = lesion if chance(0.7, rng) and lesion.any() else drawn.brain
        window = window_masks(random_window(aim, 32, rng)[None], 32, (48, 64))[0]
        noise = noise_field(config.noise, (48, 64), rng)
        wanted = {"image": image, "clean": clean, "mask": window, "noise": noise, "t": t}
        sample = stream[k]
        assert all(torch.equal(sample[name], wanted[name]) for name in wanted)


def test_label_maps_of_two_grids_train_together(head_folder, write, labels, tmp_path, config):
    """Heads need not have one shape."""
    nib.save(nib.load(head_folder / "head_1.nii.gz"), tmp_path / "a.nii.gz")
    write(tmp_path / "b.nii.gz", labels[2:, 3:, 1:])
    heads = read_head_set(sorted(tmp_path.glob("*.nii.gz")), config.heads).heads
    assert heads[0].classes.shape != heads[1].classes.shape
    draw_slice(heads, [], SHAPE, 1.2, torch.Generator().manual_seed(0))
