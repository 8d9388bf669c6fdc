"""Images of other libraries, taken without importing these libraries.

Arrays of NumPy and tensors of PyTorch come with an affine; MONAI's MetaTensor, SimpleITK's Image and TorchIO's images
carry their own. Each becomes a nibabel image, which the package reads like a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from maediff.errors import GeometryError, InputError
from maediff.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TAKEN = (
    "a path, a nibabel image, a maediff.Volume, an array or tensor with affine=, a MONAI MetaTensor, a SimpleITK image "
    "or a TorchIO image"
)


def as_image(image: Any, affine: npt.ArrayLike | None = None) -> Any:
    """Turn an image of any known library into what :func:`~maediff.volume.from_image` takes.

    Args:
        image: Path, nibabel image or :class:`~maediff.volume.Volume`, returned as it is; NumPy array or PyTorch tensor
            (X, Y, Z) or (1, X, Y, Z); MONAI MetaTensor, SimpleITK image or TorchIO image of one channel.
        affine: Voxel to RAS mm (4, 4) of an array or a tensor.

    Raises:
        InputError: An object of another type, several channels, or an affine for an image that has its own.
        GeometryError: An array without an affine, or an affine of another shape.
    """
    if _is_array(image):
        if affine is None:
            raise GeometryError(
                f"an array of shape {tuple(image.shape)} does not say where it lies; give affine=, voxel to RAS mm "
                "(4, 4)"
            )
        return _nifti(image, affine, None)
    if affine is not None:
        raise InputError(f"{_name(image)} has an affine of its own; leave affine= out")
    if isinstance(image, (str, Path, Volume, nib.filebasedimages.FileBasedImage)):
        return image
    if _from(image, "SimpleITK"):
        return _of_simpleitk(image)
    if _from(image, "torchio"):
        return _nifti(image.data, image.affine, getattr(image, "path", None))
    if _from(image, "monai") and hasattr(image, "affine"):
        return _nifti(image, image.affine, image.meta.get("filename_or_obj"))
    raise InputError(f"{_name(image)} is not an image that can be scored; give {_TAKEN}")


def as_mask(mask: Any) -> Any:
    """Turn a mask of any known library into what :func:`~maediff.volume.read_mask` takes.

    Args:
        mask: As for :func:`as_image`; an array or a tensor is taken as lying on the scan's grid.
    """
    if not _is_array(mask):
        return as_image(mask)
    values = _plain(mask)
    return values[0] if values.ndim == 4 and values.shape[0] == 1 else values


def _is_array(image: Any) -> bool:
    """Check for arrays and tensors without a place in space; MetaTensors are tensors with one."""
    return isinstance(image, np.ndarray) or (_from(image, "torch") and hasattr(image, "detach"))


def _from(image: Any, library: str) -> bool:
    return type(image).__module__.partition(".")[0] == library


def _name(image: Any) -> str:
    return f"{type(image).__module__.partition('.')[0]}.{type(image).__name__}"


def _of_simpleitk(image: Any) -> nib.Nifti1Image:
    """Read voxels (Z, Y, X) and an LPS geometry as (X, Y, Z) and RAS."""
    sitk = sys.modules["SimpleITK"]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"a SimpleITK image of {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} "
            "components; give a 3-D image of one"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return _nifti(np.asarray(sitk.GetArrayViewFromImage(image)).transpose(2, 1, 0), _LPS_TO_RAS @ affine, None)


def _nifti(data: Any, affine: npt.ArrayLike, source: Any) -> nib.Nifti1Image:
    matrix = np.asarray(_plain(affine), np.float64)
    if matrix.shape != (4, 4):
        raise GeometryError(f"the affine has shape {matrix.shape}; give voxel to RAS mm, (4, 4)")
    values = _plain(data)
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 3:
        raise InputError(f"an image of shape {values.shape}; give (X, Y, Z) or (1, X, Y, Z), one channel at a time")
    kept = values.dtype if values.dtype.kind in "fc" and values.dtype.itemsize >= 4 else np.dtype(np.float32)
    image = nib.Nifti1Image(values.astype(kept, copy=False), matrix)
    if source:
        image.set_filename(str(source))
    return image


def _plain(values: Any) -> npt.NDArray[Any]:
    """Return a tensor, on whatever device, or an array as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        values = values.as_subclass(sys.modules["torch"].Tensor).numpy()
    return np.asarray(values)
