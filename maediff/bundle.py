"""Export a model as a MONAI Bundle, which MONAI's own ``bundle`` command verifies and runs.

The bundle contains the whole model folder and calls MAEDiff, so that its maps equal those of ``maediff infer``,
including preprocessing, calibration and native space. Layout::

    configs/metadata.json   inputs and outputs of the network, versions, intended use
    configs/inference.json  ``network_def`` and ``run``
    models/maediff/         the model folder, verified whenever it is loaded
    models/model.pt         the state of ``network_def`` (MONAI's specification asks for it; MAEDiff never reads it)
    docs/README.md          the model card
    docs/license.txt        licence of the weights
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maediff._version import __version__
from maediff.config import UNTRAINED, Config
from maediff.errors import ConfigError, OutputError
from maediff.extras import install_hint
from maediff.files import atomic_path, cannot_write, write_json, write_text
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.model_folder import model_files, resolve_model
from maediff.provenance import versions
from maediff.staging import CARD

SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Schema that `verify_metadata` downloads unless it is given a copy; MAEDiff itself downloads nothing."""

_USE = "Research use only: not a medical device, not for diagnosis or treatment."
_DESCRIPTION = (
    "Draws the healthy version of a brain MRI and maps where the scan differs from it, in the scan's own space."
)
_PAPER = (
    "Xu, Wang, Du. MAEDiff: Masked Autoencoder-enhanced Diffusion Models for Unsupervised Anomaly Detection in Brain "
    "Images. arXiv:2401.10561."
)


class HealthySlices(nn.Module):
    """The network of a model as MONAI sees it: it maps slices to their healthy versions.

    Args:
        model: Model folder.
    """

    def __init__(self, model: str | Path) -> None:
        super().__init__()
        predictor = load_model(model, "cpu")
        self.network, self.config = predictor.network, predictor.config

    def forward(self, slices: Tensor) -> Tensor:
        """Reconstruct scaled slices (B, 1, H, W), -1 outside the brain; its index seeds the noise of a slice."""
        reconstruct = self.network.engine(self.config, slices.device, bf16=False)
        images = slices.squeeze(1)
        return reconstruct(images, images > -1, (0, "")).mean.unsqueeze(1).to(slices.device)


def export_bundle(model: str | Path, out_dir: str | Path) -> Path:
    """Write a model as a MONAI Bundle.

    Args:
        model: Model folder, a training run or the name of a packaged model.
        out_dir: Folder to create; it must not exist yet, or be empty.

    Returns:
        ``out_dir``.

    Raises:
        ModelError: The model cannot be used.
        ConfigError: The method has no network, or the model takes several channels or neighbouring slices.
        OutputError: The folder is not empty or cannot be written.
    """
    folder, out_dir = resolve_model(model), Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise OutputError(f"{out_dir} is there already; choose a folder that does not exist yet or is empty")
    predictor = load_model(folder, "cpu")
    method = predictor.config.method
    if method in UNTRAINED:
        raise ConfigError(f"method {method!r} has no network for MONAI to verify and run; use `maediff infer` for it")
    if method == "volumetric":
        raise ConfigError("a volumetric model cannot be a MONAI bundle, whose network maps slices; use `maediff infer`")
    names, neighbours = predictor.config.data.channels, predictor.config.data.neighbours
    if neighbours:
        raise ConfigError(
            f"a model with data.neighbours={neighbours} cannot be a MONAI bundle, whose network maps single slices; "
            "use `maediff infer` for it"
        )
    if names:
        raise ConfigError(
            f"a model of the channels {', '.join(names)} cannot be a MONAI bundle; use `maediff infer` for it"
        )
    staging = out_dir.with_name(f".{out_dir.name}.{secrets.token_hex(4)}")
    try:
        _write(staging, folder, predictor)
        os.replace(staging, out_dir)
    except OSError as error:
        raise cannot_write(out_dir, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out_dir


def _write(bundle: Path, folder: Path, predictor: Predictor) -> None:
    copy = bundle / "models" / "maediff"
    copy.mkdir(parents=True)
    for name in model_files(folder):
        shutil.copyfile(folder / name, copy / name)
    with atomic_path(bundle / "models" / "model.pt") as temporary:
        torch.save(HealthySlices(copy).state_dict(), temporary)
    write_json(bundle / "configs" / "metadata.json", _metadata(predictor))
    write_json(bundle / "configs" / "inference.json", _inference())
    card = (folder / CARD).read_text(encoding="utf-8")
    write_text(bundle / "docs" / "README.md", card.rstrip() + _HOW_TO.replace("HINT", install_hint("bundle")))
    write_text(bundle / "docs" / "license.txt", _LICENCE)


def _inference() -> dict[str, Any]:
    return {
        "imports": ["$import maediff"],
        "bundle_root": ".",
        "model_dir": "$@bundle_root + '/models/maediff'",
        "dataset_dir": "$@bundle_root + '/dataset'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "auto",
        "seed": 0,
        "network_def": {"_target_": "maediff.bundle.HealthySlices", "model": "@model_dir"},
        "run": ["$maediff.infer(@model_dir, @dataset_dir, @output_dir, device=@device, seed=@seed)"],
    }


def _metadata(predictor: Predictor) -> dict[str, Any]:
    found = {name: version or "0" for name, version in versions().items()}
    needed = {name: found[name] for name in ("maediff", "nibabel", "scipy", "accelerate")}
    calibration = predictor.calibration
    return {
        "schema": SCHEMA_URL,
        "version": __version__,
        "changelog": {__version__: f"exported by MAEDiff from the model {predictor.model_hash}"},
        "monai_version": found["monai"],
        "pytorch_version": found["torch"],
        "numpy_version": found["numpy"],
        "required_packages_version": needed,
        "name": "MAEDiff",
        "task": "Unsupervised anomaly detection in brain MRI",
        "description": _DESCRIPTION,
        "authors": "The MAEDiff developers",
        "copyright": "See docs/license.txt",
        "data_source": "See docs/README.md",
        "data_type": "nibabel",
        "intended_use": _USE,
        "references": [_PAPER],
        "model_hash": predictor.model_hash,
        "calibration": None
        if calibration is None
        else {"threshold": calibration.threshold, "origin": calibration.origin},
        "network_data_format": _data_format(predictor.config),
    }


def _data_format(config: Config) -> dict[str, Any]:
    tensor = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": list(config.data.size),
        "dtype": "float32",
        "value_range": [-1, config.data.clip],
        "is_patch_data": False,
    }
    return {
        "inputs": {"image": tensor | {"channel_def": {"0": "scaled slice, -1 outside the brain"}}},
        "outputs": {"pred": tensor | {"channel_def": {"0": "healthy reconstruction of the slice"}}},
    }


_HOW_TO = """

## Running this bundle

It needs MAEDiff, and for MONAI's command line `HINT`. From this folder:

```
python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir OUT
```

`SCANS` is what `maediff infer -i` takes, and `OUT` gets what it writes. MONAI runs code that a bundle names: run only
bundles that you trust.
"""
_LICENCE = """The weights are under the licence that docs/README.md names in its first lines ("license"); "other" means
that whoever trained them has chosen none yet, and the terms of the training data apply. MAEDiff itself is under
Apache-2.0.
Research use only: not a medical device.
"""
