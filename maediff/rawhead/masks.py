"""Choose the brain mask of a raw scan, and check it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from maediff.errors import ConfigError, InputError
from maediff.rawhead import itk
from maediff.typing import BoolArray
from maediff.volume import Volume, read_mask, write_like
from maediff.working.brainmask import PLAUSIBLE_ML
from maediff.working.components import largest_component
from maediff.working.resample import index_map, resample

Method = Literal["given", "stripped", "extraction", "hd-bet", "synthstrip", "template"]
METHODS: tuple[Method, ...] = ("given", "stripped", "extraction", "hd-bet", "synthstrip", "template")

# The template's mask follows the cortex; brain masks usually hold the fluid around it too.
TEMPLATE_MARGIN_MM = 3.0
_HOLES, _SECOND_PART, _MIN_OVERLAP = 0.01, 0.02, 0.85


@dataclass(frozen=True)
class Tool:
    """A skull-stripping program of the user.

    Attributes:
        program: Its name on PATH.
        arguments: From (scan, folder) to the arguments that make it write ``mask`` in that folder.
        mask: Name of the mask it writes.
    """

    program: str
    arguments: Callable[[Path, Path], list[str]]
    mask: str


TOOLS: dict[str, Tool] = {
    "hd-bet": Tool(
        "hd-bet",
        lambda scan, folder: [
            *("-i", str(scan), "-o", str(folder / "brain.nii.gz"), "-device", "cpu", "--disable_tta"),
            *("--save_bet_mask", "--no_bet_image"),
        ],
        "brain_bet.nii.gz",
    ),
    "synthstrip": Tool(
        "mri_synthstrip", lambda scan, folder: ["-i", str(scan), "-m", str(folder / "mask.nii.gz")], "mask.nii.gz"
    ),
}


def choose_method(asked: str, *, given: bool, stripped: bool) -> Method:
    """Choose the source of the brain mask.

    ``auto`` takes the first available of given, stripped and extraction; the others must be requested.

    Raises:
        ConfigError: An unknown method, or one that this scan or machine does not have.
    """
    if asked == "auto":
        if given:
            return "given"
        return "stripped" if stripped else "extraction"
    for method in METHODS:
        if method == asked:
            break
    else:
        raise ConfigError(f"brain mask method {asked!r} does not exist; choose auto, {', '.join(METHODS)}")
    if method == "given" and not given:
        raise ConfigError(
            "no brain mask is given for this scan; add a mask column to the table or use --mask-from auto"
        )
    if method in TOOLS and not shutil.which(TOOLS[method].program):
        raise ConfigError(
            f"{TOOLS[method].program} is not on PATH; install it with its weights, or use --mask-from auto. "
            "MAEDiff downloads neither"
        )
    return method


def run_tool(method: str, volume: Volume) -> BoolArray:
    """Run the user's program to find the brain; it gets intensities and geometry only.

    Raises:
        InputError: It failed or wrote no mask.
    """
    tool = TOOLS[method]
    with tempfile.TemporaryDirectory(prefix="maediff-") as name:
        folder = Path(name)
        scan = write_like(folder / "scan.nii.gz", volume.data, volume)
        command = [tool.program, *tool.arguments(scan, folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / tool.mask).is_file():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise InputError(
                f"{tool.program} found no brain in {volume.name} (exit code {done.returncode}): "
                f"{said[-1] if said else 'it wrote no mask'}; use --mask-from template or give a mask"
            )
        return read_mask(folder / tool.mask, volume, "brain mask")


def template_mask(
    affine: Any, shape: tuple[int, int, int], to_scan: Any, margin_mm: float = TEMPLATE_MARGIN_MM
) -> BoolArray:
    """Lay the template's brain, widened by a margin, over a scan: approximate, by an affine map alone.

    Args:
        affine: Voxel index of the scan to RAS mm (4, 4).
        shape: Shape of the scan.
        to_scan: Template RAS mm to scan RAS mm (4, 4).
        margin_mm: How far beyond the template's brain, mm of the template.
    """
    atlas = itk.template()
    spacing = [itk.TEMPLATE_MM] * 3
    outside = ndimage.distance_transform_edt(~atlas.brain, sampling=spacing)
    distance = outside - ndimage.distance_transform_edt(atlas.brain, sampling=spacing)
    matrix = index_map(atlas.affine, np.linalg.inv(to_scan) @ affine)
    result: BoolArray = resample(distance, matrix, shape, fill=float(distance.max())) < margin_mm
    return result


def check_mask(mask: BoolArray, voxel_mm3: float, expected: BoolArray | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Check a brain mask by volume, holes, parts and overlap with the template's brain.

    Args:
        mask: Brain (X, Y, Z).
        voxel_mm3: Volume of a voxel, mm3.
        expected: The template's brain on the same voxels, or None if nothing was registered.

    Returns:
        Measurements, and warnings that say what to check.
    """
    size = int(np.count_nonzero(mask))
    if size == 0:
        return {"volume_ml": 0.0}, ("the brain mask is empty: give another mask",)
    main = largest_component(mask)
    holes = int(np.count_nonzero(main & ~mask)) / size
    loose = int(np.count_nonzero(mask & ~main)) / size
    volume_ml = size * voxel_mm3 / 1000
    facts: dict[str, Any] = {"volume_ml": volume_ml, "holes_share": holes, "loose_share": loose, "overlap": None}
    low, high = PLAUSIBLE_ML
    warnings = []
    if not low <= volume_ml <= high:
        warnings.append(
            f"the brain mask holds {volume_ml:.0f} ml; {low:g} to {high:g} ml is usual: check the mask and the spacing"
        )
    if holes > _HOLES:
        warnings.append(f"{holes:.0%} of the brain mask are holes: dark lesions or ventricles may be cut out")
    if loose > _SECOND_PART:
        warnings.append(f"{loose:.0%} of the brain mask lie apart from the brain: eyes or neck may be counted as brain")
    if expected is not None:
        overlap = 2 * int(np.count_nonzero(mask & expected)) / (size + int(np.count_nonzero(expected)))
        facts["overlap"] = overlap
        if overlap < _MIN_OVERLAP:
            warnings.append(
                f"the brain mask and the registered template agree poorly (Dice {overlap:.2f}, {_MIN_OVERLAP:g} is "
                "usual): one of the two is misplaced; look at the mask over the scan"
            )
    return facts, tuple(warnings)
