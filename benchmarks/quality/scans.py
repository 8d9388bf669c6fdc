"""Scans that no training has seen, real and synthetic, each with its brain, its truth and the sign of its lesions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common import data_folder
from maediff.config import HeadsConfig
from maediff.data.cases import find_cases
from maediff.diffusion.noise import generator
from maediff.heads.contrast import Kind
from maediff.heads.headset import HeadSet, read_head_set, split_heads
from maediff.heads.scan import draw_scan
from maediff.inference.predictor import Predictor
from maediff.scoring import Sign
from maediff.volume import Volume, from_image, read_mask, read_nifti
from maediff.working.contrast import LESION_SIGNS
from maediff.working.intensity import Scale

SETS = ("mslub", "lgg_flair", "lgg_others", "heads", "ixi_t1")
SIGNS: dict[str, Sign] = dict(LESION_SIGNS.items())
SYNTHETIC: tuple[tuple[Kind, str], ...] = (("t2", "tumour"), ("flair", "tumour"), ("t1", "tumour"), ("t2", "ms"))
SCANS_PER_KIND = 8
HELD_OUT = 0.1
"""Share of the label maps that no training sees."""
_TRIED = 4
"""Every fourth training patient of lgg_flair, sorted by name: the recipe of the packaged model was tried on them."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scan:
    """A scan with its brain and its truth, on its own voxel grid."""

    group: str
    name: str
    contrast: str
    volume: Volume
    brain: Mask
    label: Mask


def scans(name: str, data: Path, masks: Path | None = None, limit: int = 1000) -> Iterator[Scan]:
    """Read the scans of a set, one after another.

    Args:
        name: One of :data:`SETS`.
        data: Folder of real scans and label maps.
        masks: Brain masks of lgg_flair from elsewhere, under the same names.
        limit: Most scans of each kind and contrast.
    """
    if name == "heads":
        yield from _synthetic(data, limit)
        return
    gliomas = name.startswith("lgg_")
    folder = data_folder("lgg_flair" if gliomas else name, data)
    for channel in ("flair", "t2", "t1") if name == "mslub" else (None,):
        split = {"lgg_flair": "test", "lgg_others": "train"}.get(name)
        cases = find_cases(folder / "cases.csv", channel=channel, split=split)
        if name == "lgg_others":
            ordered = sorted(cases, key=lambda case: case.subject)
            cases = [case for index, case in enumerate(ordered) if index % _TRIED]
        for case in cases[:limit]:
            volume = read_nifti(case.image)
            mask = case.mask
            if gliomas and masks is not None:
                mask = masks / Path(str(case.mask)).name
            brain = read_mask(str(mask), volume, "brain mask")
            label = read_mask(case.label, volume, "label") if case.label else np.zeros_like(brain)
            contrast = channel or ("t1" if name == "ixi_t1" else "flair")
            group = f"{name} {channel} {case.subject}" if channel else name
            yield Scan(group, case.id, contrast, volume, brain, label)


def held_out(data: Path) -> HeadSet:
    """Read the label maps that no training sees, and the lesion masks that shape MS lesions."""
    _, paths = split_heads(data / "head_labels", HELD_OUT)
    shapes = data / "mslub_lesion_masks"
    return read_head_set(paths, HeadsConfig(white_matter_masks=str(shapes) if shapes.is_dir() else None))


def with_sign(predictor: Predictor, contrast: str) -> Predictor:
    """Tell a model the sign of the lesions on a contrast, which it then does not read from the scan."""
    score = predictor.config.score.model_copy(update={"sign": SIGNS[contrast]})
    return replace(predictor, config=predictor.config.model_copy(update={"score": score}))


def healthy_l1(scan: Scan, scale: Scale, reconstruction: npt.NDArray[np.float32]) -> float:
    """Average the absolute residual over healthy brain, in working units."""
    residual = np.abs(scan.volume.data - reconstruction)[scan.brain & ~scan.label]
    return float((residual * 2 / (scale.high - scale.low)).mean())


def _synthetic(data: Path, limit: int) -> Iterator[Scan]:
    """Draw scans of the label maps that no training sees, of all kinds of :data:`SYNTHETIC`."""
    import nibabel as nib

    source = held_out(data)
    for (kind, lesion), index in itertools.product(SYNTHETIC, range(min(SCANS_PER_KIND, limit))):
        rng = generator("zero-shot", kind, lesion, index)
        drawn = draw_scan(source.heads[index % len(source.heads)], source.masks, rng, kind=kind, lesion=lesion)
        volume = from_image(nib.nifti1.Nifti1Image(drawn.image, drawn.affine))
        yield Scan(f"heads {kind} {lesion}", f"{kind}-{lesion}-{index}", kind, volume, drawn.brain, drawn.lesion)
