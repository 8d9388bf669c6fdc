from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.config import override, parse_config
from maediff.data.slices import SliceSet
from maediff.methods.build import build_network
from maediff.model_folder import save_model

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way

TINY = {
    "data": {"size": [32, 32], "spacing_mm": 6.0, "align": "world"},
    "partition": {"window": 16, "stride": 8, "cell": 8},
    "diffusion": {"test_timesteps": [300]},
    "model": {
        "channels": [8, 16],
        "num_res_blocks": 1,
        "attention": [False, False],
        "norm_groups": 4,
        "mae_width": 16,
        "mae_depth": 1,
        "mae_heads": 2,
        "mae_decoder_depth": 1,
    },
    "train": {"max_steps": 6, "batch_size": 8, "lr": 2e-3, "warmup_steps": 2, "ema_decay": 0.9, "precision": "fp32"}
    | {"val_every": 3, "checkpoint_every": 2, "log_every": 1},
    "lesions": {"share": 0.5},
    "infer": {"precision": "fp32"},
}


@pytest.fixture(scope="session")
def benchmarks_importable():
    """Let tests import `benchmarks` from the checkout: they are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
        yield


@pytest.fixture(scope="session")
def tiny():
    """Make the smallest configuration, with overrides such as "train.seed=3"."""
    base = parse_config(TINY)
    return lambda *overrides: override(base, overrides)


@pytest.fixture(scope="session")
def random_network():
    """Make a network of a configuration with random weights everywhere; MONAI and ControlNet start some at zero."""

    def make(config, seed=0):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            network = build_network(config).eval()
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        return network

    return make


@pytest.fixture(scope="session")
def make_model(random_network):
    """Save a model folder with random weights."""

    def make(folder, config, calibration=None, seed=0):
        save_model(folder, random_network(config, seed).state_dict(), config, calibration, "# A random model\n")
        return folder

    return make


@pytest.fixture(scope="session")
def discs():
    """Make a set of slices: textured discs on -1, of several subjects; with neighbours, all slices of one scan."""

    def make(count=12, side=32, seed=0, neighbours=0):
        rng = np.random.default_rng(seed)
        rows, columns = np.indices((side, side)) - (side - 1) / 2
        masks = np.stack([rows**2 + columns**2 < rng.uniform(0.3, 0.42) ** 2 * side**2 for _ in range(count)])
        texture = np.cumsum(rng.normal(0, 0.1, (count, side, side)), axis=2)
        images = np.where(masks, np.clip(texture, -0.8, 1.2), -1).astype(np.float16)
        places = np.arange(count)[:, None] + np.array([0, *range(-neighbours, 0), *range(1, neighbours + 1)])
        places[(places < 0) | (places >= count)] = -1
        subjects = tuple(f"s{k // 4}" for k in range(count))
        return SliceSet(images, masks, subjects, 0, (), places if neighbours else None)

    return make


@pytest.fixture(scope="session")
def make_scan():
    """Make a NIfTI image of one and the same ellipsoid brain in world space, sampled by any affine."""

    def make(affine, shape, codes=(1, 1), seed=0):
        affine = np.asarray(affine, float)
        voxels = np.moveaxis(np.indices(shape), 0, -1)
        x, y, z = np.moveaxis(voxels @ affine[:3, :3].T + affine[:3, 3], -1, 0)
        inside = (x / 60) ** 2 + (y / 75) ** 2 + (z / 50) ** 2 < 1
        phase = np.random.default_rng(seed).uniform(0, 3)
        tissue = 500 + 120 * np.sin(x / 17 + phase) + 90 * np.cos(y / 23) + 60 * np.sin(z / 19)
        image = nib.Nifti1Image(np.where(inside, tissue, 0).astype(np.float32), affine)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        image.header.set_xyzt_units("mm")
        return image

    return make


@pytest.fixture
def cohort(tmp_path):
    """An infer output folder of five small scans (one failed) and its reference table, as files."""
    rng = np.random.default_rng(5)
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    affine[:3, 3] = [20, 15, -10]
    shape, threshold = (16, 14, 10), 0.6
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    out = tmp_path / "out"
    out.mkdir()

    def save(path, data):
        nib.save(nib.Nifti1Image(data, affine), path)

    save(tmp_path / "brain.nii.gz", brain.astype(np.uint8))
    scans = {}
    rows = ["image,mask,label,subject,lesion"]
    table = ["case\tstatus\tscore\tanomalous_volume_ml\tseconds\tmessage"]
    for case, kind in (("a_T2w", "tumour"), ("b_T2w", "ms"), ("c_T2w", ""), ("d_T2w", "")):
        label = np.zeros(shape, bool)
        if kind:
            label[4:7, 5:8, 3:6] = True
        anomaly = np.where(brain, rng.gamma(2.0, 0.1, shape) + 0.4 * label, 0).astype(np.float32)
        scan = np.where(brain, 100 + rng.normal(0, 10, shape), 0).astype(np.float32)
        save(tmp_path / f"{case}.nii.gz", scan)
        save(tmp_path / f"{case}_lesion.nii.gz", label.astype(np.uint8))
        save(out / f"{case}_anomaly.nii.gz", anomaly)
        save(out / f"{case}_reconstruction.nii.gz", scan * 0.9)
        save(out / f"{case}_anomaly-mask.nii.gz", (anomaly > threshold).astype(np.uint8))
        score = float(anomaly.max())
        sidecar = {
            "case": case,
            "image": str(tmp_path / f"{case}.nii.gz"),
            "model_hash": "ab" * 32,
            "threshold": threshold,
            "score": score,
            "score_percentile": 0.75,
            "units": "residual",
            "notes": [],
        }
        (out / f"{case}_anomaly.json").write_text(json.dumps(sidecar))
        table.append(f"{case}\tdone\t{score}\t1.25\t2.0\t")
        rows.append(f"{case}.nii.gz,brain.nii.gz,{case + '_lesion.nii.gz' if kind else ''},{case[0]},{kind}")
        scans[case] = SimpleNamespace(map=anomaly, label=label, kind=kind)
    table.append("e_T2w\tfailed\t\t\t0.1\te_T2w.nii.gz holds <NaN>")
    (out / "cases.tsv").write_text("\n".join(table) + "\n")
    reference = tmp_path / "cases.csv"
    reference.write_text("\n".join(rows) + "\n")
    return SimpleNamespace(
        root=tmp_path, out=out, reference=reference, brain=brain, scans=scans, threshold=threshold, affine=affine
    )
