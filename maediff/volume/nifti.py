"""Read scans and write results: NIfTI volumes that keep their place in space.

Together with :mod:`maediff.working.spatial` this is the only place that touches an affine. Files are
checked here, on reading, so that the rest of the library can rely on a :class:`Volume`.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from maediff.errors import GeometryError, InputError, OutputError
from maediff.files import atomic_path
from maediff.notes import Information
from maediff.typing import Array
from maediff.volume.checks import (
    READ_ERRORS,
    SUFFIXES,
    check_affine,
    check_dtype,
    check_file,
    check_finite,
    check_intensities,
    check_spacing,
    check_type,
    is_gzip,
    squeezed,
    unpacked,
    unreadable,
    with_usable_offset,
)

__all__ = [
    "SUFFIXES",
    "Volume",
    "from_image",
    "grid_distance",
    "image_like",
    "new_header",
    "read_map",
    "read_mask",
    "read_nifti",
    "read_voxels",
    "same_grid",
    "stem_of",
    "write_like",
]


# Files of the same grid written by different tools differ by rounding; a tenth of a voxel is far above that.
GRID_TOLERANCE_VOXELS = 0.1
COMMON_SPACES = {3: "Talairach", 4: "MNI", 5: "another template"}
"""NIfTI codes of sform or qform that say that voxels of two scans may be compared."""
MAX_SKEW = 0.01  # cosine between two axes above which the user gets a note
_GEOMETRY_FIELDS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
_OFFSET_FIELDS = ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")


@dataclass(frozen=True)
class Volume:
    """A scan with its geometry.

    Attributes:
        data: Intensities (X, Y, Z), float32, slope and intercept applied.
        affine: Voxel index to RAS mm (4, 4), float64: sform, else qform, else the header's fallback.
        header: The input's own header; results take their geometry fields from it.
        source: File that it was read from, if any.
        notes: Notes for the user about this input.
    """

    data: Array
    affine: Array
    header: nib.Nifti1Header
    source: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each array axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def name(self) -> str:
        """Name of this scan in messages: its path, or ``the image``."""
        return str(self.source) if self.source else "the image"


def stem_of(path: str | Path) -> str:
    """Return the file name of a scan without ``.nii`` or ``.nii.gz``.

    Example:
        >>> stem_of("/data/sub-01_T2w.nii.gz")
        'sub-01_T2w'
    """
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_nifti(path: str | Path) -> Volume:
    """Read a scan and check it.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with one real-valued 3-D image.

    Returns:
        The volume; a trailing axis of length 1 is dropped with a note.

    Raises:
        InputError: Missing, unreadable, truncated or not NIfTI; RGB, complex, 2-D or 4-D; NaN or Inf; constant.
        GeometryError: Singular affine or impossible spacing.
    """
    path = Path(path)
    volume = _read(path)
    check_intensities(volume.data, str(path))
    return volume


def read_voxels(path: str | Path) -> Array:
    """Read the values of a file (X, Y, Z), float32, without checking that they are those of a scan.

    Raises:
        InputError: As :func:`read_nifti`, except for NaN, Inf and constant images.
        GeometryError: As :func:`read_nifti`.
    """
    return _read(Path(path)).data


def read_map(path: str | Path) -> Volume:
    """Read a map of a scan; it may be constant, like that of a scan without any anomaly.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with one real-valued 3-D image.

    Raises:
        InputError: As :func:`read_nifti`, except for constant maps.
        GeometryError: As :func:`read_nifti`.
    """
    volume = _read(Path(path))
    check_finite(volume.data, str(path))
    return volume


def from_image(image: nib.Nifti1Image | str | Path | Volume) -> Volume:
    """Build a volume from a path, a nibabel image or a volume, with the checks of :func:`read_nifti`.

    Raises:
        InputError: As :func:`read_nifti`, or an object of another type.
        GeometryError: As :func:`read_nifti`.
    """
    if isinstance(image, Volume):
        return image
    if isinstance(image, (str, Path)):
        return read_nifti(image)
    filename = image.get_filename() if isinstance(image, nib.filebasedimages.FileBasedImage) else None
    volume = _from_nibabel(image, Path(filename) if filename else None)
    check_intensities(volume.data, volume.name)
    return volume


def read_channel(source: str | Path | nib.Nifti1Image | Volume, like: Volume) -> Volume:
    """Read a further channel of a scan, which lies on the grid of the first.

    Args:
        source: File, nibabel image or volume.
        like: The first channel.

    Raises:
        InputError: Unreadable, or no scan.
        GeometryError: Another shape, or another place in space, than the first channel.
    """
    volume = from_image(source)
    _check_same_grid(f"channel {volume.name}", volume.data, volume.affine, like)
    return volume


def read_mask(source: str | Path | nib.Nifti1Image | Array, like: Volume, what: str) -> Array:
    """Read a mask or a label that lies on the grid of a scan.

    Args:
        source: File, nibabel image, or array (X, Y, Z) that shares the scan's grid.
        like: The scan.
        what: Its name in messages; an empty ``"brain mask"`` is refused, an empty label is not.

    Returns:
        Boolean (X, Y, Z): True where the value is at least 0.5 (any label number, or half a share).

    Raises:
        InputError: Unreadable, NaN or Inf, or an empty brain mask.
        GeometryError: Another shape, or another place in space, than the scan.
    """
    if isinstance(source, np.ndarray):
        name, data, affine = f"the {what}", source, like.affine
        if data.dtype.kind not in "buif":
            raise InputError(f"{name} holds {data.dtype}; numbers or booleans are needed")
    else:
        volume = _read(Path(source)) if isinstance(source, (str, Path)) else _from_nibabel(source, None)
        name, data, affine = f"{what} {volume.source or ''}".strip(), volume.data, volume.affine
    _check_same_grid(name, data, affine, like)
    if data.dtype.kind == "f":
        check_finite(data, name)
    mask = np.asarray(data >= 0.5)
    if what == "brain mask" and not mask.any():
        raise InputError(f"{name} is empty: no voxel is at least 0.5; give a mask that marks the brain")
    return mask


def _check_same_grid(name: str, data: Array, affine: Array, like: Volume) -> None:
    if data.shape != like.data.shape:
        raise GeometryError(
            f"{name} has shape {data.shape}, but {like.name} has {like.data.shape}; resample it onto the scan's grid"
        )
    if not _lies_on(affine, like):
        distance = grid_distance(affine, like.affine, like.data.shape)
        raise GeometryError(
            f"{name} lies up to {distance:.3g} mm away from the voxels of {like.name} (another affine); "
            "resample it onto the scan's grid"
        )


def same_grid(first: Volume, second: Volume) -> bool:
    """Check whether the voxels of two volumes lie at the same places, to a tenth of a voxel."""
    return first.data.shape == second.data.shape and _lies_on(first.affine, second)


def _lies_on(affine: Array, like: Volume) -> bool:
    """Check whether a grid of the shape of a volume lies where the volume does."""
    return grid_distance(affine, like.affine, like.data.shape) <= GRID_TOLERANCE_VOXELS * min(like.spacing_mm)


def grid_distance(first: Array, second: Array, shape: tuple[int, ...]) -> float:
    """Compute the largest distance between corresponding corners of two grids of the same shape, mm.

    Args:
        first: Affine (4, 4).
        second: Affine (4, 4).
        shape: Shape of both grids, three axes.
    """
    corners = np.array([(*corner, 1.0) for corner in product(*((0, n - 1) for n in shape))])
    with np.errstate(over="ignore"):  # a damaged header may hold any place
        return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())


def new_header(affine: Array, shape: tuple[int, ...], code: str) -> nib.Nifti1Header:
    """Build the header of a new scan.

    Args:
        affine: Voxel index to RAS mm (4, 4).
        shape: Shape of the scan.
        code: Its space: ``scanner`` or ``mni``.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code=code)
    header.set_qform(affine, code=code)
    header.set_xyzt_units("mm")
    return header


def image_like(data: Array, like: Volume, dtype: npt.DTypeLike = np.float32) -> nib.Nifti1Image:
    """Put an array into the space of a scan.

    Only geometry is copied (affine, qform and sform with their codes, spacing, units): no description, no
    extension, no display range and nothing else that may name a patient or be wrong for the result.

    Args:
        data: Values (X, Y, Z) on the scan's voxels.
        like: The scan.
        dtype: Type on disk; slope is 1 and intercept 0.

    Raises:
        GeometryError: ``data`` has another shape than the scan.
    """
    data = np.asarray(data)
    if data.shape != like.data.shape:
        raise GeometryError(f"result has shape {data.shape}, but {like.name} has {like.data.shape}")
    kind: Any = nib.Nifti2Image if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class()
    header.set_data_shape(data.shape)
    header.set_data_dtype(dtype)
    header["pixdim"][:4] = like.header["pixdim"][:4]
    for field in _GEOMETRY_FIELDS + _OFFSET_FIELDS:
        header[field] = like.header[field]
    image: nib.Nifti1Image = kind(data.astype(dtype, copy=False), header.get_best_affine(), header)
    return image


def write_like(path: str | Path, data: Array, like: Volume, dtype: npt.DTypeLike = np.float32) -> Path:
    """Write an array as NIfTI in the space of a scan, atomically; equal input gives equal bytes.

    Args:
        path: Target, ``.nii`` or ``.nii.gz``.
        data: Values (X, Y, Z).
        like: The scan.
        dtype: Type on disk.

    Returns:
        The path written.

    Raises:
        OutputError: The file cannot be written, or its name is not NIfTI's.
        GeometryError: ``data`` has another shape than the scan.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise OutputError(f"cannot write {path}: the name must end in .nii or .nii.gz")
    content = image_like(data, like, dtype).to_bytes()
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=5, fileobj=packed, mtime=0) as stream:
            stream.write(content)
        content = packed.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _read(path: Path) -> Volume:
    header = check_file(path)
    kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    packed = is_gzip(path)
    named_packed = path.name.lower().endswith(".gz")
    try:
        if packed or named_packed or not float(header["vox_offset"]) >= kind.header_class.single_vox_offset:
            content = unpacked(path, header) if packed else path.read_bytes()
            image = kind.from_bytes(with_usable_offset(content, header, str(path)))
        else:
            image = kind.from_filename(path)
    except READ_ERRORS as error:
        raise unreadable(str(path), error) from error
    volume = _from_nibabel(image, path)
    return replace(volume, notes=(*volume.notes, *_file_notes(header, packed=packed, named_packed=named_packed)))


def _file_notes(header: Any, *, packed: bool, named_packed: bool) -> Iterable[str]:
    """Yield notes about oddities of a readable file."""
    if packed != named_packed:
        yield Information(f"the file is {'gzipped' if packed else 'not gzipped'}, other than its name says")
    if float(header["vox_offset"]) == 0:
        yield Information("the header says that voxels start at byte 0; they were read from behind the header")


def _from_nibabel(image: Any, source: Path | None) -> Volume:
    name = str(source) if source else "the image"
    check_type(image, name)
    check_spacing(image.header, name)
    check_dtype(image.get_data_dtype(), name)
    shape, notes = squeezed(image.shape, name)
    affine = np.asarray(image.affine if image.affine is not None else image.header.get_best_affine(), np.float64)
    check_affine(affine, name)
    try:
        with np.errstate(all="ignore"):  # an overflow gives Inf, which is refused with its own message
            data = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged")).reshape(shape)
    except READ_ERRORS as error:
        raise unreadable(name, error) from error
    header = image.header.copy()
    return Volume(data, affine, header, source, (*notes, *_geometry_notes(header, affine, shape)))


def _geometry_notes(header: Any, affine: Array, shape: tuple[int, int, int]) -> Iterable[str]:
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError:
        yield "the qform is invalid (impossible quaternion); the sform is used"
        return
    if qform is None and sform is None:
        yield "neither qform nor sform is set: left and right are the header's fallback and may be wrong"
    elif qform is not None and sform is not None:
        distance = grid_distance(qform, sform, shape)
        if distance > GRID_TOLERANCE_VOXELS * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
            yield f"qform and sform disagree by up to {distance:.3g} mm; the sform is used"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    claimed = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if not np.allclose(claimed, spacing, rtol=0.01):
        shown = tuple(tuple(float(f"{value:.4g}") for value in values) for values in (claimed, spacing))
        yield f"pixdim says voxels of {shown[0]} mm, the affine {shown[1]} mm; the affine is used"
    skew = float(np.abs(np.triu((affine[:3, :3] / spacing).T @ (affine[:3, :3] / spacing), 1)).max())
    if skew > MAX_SKEW:
        yield f"the affine is sheared: two axes are {90 - np.degrees(np.arcsin(skew)):.3g} degrees apart, not 90"
    code = int(header["xyzt_units"]) & 7  # the upper bits are the unit of time
    if code not in (0, 2):
        unit = {1: "metre", 3: "micrometre"}.get(code, f"unknown ({code})")
        yield f"the header's spatial unit is {unit}; its numbers are read as mm"


def check_common_space(volume: Volume, what: str) -> None:
    """Refuse a scan whose header does not place it in a template's space.

    Args:
        volume: The scan.
        what: Name in messages of the step that compares scans.

    Raises:
        GeometryError: Neither sform nor qform has the code of a template.
    """
    codes = [int(volume.header[name]) for name in ("sform_code", "qform_code")]
    if not set(codes) & set(COMMON_SPACES):
        allowed = ", ".join(f"{code} ({name})" for code, name in COMMON_SPACES.items())
        raise GeometryError(
            f"{volume.name}: sform and qform have the codes {codes}, so its voxels cannot be compared with those of "
            f"other scans; {what} needs scans in a template's space, codes {allowed}: register them first, or do "
            "without it"
        )
