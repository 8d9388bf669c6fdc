"""MAEDiff inside other libraries' pipelines: a MONAI dictionary transform and a callable for TorchIO subjects.

Importing this module imports MONAI; the callable for TorchIO needs TorchIO, which MAEDiff does not install.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.inference.result import AnomalyResult

MAPS = ("anomaly", "reconstruction", "anomaly_mask", "uncertainty")


class MAEDiffd(MapTransform):
    """MONAI dictionary transform: adds the maps of each scan under new keys.

    Each key holds a scan as ``LoadImaged(ensure_channel_first=True)`` reads it: a MetaTensor (1, X, Y, Z) with its
    affine. Added are ``<key>_anomaly``, ``<key>_reconstruction`` and, if the model has a threshold,
    ``<key>_anomaly_mask``, each a MetaTensor (1, X, Y, Z) on the scan's grid, and ``<key>_result``, the
    :class:`~maediff.AnomalyResult`.

    Args:
        keys: Keys of the scans.
        model: Model folder, name of a packaged model, or a loaded predictor.
        mask_key: Key of the brain mask, on the scans' grid; the non-zero voxels of a stripped scan if None.
        device: Where to compute, unless a predictor is given.
        seed: Seed of the noise.
        allow_missing_keys: Leave out scans that a dictionary does not hold.

    Example:
        >>> MAEDiffd("image", "phantom", device="cpu").keys
        ('image',)
    """

    def __init__(
        self,
        keys: KeysCollection,
        model: str | Path | Predictor,
        mask_key: Hashable | None = None,
        *,
        device: str = "auto",
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.predictor = model if isinstance(model, Predictor) else load_model(model, device)
        self.mask_key, self.seed = mask_key, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Score the scans of a dictionary.

        Raises:
            MAEDiffError: A scan or its mask cannot be used.
        """
        found = dict(data)
        mask = None if self.mask_key is None else found[self.mask_key]
        for key in self.key_iterator(found):
            result = self.predictor.predict(found[key], mask, self.seed)
            for name, tensor in _tensors(result).items():
                found[f"{key}_{name}"] = MetaTensor(tensor, affine=torch.from_numpy(result.volume.affine.copy()))
            found[f"{key}_result"] = result
        return found


class MAEDiffSubject:
    """Callable for TorchIO's ``Compose`` and ``SubjectsDataset``: adds the maps of an image to its subject.

    Added are ``<image>_anomaly`` and ``<image>_reconstruction`` as ScalarImage, ``<image>_anomaly_mask`` as LabelMap if
    the model has a threshold, and ``<image>_score``.

    Args:
        model: Model folder, name of a packaged model, or a loaded predictor.
        image: Name of the scan in the subject.
        mask: Name of the brain mask; the non-zero voxels of a stripped scan if None.
        device: Where to compute, unless a predictor is given.
        seed: Seed of the noise.
    """

    def __init__(
        self,
        model: str | Path | Predictor,
        image: str = "image",
        mask: str | None = None,
        *,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.predictor = model if isinstance(model, Predictor) else load_model(model, device)
        self.image, self.mask, self.seed = image, mask, seed

    def __call__(self, subject: Any) -> Any:
        """Score the image of a subject; returns a copy of the subject with the maps.

        Raises:
            MAEDiffError: The image or its mask cannot be used.
        """
        torchio = import_module("torchio")
        brain = None if self.mask is None else subject[self.mask]
        result = self.predictor.predict(subject[self.image], brain, self.seed)
        found = {name: subject[name] for name in subject}
        for name, tensor in _tensors(result).items():
            kind = torchio.LabelMap if name == "anomaly_mask" else torchio.ScalarImage
            found[f"{self.image}_{name}"] = kind(tensor=tensor, affine=result.volume.affine)
        return torchio.Subject(**found, **{f"{self.image}_score": result.score})


def _tensors(result: AnomalyResult) -> dict[str, torch.Tensor]:
    """Return the maps of a result as tensors (1, X, Y, Z)."""
    maps = {name: getattr(result, name) for name in MAPS}
    return {name: torch.from_numpy(data)[None] for name, data in maps.items() if data is not None}
