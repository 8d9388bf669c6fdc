"""The MAE condition and the reconstructor."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import log_loss

from maediff.config import TrainConfig, load_config, presets
from maediff.diffusion.noise import generator
from maediff.methods.maediff.mae import gather_visible, sincos_position
from maediff.methods.maediff.partition import visible_cells, window_masks
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.objective import Noised, gate_loss
from maediff.training.loop import Losses
from maediff.training.stream import SampleStream

CONDITIONS = ("residual", "cross_attention", "none")


def batch(corners=((0, 0), (4, 9), (16, 16)), window=16, side=32):
    image = torch.randn(len(corners), 1, side, side, generator=generator("image"))
    return image, window_masks(torch.tensor(corners), window, (side, side)), torch.tensor([5, 300, 900])[: len(corners)]


@torch.inference_mode()
def features(network, image, mask):
    return network.mae((1 - mask) * image, visible_cells(mask, network.cell))


def test_the_encoder_sees_visible_cells_only(tiny, random_network):
    network = random_network(tiny())
    image, mask, _ = batch()
    cells = visible_cells(mask, 8)
    hidden = (~cells).float().repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert bool((hidden >= mask).all())
    assert bool((hidden > mask).any())  # cells that the window only touches are hidden whole
    with torch.inference_mode():
        before = network.mae(image, cells)
        assert torch.equal(before, network.mae(image + 7 * hidden, cells))
    for b in range(len(image)):
        pixel = (hidden[b, 0] == 0).nonzero()[0].tolist()
        changed = image.clone()
        changed[b, 0, pixel[0], pixel[1]] += 1
        with torch.inference_mode():
            difference = (network.mae(changed, cells) - before).abs().flatten(1).amax(1)
        assert difference[b] > 1e-4
        assert difference.sum() == difference[b]  # images of a batch do not mix


def test_a_visible_cell_reaches_features_of_hidden_cells(tiny, random_network):
    network = random_network(tiny())
    image, mask, _ = batch()
    cells = visible_cells(mask, 8)
    changed = torch.where(mask == 0, image + 1, image)
    difference = (features(network, changed, mask) - features(network, image, mask)).abs().amax(1)
    assert bool((difference[~cells] > 1e-5).all())


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.inference_mode()
def test_a_batch_equals_each_image_alone(tiny, random_network, condition):
    network = random_network(tiny(f"model.condition={condition}"))
    image, mask, t = batch()
    counts = visible_cells(mask, 8).flatten(1).sum(1)
    assert len(set(counts.tolist())) > 1  # ragged, so that padding is at work
    together = network(image, mask, t).prediction
    for b in range(len(image)):
        alone = network(image[b : b + 1], mask[b : b + 1], t[b : b + 1]).prediction
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS)
@torch.inference_mode()
def test_no_visible_cell_at_all_works(tiny, random_network, condition):
    network = random_network(tiny(f"model.condition={condition}"))
    image, mask, t = batch()
    mask = mask.clone()
    mask[0] = 1
    together = network(image, mask, t).prediction
    assert bool(torch.isfinite(together).all())
    alone = network(image[:1], mask[:1], t[:1]).prediction  # here the encoder gets the global token only
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_shapes(tiny, condition, patch):
    config = tiny(f"model.condition={condition}", f"model.patch={patch}")
    network = Reconstructor(config)
    image, mask, t = batch()
    prediction, mae_image, _ = network(image, mask, t)
    assert prediction.shape == image.shape
    assert (mae_image is None) == (condition == "none")
    assert mae_image is None or mae_image.shape == image.shape
    wide = network.eval()(torch.zeros(2, 1, 32, 48), torch.zeros(2, 1, 32, 48), torch.tensor([1, 2]))
    assert wide.prediction.shape == (2, 1, 32, 48)
    assert wide.mae_image is None


def test_without_a_weight_there_is_no_mae_image(tiny):
    config = tiny("model.mae_loss_weight=0")
    assert Reconstructor(config)(*batch()).mae_image is None


@torch.inference_mode()
def test_fresh_adapters_leave_the_unet_as_it_was(tiny, random_network):
    plain = random_network(tiny("model.condition=none"))
    conditioned = Reconstructor(tiny()).eval()
    conditioned.unet.load_state_dict(plain.unet.state_dict())
    image, mask, t = batch()
    assert torch.equal(conditioned(image, mask, t).prediction, plain(image, mask, t).prediction)


@torch.inference_mode()
@pytest.mark.parametrize("condition", ["residual", "cross_attention"])
def test_the_condition_reaches_the_prediction(tiny, random_network, condition):
    network = random_network(tiny(f"model.condition={condition}"))
    image, mask, t = batch()
    before = network(image, mask, t).prediction
    network.mae.mask_token += torch.randn(network.mae.mask_token.shape, generator=generator(0))
    assert float((network(image, mask, t).prediction - before).abs().max()) > 1e-4


@torch.inference_mode()
def test_mask_and_timestep_reach_the_prediction(tiny, random_network):
    network = random_network(tiny("model.condition=none"))
    image, mask, t = batch()
    before = network(image, mask, t).prediction
    assert not torch.equal(before, network(image, 1 - mask, t).prediction)
    assert not torch.equal(before, network(image, mask, t + 50).prediction)


@torch.inference_mode()
def test_without_its_channel_the_mask_tells_only_which_cells_the_autoencoder_sees(tiny, random_network):
    image, mask, t = batch()
    alone = random_network(tiny("model.condition=none", "model.mask_channel=false"))
    assert torch.equal(alone(image, mask, t).prediction, alone(image, 1 - mask, t).prediction)
    network = random_network(tiny("model.mask_channel=false"))
    before = network(image, mask, t).prediction
    assert not torch.equal(before, network(image, 1 - mask, t).prediction)
    within = torch.zeros_like(mask)
    within[:, :, 8:16, 8:16] = 1  # one cell, and half of it
    half = within.clone()
    half[:, :, 12:16] = 0
    assert torch.equal(
        network(image, within, t, network.features(image, within)).prediction,
        network(image, half, t, network.features(image, within)).prediction,
    )


@pytest.mark.parametrize(("cell", "wanted"), [(8, {"1", "2"}), (2, {"0", "1", "2"}), (32, {"1", "2"})])
def test_features_enter_at_levels_that_match_the_cells(tiny, cell, wanted):
    network = Reconstructor(tiny(f"partition.cell={cell}"))
    assert set(network.adapters) == wanted


def test_packing_tokens_keeps_order_and_marks_padding():
    tokens = torch.arange(8.0).reshape(2, 4, 1)
    seen = torch.tensor([[False, True, False, True], [False, False, True, False]])
    packed, order, padding = gather_visible(tokens, seen)
    assert packed[0].flatten().tolist() == [1, 3]
    assert packed[1, 0].item() == 6
    assert order[:, 0].tolist() == [1, 2]
    assert padding.tolist() == [[False, False], [False, True]]


def test_positions_differ_and_are_bounded():
    table = sincos_position((4, 6), 16)
    assert table.shape == (24, 16)
    assert float(table.abs().max()) <= 1
    assert float(torch.cdist(table, table).add(torch.eye(24) * 9).min()) > 0.1


def test_positions_of_a_finer_grid_agree_with_those_of_the_cells():
    """The middle of each cell's three by three places is its centre."""
    fine = sincos_position((12, 18), 16, 1 / 3).reshape(12, 18, 16)
    torch.testing.assert_close(fine[1::3, 1::3].flatten(0, 1), sincos_position((4, 6), 16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", presets())
def test_every_preset_steps_once(name, discs):
    """Real widths and depths; slices of 32 pixels, so that the large ones take seconds."""
    settings = ["data.size=[32, 32]", "heads.slices=16", "partition.window=16", "partition.stride=8"]
    config = load_config(name, settings)
    torch.manual_seed(0)
    losses = Losses(config)
    optimizer = torch.optim.AdamW(losses.parameters(), config.train.lr)
    stream = SampleStream(discs(), config, 2, augmented=True)
    samples = {key: value[None] for key, value in stream[0].items()}
    if len(config.shape) == 3:
        samples = {
            key: value[:, :, None].repeat(1, 1, 16, 1, 1) if value.ndim > 1 else value for key, value in samples.items()
        }
    loss, mae_loss = losses(samples)
    (loss + config.model.mae_loss_weight * mae_loss).backward()
    gradients = [p.grad for p in losses.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool((g != 0).any()) for g in gradients)
    before = [p.detach().clone() for p in losses.network.unet.out.parameters()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, losses.network.unet.out.parameters(), strict=True))
    assert bool(torch.isfinite(loss))


def test_a_closed_gate_returns_the_image_and_an_open_one_the_whole_change(tiny, random_network):
    network = random_network(tiny("diffusion.objective=x0", "model.input_skip=true", "model.gate=true"))
    image, mask, t = batch()
    last = network.unet.out[-1].conv
    found = {}
    with torch.inference_mode():
        for bias in (-100.0, 0.0, 100.0):
            last.bias[len(last.bias) // 2 :] = bias
            found[bias] = network(image, mask, t)
    change = found[100.0].prediction - image
    assert torch.equal(found[-100.0].prediction, image)
    assert change.abs().max() > 0.01
    share = torch.sigmoid(found[0.0].gate)
    torch.testing.assert_close(found[0.0].prediction - image, share * change, rtol=1e-4, atol=1e-5)


def test_the_gates_loss_is_scikit_learns_log_loss_over_the_brain_and_over_the_lesion():
    image = torch.zeros(1, 1, 8, 8)
    clean, mask = image.clone(), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1  # the window
    clean[..., 6:] = -1  # background
    clean[0, 0, 2, 1:3] = -0.5  # a lesion in the window
    clean[0, 0, 5, 5] = 0.05  # a change that nobody sees
    logits = torch.randn(1, 1, 8, 8, generator=generator("logits"))
    noised = Noised(image, mask, clean, torch.ones(1), torch.ones(1))
    found = gate_loss(logits, noised, image, TrainConfig(lesion_weight=2.0, outside_weight=0.25))
    weights = torch.where(mask > 0, 1.0, 0.25 * (clean > -1)).flatten()
    seen = (clean.flatten() == -0.5).numpy()
    share = torch.sigmoid(logits).flatten().double().numpy()
    lesion = log_loss(seen[seen], share[seen], labels=[False, True])
    assert float(found) == pytest.approx(log_loss(seen, share, sample_weight=weights) + 2 * lesion, rel=1e-5)
