"""The methods that MAEDiff is compared with: one protocol, and each does on a few slices what it is made to do."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff import diffusion
from maediff.config import METHODS, UNTRAINED, load_config, override, presets
from maediff.data.cases import Case
from maediff.data.healthy import healthy_scans
from maediff.data.slices import SliceSet
from maediff.data.synthesis import synthesise
from maediff.errors import ConfigError, GeometryError, InputError
from maediff.files import read_json
from maediff.inference.load import load_model
from maediff.jobs.infer import infer
from maediff.jobs.train import train
from maediff.methods.build import build_network
from maediff.methods.maediff.partition import window_masks
from maediff.methods.objective import gate_loss, perturb, whole
from maediff.methods.pddpm import nearest_windows
from maediff.training.loop import Losses, fit
from maediff.volume import check_common_space, read_nifti

CPU = torch.device("cpu")
TRAINED = [name for name in METHODS if name not in {*UNTRAINED, "volumetric"}]  # on slices
BASELINES = [name for name in TRAINED if name != "maediff"]
KEY = (0, "a")
LATENT = ("latent_diffusion", "conditioned_latent_diffusion")


@pytest.fixture(scope="module")
def blobs():
    """Four smooth brains of 32 pixels."""
    rng = np.random.default_rng(1)
    rows, columns = np.indices((32, 32)) - 15.5
    masks = np.repeat((rows**2 + columns**2 < 13**2)[None], 4, 0)
    waves = [
        0.4 * np.sin(rows / 5 + rng.uniform(0, 6)) + 0.4 * np.cos(columns / 4 + rng.uniform(0, 6)) for _ in range(4)
    ]
    return SliceSet(np.where(masks, waves, -1).astype(np.float16), masks, ("a", "a", "b", "b"), 0, ())


def tensors(slices):
    return torch.from_numpy(slices.images).float(), torch.from_numpy(slices.masks)


def seeded(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(config).eval()


def shaken(config):
    """Random weights everywhere; MONAI starts some at zero."""
    network = seeded(config)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    return network


# The configuration


def test_a_method_is_set_like_any_setting():
    assert load_config("tiny").method == "maediff"
    assert load_config("tiny", ["method=pddpm"]).method == "pddpm"
    with pytest.raises(ConfigError, match=r"method: .*'maediff', 'volumetric', 'intensity'.*got 'gan'"):
        load_config("tiny", ["method=gan"])
    with pytest.raises(ConfigError, match=r"did you mean method\?"):
        load_config("tiny", ["methods=ddpm"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=vae", "diffusion.noise=simplex"], "vae needs diffusion.noise gaussian"),
        (["diffusion.variance=learned", "diffusion.bound_weight=1"], "go with method ddpm"),
        (["method=ddpm", "diffusion.variance=learned"], "set diffusion.bound_weight"),
        (["method=pddpm", "train.windows=2"], "train.windows=2 does not go with method pddpm"),
        (["baselines.latent_channels=5"], "5 latent channels after 2 halvings"),
        (
            [
                "method=latent_diffusion",
                "data.size=[72,72]",
                "baselines.latent_levels=4",
                "baselines.latent_channels=64",
            ],
            "once it is padded",
        ),
        (["method=vae", "baselines.latent=8000"], "exceeds the 4032 pixels of a slice"),
        (["method=autoddpm", "baselines.repaint_timestep=2000"], "above timesteps"),
    ],
)
def test_impossible_combinations_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", overrides)


def test_the_noise_of_a_dae_is_coarse():
    assert load_config("tiny", ["method=dae"]).noise == "coarse"
    assert load_config("tiny", ["method=ddpm", "diffusion.noise=simplex"]).noise == "simplex"


def test_every_preset_makes_every_method():
    of_slices = [method for method in METHODS if method != "volumetric"]
    assert all(load_config(name, [f"method={method}"]).method == method for name in presets() for method in of_slices)


def test_only_its_own_preset_makes_the_volumetric_method():
    """It needs a grid of equal spacing and label maps, which no other preset has."""
    for name in presets():
        if name == "volumetric":
            assert load_config(name).method == name
            continue
        with pytest.raises(ConfigError, match="method volumetric needs"):
            load_config(name, ["method=volumetric"])


# The protocol


@pytest.mark.parametrize("method", TRAINED)
def test_reconstruction_does_not_depend_on_the_batch(tiny, discs, method):
    short = ["partition.stride=16", "diffusion.sampler=ancestral", "diffusion.test_timesteps=[2,3]"]
    config = tiny(f"method={method}", *short, "baselines.repaint_timestep=3", "baselines.repaint_rounds=2")
    network = shaken(config)
    if method == "autoddpm":
        network.suspect.fill_(0)
    images, masks = tensors(discs(3))
    many, again = (network.engine(config, CPU, bf16=False)(images, masks, (seed, "a")) for seed in (0, 1))
    single = override(config, ["infer.batch_size=1"])
    one = network.engine(single, CPU, bf16=False)(images, masks, (0, "a"))
    torch.testing.assert_close(one.mean, many.mean, rtol=1e-4, atol=1e-4)
    assert one.mean.shape == images.shape
    if method not in {"ae", "vae", "dae", "disyre"}:
        assert not torch.equal(again.mean, many.mean)
        assert (many.deviation > 0).any()


@pytest.mark.parametrize("method", ["dae", "ddpm", "cddpm", *LATENT, "autoddpm", "disyre", "pddpm"])
def test_larger_slices_are_padded_and_cut(tiny, discs, method):
    config = tiny(f"method={method}")
    images, masks = tensors(discs(2, side=41))
    found = shaken(config).engine(config, CPU, bf16=False)(images, masks, KEY).mean
    assert found.shape == images.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("method", ["ae", "vae"])
def test_a_dense_code_refuses_larger_slices(tiny, discs, method):
    config = tiny(f"method={method}")
    with pytest.raises(InputError, match=r"needs slices of \(44, 44\) pixels.*\(32, 32\) only"):
        shaken(config).engine(config, CPU, bf16=False)(*tensors(discs(1, side=41)), KEY)


def test_slices_without_brain_stay(tiny, discs):
    config = tiny("method=ddpm")
    images, masks = tensors(discs(3))
    masks[1] = False
    seen = []
    run = shaken(config).engine(config, CPU, bf16=False)
    found = run(images, masks, KEY, lambda done, of: seen.append((done, of)))
    assert torch.equal(found.mean[1], images[1])
    assert seen[-1] == (2, 2)


@pytest.mark.parametrize("method", ["intensity", "zscore"])
def test_a_baseline_without_a_network_neither_trains_nor_reconstructs(tiny, method):
    baseline = build_network(tiny(f"method={method}"))
    with pytest.raises(ConfigError, match="no network that reconstructs slices"):
        baseline.engine(tiny(f"method={method}"), CPU, bf16=False)
    with pytest.raises(ConfigError, match="no network to train"):
        baseline.losses({})


# Sanity: what was memorised has a map near zero


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_it_overfits_a_few_slices(tiny, blobs, tmp_path, method):
    steps = 250 if method in {"ddpm", "cddpm", "pddpm", "autoddpm"} else 400
    config = tiny(
        f"method={method}",
        f"train.max_steps={steps}",
        f"train.val_every={steps}",
        f"train.checkpoint_every={steps}",
        "train.lr=5e-3",
        "train.augment=false",
        "lesions.share=0",
        "diffusion.objective=x0",
        "diffusion.train_timesteps=[1,300]",
        "diffusion.test_timesteps=[100]",
        "baselines.latent=32",
        "baselines.noise_std=0.1",
        "partition.stride=16",
        "train.batch_size=4",
    )
    result = fit(config, blobs, blobs, tmp_path, device=CPU)
    network = build_network(config).eval()
    network.load_state_dict(result.weights)
    images, masks = tensors(blobs)
    spread = float((images[masks] - images[masks].mean()).abs().mean())
    known = network.engine(config, CPU, bf16=False)(images, masks, KEY).mean
    assert float((known - images)[masks].abs().mean()) < 0.25 * spread


# Each method's own law


def test_ddpm_with_oracle_noise_inverts_exactly(tiny, blobs):
    """Noise the scan, give the network's place to the true noise, walk back by any sampler: the scan returns."""
    images, masks = tensors(blobs)
    for sampler in ("single_step", "ddim"):
        config = tiny("method=ddpm", f"diffusion.sampler={sampler}", "diffusion.objective=eps")
        network = build_network(config).eval()

        def oracle(x_t, t, _, abar=network.abar):
            level = abar[t].reshape(-1, 1, 1, 1).to(x_t)
            return diffusion.eps_from_x0(x_t, images[:, None], level), None, None

        network.predict = oracle
        found = network.engine(config, CPU, bf16=False)(images, masks, KEY).mean
        torch.testing.assert_close(found, images, rtol=0, atol=1e-4)


def test_ancestral_sampling_with_the_true_image_returns_it(tiny, blobs):
    images, masks = tensors(blobs)
    for variance in ("posterior", "beta"):
        config = tiny("method=ddpm", "diffusion.sampler=ancestral", f"diffusion.variance={variance}")
        network = build_network(config).eval()
        network.estimate = lambda x, t, c: (images[:, None], None)
        found = network.engine(config, CPU, bf16=False)(images, masks, KEY).mean
        torch.testing.assert_close(found, images)


def test_pddpm_windows_lie_on_the_grid_and_its_network_sees_no_mask(tiny, discs):
    corners = torch.tensor([[0, 0], [3, 5], [9, 16], [16, 12], [11, 7]])
    found = nearest_windows(window_masks(corners, 16, (32, 32)), 16, 8)
    wanted = window_masks(torch.tensor([[0, 0], [0, 8], [8, 16], [16, 8], [8, 8]]), 16, (32, 32))
    assert torch.equal(found, wanted)
    config = tiny("method=pddpm")
    network = shaken(config)
    images, t = tensors(discs(2))[0][:, None], torch.tensor([5, 7])
    assert torch.equal(network(images, found[:2], t).prediction, network(images, 1 - found[:2], t).prediction)


def test_cddpm_depends_on_the_scan_and_ddpm_does_not(tiny, discs):
    images = tensors(discs(2))[0][:, None]
    for method, depends in (("cddpm", True), ("ddpm", False)):
        network = shaken(tiny(f"method={method}"))
        conditions = [network.condition(scan) for scan in (images, images.flip(0))]
        first, second = (network.predict(images, torch.tensor([9, 9]), condition)[0] for condition in conditions)
        assert torch.equal(first, second) != depends


def test_autoddpm_keeps_what_is_not_suspect(tiny, blobs):
    config = tiny("method=autoddpm", "baselines.repaint_timestep=3", "baselines.repaint_rounds=2")
    network = shaken(config)
    images, masks = tensors(blobs)
    run = network.engine(config, CPU, bf16=False)
    network.suspect.fill_(1e9)
    assert torch.equal(run(images, masks, KEY).mean, images)
    network.suspect.fill_(0.0)
    assert ((run(images, masks, KEY).mean - images)[masks] != 0).float().mean() > 0.9


def test_disyre_is_told_each_severity_once_and_averages_their_residuals(tiny, blobs):
    """Given a reconstruction that is off by t / 1000, above or below, the map is the mean of all t / 1000."""
    config = tiny("method=disyre", "diffusion.train_timesteps=[1, 1000]", "baselines.severities=4", "infer.draws=3")
    network = shaken(config)
    images, masks = tensors(blobs)
    told = []

    def restore(x, t):
        told.append(int(t[0]))
        return x + (t / 1000 * torch.where(t > 500, 1, -1))[:, None, None, None]

    network.net.forward = restore
    healthy = network.engine(config, CPU, bf16=False)(images, masks, KEY)
    assert told == [250, 500, 750, 1000]
    found = healthy.residual(images.numpy(), "abs")
    np.testing.assert_allclose(found[masks.numpy()], np.mean([0.25, 0.5, 0.75, 1.0]), atol=1e-6)
    np.testing.assert_allclose(healthy.residual(images.numpy(), "bright")[masks.numpy()], 0.75 / 4, atol=1e-6)
    assert not found[~masks.numpy()].any()
    np.testing.assert_allclose((healthy.mean - images)[masks], 0.25, atol=1e-6)


def test_disyre_sees_neither_noise_nor_windows_and_its_loss_is_the_squared_error(tiny, discs):
    network = shaken(tiny("method=disyre", "train.lesion_weight=3", "model.input_skip=true", "diffusion.objective=x0"))
    images = tensors(discs(3))[0][:, None]
    batch = {"image": images, "clean": images.flip(0), "t": torch.tensor([1, 5, 700])}
    restored = network.net(images, batch["t"])
    torch.testing.assert_close(network.losses(batch)[0], torch.nn.functional.mse_loss(restored, images.flip(0)))
    assert network.losses(batch)[1] == 0


def test_a_learned_variance_learns_from_the_bound_alone(tiny, discs):
    """The hybrid loss: the bound moves the share of the variance, and leaves the mean to the simple loss."""
    config = tiny("method=ddpm", "diffusion.variance=learned", "diffusion.bound_weight=0.001")
    losses = Losses(config)
    images = tensors(discs(3))[0][:, None]
    batch = {"image": images, "clean": images, "noise": torch.randn(images.shape), "t": torch.tensor([1, 5, 700])}
    gradients = {}
    for weight in (0.001, 1.0):
        losses.network.kind = config.diffusion.model_copy(update={"bound_weight": weight})
        losses.zero_grad()
        losses(batch)[0].backward()
        gradients[weight] = losses.network.net.unet.out[-1].conv.weight.grad.clone()
    mean, share = (torch.stack([g[k] for g in gradients.values()]) for k in (0, 1))
    torch.testing.assert_close(mean[0], mean[1])
    torch.testing.assert_close(1000 * share[0], share[1], rtol=1e-3, atol=1e-6)
    assert (share[1] != 0).any()


GATED = ("diffusion.objective=x0", "model.input_skip=true", "model.gate=true", "train.outside_weight=0.5")


@pytest.mark.parametrize("method", ["ddpm", "cddpm", "pddpm"])
def test_a_closed_gate_returns_the_noised_slice_and_an_open_one_the_whole_change(tiny, discs, method):
    config = tiny(f"method={method}", *GATED)
    network = shaken(config)
    images, t = tensors(discs(2))[0][:, None], torch.tensor([5, 7])
    last = network.net.unet.out[-1].conv
    found = {}
    with torch.inference_mode():
        for bias in (-100.0, 0.0, 100.0):
            last.bias[len(last.bias) // 2 :] = bias
            if method == "pddpm":
                found[bias] = network(images, whole(images), t)
            else:
                found[bias] = network.predict(images, t, network.condition(images))
    change = found[100.0][0] - images
    assert torch.equal(found[-100.0][0], images)
    assert change.abs().max() > 0.01
    torch.testing.assert_close(found[0.0][0] - images, torch.sigmoid(found[0.0][2]) * change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ddpm", "pddpm"])
def test_a_gate_learns_from_the_loss_that_maediffs_learns_from(tiny, discs, method):
    images = tensors(discs(3))[0][:, None]
    windows = window_masks(torch.tensor([[0, 8], [8, 8], [16, 0]]), 16, (32, 32))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    batch = {"image": images + 0.3 * windows, "clean": images, "noise": noise, "t": torch.tensor([3, 50, 700])}
    losses = {}
    for weight in (0.0, 0.5):
        config = tiny(f"method={method}", *GATED, f"train.gate_weight={weight}")
        network = shaken(config)
        losses[weight] = network.losses(batch | {"mask": windows})[0]
    noised = perturb(batch, windows if method == "pddpm" else whole(images), network.abar)
    if method == "pddpm":
        gate = network(noised.image, noised.mask, batch["t"]).gate
    else:
        gate = network.predict(noised.image, batch["t"], None)[2]
    expected = gate_loss(gate, noised, batch["image"], config.train)
    torch.testing.assert_close(losses[0.5] - losses[0.0], 0.5 * expected, rtol=1e-4, atol=1e-5)


# Whole jobs


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return synthesise(tmp_path_factory.mktemp("baselines"), subjects=10, lesions=("tumour",), seed=5, spacing_mm=4.0)


@pytest.mark.parametrize("method", ["intensity", "zscore", "ae", "ddpm", "pddpm", LATENT[1], "disyre"])
def test_train_calibrate_and_infer_are_the_same_commands(cohort, tmp_path, method):
    overrides = ("train.max_steps=2", "train.val_every=2", "train.precision=fp32", "infer.precision=fp32")
    config = load_config("quick", [f"method={method}", "data.size=[64,64]", "partition.stride=24", *overrides])
    model = train(config, cohort, tmp_path / "run", device="cpu")
    predictor = load_model(model, "cpu")
    assert predictor.config.method == method
    assert predictor.calibration.threshold > 0
    assert "condition `" not in (model / "README.md").read_text()
    summary = infer(model, cohort, tmp_path / "out", split="test", device="cpu")
    assert summary.failed == 0
    sidecar = next((tmp_path / "out").rglob("*_anomaly.json"), None) or next((tmp_path / "out").rglob("*anomaly*.json"))
    assert read_json(sidecar)["threshold"] == pytest.approx(predictor.calibration.threshold)
    with pytest.raises(ConfigError, match="change what the network was trained as"):
        load_model(model, "cpu", ("method=vae",))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_axial_slices_with_lesion_are_left_out_in_any_storage_order(tmp_path, axes):
    brain, label = np.zeros((2, 10, 12, 8), bool)
    brain[1:-1, 1:-1, 1:-1] = True
    label[4, 5, 3] = True
    affine = np.diag([4.0, 4.0, 6.0, 1.0])[:, [*axes, 3]]
    for name, data in (("scan", 100 * brain), ("brain", brain), ("label", label)):
        nib.save(nib.Nifti1Image(data.transpose(axes).astype(np.uint8), affine), tmp_path / f"{name}.nii")
    scan, mask, lesion = (tmp_path / f"{name}.nii" for name in ("scan", "brain", "label"))
    ((_, found),) = healthy_scans([Case("a", scan, mask, lesion, "a", None, None, "scan")])
    brain[:, :, 3] = False
    np.testing.assert_array_equal(found.transpose(np.argsort(axes)), brain)


def test_zscore_refuses_scans_without_a_common_space(cohort, tmp_path):
    scan = next(cohort.parent.rglob("*_T2w.nii.gz"))
    check_common_space(read_nifti(scan), "method zscore")
    image = nib.load(scan)
    for code in (1, 2):
        image.set_sform(image.affine, code)
        image.set_qform(image.affine, code)
        nib.save(image, tmp_path / "scan.nii.gz")
        with pytest.raises(GeometryError, match=r"codes \[.*\].*register them first"):
            check_common_space(read_nifti(tmp_path / "scan.nii.gz"), "method zscore")
