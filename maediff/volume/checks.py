"""Checks of NIfTI files, each with its own message.

Every message names the file, the value, the allowed values and what to do.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from maediff.errors import GeometryError, InputError
from maediff.notes import Information
from maediff.system import memory_bytes
from maediff.typing import Array

SUFFIXES = (".nii.gz", ".nii")
MAX_VOXELS = 2**31
SPACING_RANGE_MM = (0.02, 50.0)
_MAX_EXTRA_BYTES = 64 * 2**20  # header extensions before the voxels, and padding behind them
_EXTENSION_FLAG = 4  # bytes between a header and the voxels
_POINTERS = (
    (b"version https://git-lfs", "a pointer of Git LFS"),
    (b"/annex/objects", "a pointer of git-annex"),
    (b"../.git/annex/objects", "a pointer of git-annex"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
)
_MAX_DEFLATE_RATIO = 1100  # deflate cannot shrink zeros by more than 1032 : 1
READ_ERRORS = (
    OSError,
    EOFError,
    OverflowError,
    zlib.error,
    ValueError,
    MemoryError,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


def check_file(path: Path) -> Any:
    """Check the raw header of a file, before nibabel repairs it and before memory is allocated.

    Args:
        path: The file.

    Returns:
        Its header as stored on disk, Nifti1Header or Nifti2Header.

    Raises:
        InputError: Missing, not NIfTI, truncated, 2-D or 4-D, or implausibly large.
        GeometryError: Zero spacing.
    """
    if path.is_symlink() and not _exists(path):
        raise InputError(
            f"{path} is a link to a file that is not here ({path.readlink()}); fetch its content (git-annex: "
            "`git annex get`, DataLad: `datalad get`) or mend the link"
        )
    if not _exists(path):
        raise InputError(f"{path} does not exist or lies in a folder that cannot be read; check the path")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a .nii or .nii.gz file")
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is not NIfTI by its name; convert it to .nii or .nii.gz (for example with dcm2niix)")
    header = _raw_header(path)
    check_spacing(header, str(path))
    shape = tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    num_voxels = math.prod(shape)
    if min(shape) < 1:
        raise InputError(f"{path} claims {_times(shape)} voxels; every axis needs at least 1: its header is damaged")
    squeezed(shape, str(path))
    if num_voxels > MAX_VOXELS:
        raise InputError(f"{path} claims {_times(shape)} voxels; at most {MAX_VOXELS} are read: its header is damaged")
    num_bytes = num_voxels * int(header["bitpix"]) // 8
    check_memory(num_voxels, num_bytes, str(path))
    size = path.stat().st_size * (_MAX_DEFLATE_RATIO if is_gzip(path) else 1)
    if num_bytes > size:
        raise InputError(
            f"{path} is truncated: its header promises {num_bytes} bytes of voxels, more than the file can hold; "
            "copy or convert it again"
        )
    return header


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder on the way cannot be read
        return False


def check_memory(num_voxels: int, num_bytes: int, name: str) -> None:
    """Refuse a scan that does not fit into memory, before the system kills the whole run.

    Args:
        num_voxels: Voxels.
        num_bytes: Their size in the file, bytes.
        name: Name of the scan in messages.

    Raises:
        InputError: The voxels as stored, as float32 and with two float32 maps need more than the machine's memory.
    """
    needed, there = num_bytes + 12 * num_voxels, memory_bytes()
    if there is not None and needed > there:
        raise InputError(
            f"{name} needs {needed / 2**30:.1f} GiB of memory, this machine has {there / 2**30:.1f}: "
            "its header is damaged, or resample it first"
        )


def unpacked(path: Path, header: Any) -> bytes:
    """Unpack a file to its end, so that the checksum is verified (nibabel stops at the last voxel before it).

    At most the size that the header implies is unpacked, since a small file can hold an endless stream.

    Args:
        path: A ``.nii.gz`` file.
        header: Its header, from :func:`check_file`.

    Raises:
        InputError: It holds far more data than its header implies.
    """
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    explained = math.prod(shape) * int(header["bitpix"]) // 8
    offset = float(header["vox_offset"])
    limit = explained + _MAX_EXTRA_BYTES + int(min(max(offset, 0), _MAX_EXTRA_BYTES) if math.isfinite(offset) else 0)
    with gzip.open(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise InputError(
            f"{path} unpacks to more than {limit} bytes, but its header explains {explained} ({_times(tuple(shape))} "
            "voxels): it is damaged or hostile; convert it again"
        )
    return content


def _raw_header(path: Path) -> Any:
    """Read the header as stored on disk (nibabel repairs some fields on loading)."""
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as stream:
            block = stream.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {_first_line(error)}; copy or convert it again") from error
    if not block:
        raise InputError(
            f"{path} is not NIfTI: it is empty (no bytes), a copy or download did not finish; copy or convert it again"
        )
    if pointer := next((name for start, name in _POINTERS if block.lstrip().lower().startswith(start)), None):
        raise InputError(f"{path} is {pointer}, not a scan; fetch the file itself")
    header = _parse_header(block)
    if header is None:
        packed = not path.name.lower().endswith(".gz") or is_gzip(path)
        what = "it has no NIfTI header" if packed else "it is not a gzipped file, and has no NIfTI header"
        raise InputError(f"{path} is not NIfTI: {what}; convert it (for example with dcm2niix)")
    if not 1 <= int(header["dim"][0]) <= 7:
        raise InputError(f"{path} claims {int(header['dim'][0])} axes; its NIfTI header is damaged")
    return header


def _parse_header(block: bytes) -> Any:
    kinds: list[tuple[Any, int, bytes]] = [
        (nib.Nifti1Header, 348, block[344:347]),
        (nib.Nifti2Header, 540, block[4:7]),
    ]
    for kind, size, magic in kinds:
        for byteorder, code in ((">", ">i4"), ("<", "<i4")):
            if len(block) >= size and magic.startswith(b"n+") and np.frombuffer(block[:4], code)[0] == size:
                return kind(block[:size], endianness=byteorder, check=False)
    return None


def is_gzip(path: Path) -> bool:
    """Check whether a file is gzipped by its first bytes, since names can be wrong, or by its name if unreadable."""
    try:
        with path.open("rb") as stream:
            return stream.read(2) == b"\x1f\x8b"
    except OSError:
        return path.name.lower().endswith(".gz")


def with_usable_offset(content: bytes, header: Any, name: str) -> bytes:
    """Repair a file whose header says that its voxels start inside the header; some tools write 0 there.

    The voxels then start after the header: at the byte for which the file ends with the last voxel, else at the usual
    byte.

    Args:
        content: The whole file, unpacked.
        header: Its header, from :func:`check_file`.
        name: Name of the file in messages.

    Returns:
        The file with its voxels at the usual byte.

    Raises:
        InputError: The stated byte is neither 0 nor after the header.
    """
    offset, size = float(header["vox_offset"]), len(header.binaryblock)
    if offset >= size + _EXTENSION_FLAG:
        return content
    if not (offset == 0 or size <= offset):  # NaN, negative or within the header
        raise InputError(
            f"{name} says that its voxels start at byte {offset:g}; 0 or {size + _EXTENSION_FLAG} and more is "
            "possible: its header is damaged, convert it again"
        )
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    unexplained = len(content) - math.prod(shape) * int(header["bitpix"]) // 8
    start = int(offset) or (size if unexplained == size else size + _EXTENSION_FLAG)
    mended = header.copy()
    mended["vox_offset"] = size + _EXTENSION_FLAG
    block: bytes = mended.binaryblock
    return block + bytes(_EXTENSION_FLAG) + content[start:]


def unreadable(name: str, error: BaseException) -> InputError:
    """Build the error to raise for a failure while reading."""
    return InputError(f"cannot read {name} (truncated or damaged): {_first_line(error)}; copy or convert it again")


def check_type(image: object, name: str) -> None:
    """Raise an error for objects that are not NIfTI images.

    Raises:
        InputError: Another type.
    """
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{name} is {type(image).__name__}, not NIfTI; give a .nii or .nii.gz file or a Nifti1Image")


def squeezed(shape: tuple[int, ...], name: str) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Return the 3-D shape of an image without trailing axes of length 1, and a note if there were any.

    Raises:
        InputError: Fewer than three axes, or more than one volume.
    """
    if len(shape) < 3:
        raise InputError(f"{name} is {len(shape)}-D ({_times(shape)}); a 3-D scan is needed")
    if math.prod(shape[3:]) != 1:
        raise InputError(
            f"{name} is {len(shape)}-D ({_times(shape)}); one 3-D scan is needed: extract a single volume first"
        )
    dropped = Information(f"the trailing axis of length 1 was dropped ({_times(shape)})")
    notes = () if len(shape) == 3 else (dropped,)
    return (int(shape[0]), int(shape[1]), int(shape[2])), notes


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Refuse voxels that are not real numbers.

    Raises:
        InputError: Colours, complex numbers or another type.
    """
    if dtype.fields is not None:
        raise InputError(f"{name} holds colours (RGB); a scan with one intensity a voxel is needed")
    if dtype.kind == "c":
        raise InputError(f"{name} holds complex numbers; give the magnitude image")
    if dtype.kind not in "buif":
        raise InputError(f"{name} holds {dtype}; real numbers are needed")


def check_spacing(header: Any, name: str) -> None:
    """Refuse a header whose spacing is zero (nibabel would read it as 1 mm).

    Raises:
        GeometryError: Zero, NaN or Inf.
    """
    zooms = [float(z) for z in header["pixdim"][1:4]]
    used = zooms[: max(1, int(header["dim"][0]))]
    if not all(np.isfinite(z) and z != 0 for z in used):
        raise GeometryError(
            f"{name} has voxel spacing {tuple(used)} mm; every axis needs a spacing above zero: "
            "mend pixdim in its header"
        )


def check_affine(affine: Array, name: str) -> None:
    """Refuse an affine that gives no valid place in space.

    Raises:
        GeometryError: NaN or Inf, singular, or with an implausible spacing.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError(f"{name} has an affine with NaN or Inf; mend its sform or qform")
    with np.errstate(over="ignore"):  # endless voxels are refused below
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    rounded = tuple(float(f"{length:.4g}") for length in lengths)
    if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        raise GeometryError(
            f"{name} has a singular affine (axis lengths {rounded} mm): its voxels span no volume; "
            "mend its sform or qform"
        )
    low, high = SPACING_RANGE_MM
    if lengths.min() < low or lengths.max() > high:
        raise GeometryError(
            f"{name} has voxel spacing {rounded} mm; {low:g} to {high:g} mm is plausible: "
            "mend the spacing or the units in its header"
        )


def check_finite(data: Array, name: str) -> None:
    """Refuse NaN and Inf.

    Raises:
        InputError: With the number of such voxels.
    """
    finite = np.isfinite(data)
    if not finite.all():
        bad = int(finite.size - np.count_nonzero(finite))
        raise InputError(f"{name} has {bad} voxels that are NaN or Inf; replace them (for example by 0) first")


def check_intensities(data: Array, name: str) -> None:
    """Refuse an image with NaN or Inf, or without contrast.

    Raises:
        InputError: NaN, Inf, all zero or constant.
    """
    check_finite(data, name)
    low, high = float(data.min()), float(data.max())
    if low == high:
        kind = "all zero" if low == 0 else f"constant ({low:g} everywhere)"
        raise InputError(f"{name} is {kind}; a scan with contrast is needed")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
