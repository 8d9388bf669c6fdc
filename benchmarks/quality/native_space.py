"""One real 3-D scan in four geometries: do the maps lie where the scan lies, and do they agree?

python -m benchmarks.quality.native_space --model MODEL --output DIR [--device cpu] [--json FILE]

The FLAIR of an MS patient (1 mm, MNI space) is scored as it is, again with another noise seed (how well two maps of the
*same* grid agree: no geometry can do better), flipped to LPI (exact: no interpolation), rotated by 15 degrees about two
axes (resampled on an oblique grid), and averaged to slices of 3 mm. The noise depends on the intensities of
the brain, so that the flipped scan has that of the original.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

import maediff
from benchmarks.common import Benchmark, data_folder, say, table
from benchmarks.quality.montage import Shown, write_montage
from maediff.data.cases import find_cases
from maediff.errors import InputError
from maediff.evaluation import voxel_metrics
from maediff.volume import read_mask, read_nifti

BENCHMARK = Benchmark(
    __file__, __doc__, page="docs/measured.md", results=("native_space.json", "native_space_phantom.json")
)
DEGREES = (15.0, 15.0)
SLICE_MM = 3.0
MARGIN_VOXELS = 3
_GEOMETRY = ("qform_code", "sform_code", "pixdim", "srow_x", "srow_y", "srow_z")  # and the quaternion
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
OUTPUTS = ("anomaly", "reconstruction", "anomaly-mask")
Affine = npt.NDArray[np.float64]
Data = npt.NDArray[Any]
_orientations: Any = nib.orientations  # without type hints upstream


@dataclass(frozen=True)
class Scan:
    """A scan with its masks on one grid.

    Attributes:
        image: Intensities (X, Y, Z).
        brain: Brain mask.
        lesion: Lesion mask.
        affine: Voxel to RAS mm (4, 4).
        codes: qform and sform code; a code of 0 leaves that transform out.
        dtype: Type on disk.
    """

    image: Data
    brain: Data
    lesion: Data
    affine: Affine
    codes: tuple[int, int]
    dtype: npt.DTypeLike = np.float32


@dataclass(frozen=True)
class Scored:
    """A scan with what MAEDiff made of it, arrays on the scan's grid."""

    scan: Scan
    anomaly: Data
    reconstruction: Data
    geometry: dict[str, bool]
    seconds: float
    notes: str

    @property
    def auprc(self) -> float:
        """AUPRC of the map in the brain."""
        return voxel_metrics(self.anomaly, self.scan.brain, self.scan.lesion, None).auprc


def read_scan(image: Path, brain: Path, lesion: Path) -> Scan:
    """Read a scan with its masks."""
    volume = read_nifti(image)
    codes = (int(volume.header["qform_code"]), int(volume.header["sform_code"]))
    masks = (read_mask(brain, volume, "brain mask"), read_mask(lesion, volume, "label"))
    return Scan(volume.data, masks[0], masks[1], volume.affine, codes, volume.header.get_data_dtype())


def flipped(scan: Scan, axcodes: str = "LPI") -> Scan:
    """Store the same voxels along other axes, exactly; only the qform is kept."""
    start, end = _orientations.io_orientation(scan.affine), _orientations.axcodes2ornt(tuple(axcodes))
    turn = _orientations.ornt_transform(start, end)
    affine = scan.affine @ _orientations.inv_ornt_aff(turn, scan.image.shape)

    def turned(part: Data) -> Data:
        return np.ascontiguousarray(_orientations.apply_orientation(part, turn))

    return Scan(turned(scan.image), turned(scan.brain), turned(scan.lesion), affine, (1, 0), scan.dtype)


def oblique(scan: Scan, degrees: tuple[float, float] = DEGREES) -> Scan:
    """Resample on a grid that is rotated about world x, then y, around the brain; both transforms, of other codes."""
    x, y = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rotated = np.eye(4)
    rotated[:3, :3] = about_y @ about_x @ scan.affine[:3, :3]
    corners = nib.affines.apply_affine(np.linalg.inv(rotated) @ scan.affine, _corners(scan.brain))
    low, high = np.floor(corners.min(0)) - MARGIN_VOXELS, np.ceil(corners.max(0)) + MARGIN_VOXELS
    rotated[:3, 3] = rotated[:3, :3] @ low
    shape = tuple(int(n) for n in high - low + 1)
    image = moved(scan.image, scan.affine, rotated, shape, order=3)
    masks = [moved(part, scan.affine, rotated, shape) >= 0.5 for part in (scan.brain, scan.lesion)]
    image = np.where(masks[0], np.clip(image, scan.image.min(), scan.image.max()), 0)  # cubic overshoot
    return Scan(image, masks[0], masks[1], rotated, (1, 2))


def thick(scan: Scan, slice_mm: float = SLICE_MM) -> Scan:
    """Average neighbouring slices, as a thick-slice acquisition does; both transforms kept as they were."""
    axis = int(np.abs(scan.affine[2, :3]).argmax())
    factor = max(1, round(slice_mm / float(np.linalg.norm(scan.affine[:3, axis]))))
    step, shift = np.ones(3), np.zeros(3)
    step[axis], shift[axis] = factor, (factor - 1) / 2
    scaling = np.diag([*step, 1.0])
    scaling[:3, 3] = shift
    image, brain, lesion = (_averaged(part, axis, factor) for part in (scan.image, scan.brain, scan.lesion))
    return Scan(np.where(brain >= 0.5, image, 0), brain >= 0.5, lesion >= 0.5, scan.affine @ scaling, scan.codes)


def moved(data: Data, affine: Affine, target: Affine, shape: tuple[int, ...], order: int = 1) -> Data:
    """Resample to another grid by the affines; zero outside."""
    matrix = np.linalg.inv(affine) @ target
    source = np.asarray(data, np.float32)
    result: Data = ndimage.affine_transform(source, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order)
    return result


def agreement(reference: Scored, other: Scored) -> float:
    """Correlate two maps on the reference's voxels that are brain in both (Pearson)."""
    shape = reference.anomaly.shape
    values = moved(other.anomaly, other.scan.affine, reference.scan.affine, shape)
    brain = moved(other.scan.brain, other.scan.affine, reference.scan.affine, shape, order=0) > 0
    inside = reference.scan.brain & brain
    return float(np.corrcoef(reference.anomaly[inside], values[inside])[0, 1])


def same_geometry(output: Path, scan: Path) -> bool:
    """Check whether an output overlays its scan exactly: shape, affine, qform, sform, both codes, voxel size."""
    ours, theirs = (nib.Nifti1Image.from_filename(path) for path in (output, scan))
    equal = all(_same_field(ours.header[name], theirs.header[name], name) for name in _GEOMETRY + _QUATERNION)
    return equal and ours.shape == theirs.shape and bool(np.array_equal(ours.affine, theirs.affine))


def save(scan: Scan, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a scan and its brain mask; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.nii.gz", folder / f"{name}_brainmask.nii.gz"
    for path, data, dtype in zip(paths, (scan.image, scan.brain), (scan.dtype, np.uint8), strict=True):
        image = nib.Nifti1Image(np.asarray(data).astype(dtype), scan.affine)
        image.header.set_xyzt_units("mm")
        image.header.set_qform(scan.affine if scan.codes[0] else None, scan.codes[0])
        image.header.set_sform(scan.affine if scan.codes[1] else None, scan.codes[1])
        nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)
    return paths


def infer(scan: Path, brain: Path, out: Path, options: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """Run ``maediff infer`` in this process on one file and read back what it wrote."""
    start = time.perf_counter()
    done = maediff.infer(
        options.model, scan, out, mask=brain, device=options.device, seed=seed, overrides=options.set, overwrite=True
    )
    seconds = time.perf_counter() - start
    if done.failed:
        raise InputError(f"{scan} failed: {done.cases[0].message}")
    stem = scan.name.removesuffix(".nii.gz")
    found = {kind: path for kind in OUTPUTS if (path := out / f"{stem}_{kind}.nii.gz").is_file()}
    geometry = {kind: same_geometry(path, scan) for kind, path in found.items()}
    arrays = {kind: read_nifti(found[kind]).data for kind in ("anomaly", "reconstruction")}
    return arrays | {"geometry": geometry, "seconds": seconds, "notes": done.cases[0].message}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score the scan and its variants; print, picture and return how they agree."""
    folder = data_folder("mslub", options.data)
    case = next((c for c in find_cases(folder, channel="flair") if c.stem == f"{options.patient}_flair"), None)
    if case is None or case.mask is None or case.label is None:
        raise InputError(f"{folder} has no FLAIR of {options.patient} with a brain and a lesion mask")
    original = read_scan(case.image, case.mask, case.label)
    variants = {"original": original, "another seed": original, "LPI": flipped(original)}
    variants |= {"oblique": oblique(original), f"1x1x{SLICE_MM:g} mm": thick(original)}
    scored: dict[str, Scored] = {}
    for name, scan in variants.items():
        place = options.output / name.replace(" ", "-")
        paths = (case.image, case.mask) if scan is original else save(scan, place / "scan", case.stem)
        found = infer(*paths, place, options, seed=int(name == "another seed"))
        scored[name] = Scored(scan=scan, **found)
        say(f"{name}: {scored[name].seconds:.0f} s")
    _montage(options.output / "native_space.png", scored)
    return _report(scored)


def _report(scored: dict[str, Scored]) -> dict[str, Any]:
    reference = scored["original"]
    results = {}
    for name, item in scored.items():
        results[name] = {
            "shape": list(item.scan.image.shape),
            "axes": "".join(nib.aff2axcodes(item.scan.affine)),
            "codes": list(item.scan.codes),
            "overlays_input": item.geometry,
            "correlation": agreement(reference, item),
            "auprc": item.auprc,
            "seconds": item.seconds,
            "notes": item.notes,
        }
    rows = [[name, *(_shown(values, key) for key in _COLUMNS)] for name, values in results.items()]
    print(table(["scan", *_COLUMNS], rows))
    print("codes: qform, sform; overlays: shape, affine, qform, sform and codes of every output equal the input's;")
    print("correlation: Pearson, brain voxels, map brought back to the original grid, with the original's map")
    return results


_COLUMNS = ("shape", "axes", "codes", "overlays_input", "correlation", "auprc", "seconds")


def _shown(values: dict[str, Any], key: str) -> Any:
    value = values[key]
    if key == "overlays_input":
        return "yes" if all(value.values()) else "NO: " + ", ".join(kind for kind, same in value.items() if not same)
    if key == "seconds":
        return f"{value:.1f}"
    return "x".join(map(str, value)) if key == "shape" else ", ".join(map(str, value)) if key == "codes" else value


def _montage(path: Path, scored: dict[str, Scored]) -> None:
    rows = []
    for name, item in scored.items():
        scan = item.scan
        rows.append(Shown(name, scan.affine, scan.image, item.reconstruction, item.anomaly, scan.brain, scan.lesion))
    reference = scored["original"]
    for name, item in list(scored.items())[2:]:
        shape, affine = reference.anomaly.shape, reference.scan.affine
        back = [moved(part, item.scan.affine, affine, shape) for part in (item.reconstruction, item.anomaly)]
        scan = reference.scan
        title = f"{name}, brought back"
        rows.append(Shown(title, affine, scan.image, back[0], back[1], scan.brain, scan.lesion))
    write_montage(path, rows, "One scan in several geometries, slice with most of the lesion")
    say(f"pictures in {path}")


def _same_field(ours: Data, theirs: Data, name: str) -> bool:
    if name == "pixdim":  # 4 and up are of axes that a map does not have
        ours, theirs = ours[:4], theirs[:4]
    return bool(np.array_equal(ours, theirs))


def _corners(mask: Data) -> npt.NDArray[np.float64]:
    """Corners of a mask's bounding box, (8, 3)."""
    voxels = np.argwhere(mask)
    return np.array(list(product(*zip(voxels.min(0), voxels.max(0), strict=True))), float)


def _averaged(data: Data, axis: int, factor: int) -> Data:
    """Average runs of ``factor`` slices; slices that fill no whole run are dropped."""
    whole = data.shape[axis] // factor * factor
    stack = np.moveaxis(data, axis, 0)[:whole].astype(np.float32)
    mean = stack.reshape(whole // factor, factor, *stack.shape[1:]).mean(1)
    return np.moveaxis(mean, 0, axis)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", required=True, help="model folder, or phantom")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="maps and pictures (keep out of git)")
    parser.add_argument("--patient", default="patient26", help="which patient of mslub (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="as of maediff infer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
