"""Pictures of the validation: their layout, what they show, and that drawing them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from maediff.methods.base import Healthy
from maediff.training.loop import fit
from maediff.training.pictures import Pictures, contact_sheet
from maediff.training.stream import SampleStream

CPU = torch.device("cpu")


class Half:
    """A stand-in for a network whose healthy slices are half the slices."""

    def engine(self, config, device, *, bf16):
        return lambda slices, mask, key: Healthy(slices / 2, None)


def grey(shares):
    return np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def test_columns_are_slices_and_rows_are_slice_reconstruction_and_residual():
    rng = np.random.default_rng(0)
    slices, healthy = rng.uniform(-1, 1.4, (2, 4, 6, 5)).astype(np.float32)
    residual = rng.uniform(0, 1.2, (4, 6, 5)).astype(np.float32)
    sheet = contact_sheet(slices, healthy, residual)
    assert sheet.shape == (3 * 5, 4 * 6)
    for row, (stack, low, width) in enumerate([(slices, -1, 2), (healthy, -1, 2), (residual, 0, 1)]):
        for column in range(4):
            tile = sheet[5 * row : 5 * (row + 1), 6 * column : 6 * (column + 1)]
            for x, y in [(0, 0), (5, 0), (2, 4)]:  # x runs to the right and y up
                assert tile[4 - y, x] == grey((stack[column, x, y] - low) / width)


@pytest.mark.parametrize("channels", ["data.channels=[]", "data.channels=[t1, t2]"])
def test_a_picture_shows_the_first_validation_samples_and_their_reconstruction(tiny, discs, tmp_path, channels):
    config = tiny(channels, "train.pictures=3")
    source = discs(8)
    if config.data.channels:
        source = type(source)(np.stack([source.images, source.images[::-1]], 1), source.masks, source.subjects, 0, ())
    picture = Pictures(source, config, tmp_path, 0).draw(Half(), CPU, 40)
    samples = [SampleStream(source, config, 3, augmented=False)[k]["image"].numpy() for k in range(3)]
    first = np.stack([sample[0] for sample in samples])
    residual = np.stack([np.abs(sample / 2).mean(0) for sample in samples])
    np.testing.assert_array_equal(picture, contact_sheet(first, first / 2, residual))
    with Image.open(tmp_path / "step-000040.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_a_picture_shows_slices_between_their_own_neighbours(tiny, discs, tmp_path):
    config = tiny("data.neighbours=2", "train.pictures=3")
    source = discs(8, neighbours=2)
    seen = []

    class Watched(Half):
        def engine(self, config, device, *, bf16):
            return lambda slices, mask, key: seen.append((slices, mask)) or Healthy(slices / 2, None)

    picture = Pictures(source, config, tmp_path, 0).draw(Watched(), CPU, 1)
    samples = [SampleStream(source, config, 3, augmented=False)[k] for k in range(3)]
    own = np.stack([sample["image"][0].numpy() for sample in samples])
    np.testing.assert_array_equal(picture, contact_sheet(own, own / 2, np.abs(own / 2)))
    ((slices, mask),) = seen
    for k, sample in enumerate(samples):
        block = slice(5 * k, 5 * k + 5)
        assert torch.equal(slices[block], sample["image"][[1, 2, 0, 3, 4]])
        assert mask[block].flatten(1).any(1).tolist() == [False, False, True, False, False]


def test_a_training_leaves_a_picture_per_validation_and_is_the_same_without(tiny, discs, tmp_path):
    data = discs(), discs(8, seed=1)
    drawn = fit(tiny(), *data, tmp_path / "drawn", device=CPU)
    plain = fit(tiny("train.pictures=0"), *data, tmp_path / "plain", device=CPU)
    assert sorted(path.name for path in (tmp_path / "drawn" / "pictures").iterdir()) == [
        "step-000003.png",
        "step-000006.png",
    ]
    assert not (tmp_path / "plain" / "pictures").exists()
    assert all(torch.equal(drawn.weights[name], plain.weights[name]) for name in drawn.weights)


def test_pictures_of_an_earlier_run_are_removed_and_those_of_a_resumed_one_stay(tiny, discs, tmp_path):
    for name in ("step-000002.png", "step-000004.png", "notes.png"):
        (tmp_path / name).write_bytes(b"")
    Pictures(discs(), tiny(), tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.png", "step-000002.png"]
