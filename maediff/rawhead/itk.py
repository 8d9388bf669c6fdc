"""SimpleITK: bias correction and registration to the bundled template.

Only this module talks to SimpleITK (extra ``prep``). Transforms leave it as matrices (4, 4) from template RAS mm to
scan RAS mm, which are easily recorded and inverted.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from maediff.errors import ConfigError, InputError
from maediff.extras import install_hint
from maediff.typing import Array, BoolArray
from maediff.working.components import bounding_box, largest_component

TEMPLATE = "ICBM-152 2009a symmetric, T1, bundled with nilearn"
TEMPLATE_MM = 2
# A brain is neither half nor twice the template's size along any direction.
MAX_SHEAR_DEGREES = 0.5  # 1 mm over a head of 120 mm either side
_SCALES = (0.6, 1.6)
_HEAD_MM, _BRAIN_HALF_MM = 110.0, 75.0
_RIM_MM = 8.0  # around the brain, where the metric looks too
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Target:
    """Target of a registration: intensities and brain (X, Y, Z), and the affine to RAS mm."""

    data: Array
    brain: BoolArray
    affine: Array

    @property
    def centre_mm(self) -> Array:
        """Middle of the brain's bounding box, RAS mm."""
        return _centre(self.brain, self.affine)

    @property
    def finest_mm(self) -> float:
        """Shortest side of a voxel, mm."""
        return float(np.linalg.norm(self.affine[:3, :3], axis=0).min())


@lru_cache(maxsize=1)
def template() -> Target:
    """Load the template that nilearn bundles, skull-stripped, at 2 mm; nothing is downloaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn import datasets

        image = datasets.load_mni152_template(resolution=TEMPLATE_MM)
        mask = datasets.load_mni152_brain_mask(resolution=TEMPLATE_MM)
    brain = np.asarray(mask.dataobj) > 0.5
    return Target(np.where(brain, np.asarray(image.dataobj), 0), brain, np.asarray(image.affine, np.float64))


def simpleitk() -> Any:
    """Import SimpleITK.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ConfigError(
            f"bias correction and registration need SimpleITK, which is not installed: {install_hint('prep')}; "
            "or leave those steps out (--bias none --register none, with masks given)"
        ) from error
    return SimpleITK


def correct_bias(data: Array, affine: Array, mask: BoolArray | None = None) -> tuple[Array, Array]:
    """Divide a scan by its bias field, estimated by N4 at half resolution (Tustison et al., 2010).

    Args:
        data: Intensities (X, Y, Z).
        affine: Voxel index to RAS mm (4, 4).
        mask: Where the field is estimated; Otsu's foreground if None.

    Returns:
        The corrected scan and the field (X, Y, Z), float32; their product is the input.
    """
    sitk = simpleitk()
    image = _image(data, affine)
    where = sitk.OtsuThreshold(image, 0, 1, 200) if mask is None else sitk.Cast(_image(mask, affine), sitk.sitkUInt8)
    factors = [2 if length >= 48 else 1 for length in data.shape]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations([20, 20, 10])
    n4.SetConvergenceThreshold(1e-3)
    n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(where, factors))
    field = np.exp(_values(n4.GetLogBiasFieldAsImage(image))).astype(np.float32)
    return (data / field).astype(np.float32), field


def register(data: Array, affine: Array, brain: BoolArray | None, name: str) -> Array:
    """Lay the template's brain over a scan: rigid, then affine, maximising mutual information.

    The metric looks at the template's brain and a rim of 8 mm around it, so that skull and neck of the scan play no
    part once the start is near. Mutual information suits any contrast.

    Args:
        data: Intensities (X, Y, Z), best bias-corrected.
        affine: Voxel index to RAS mm (4, 4).
        brain: Brain if it is known; a head is started from its crown.
        name: Name of the scan in messages.

    Returns:
        Template RAS mm to scan RAS mm (4, 4).

    Raises:
        InputError: No plausible place was found.
    """
    check_shear(affine, name)
    sitk = simpleitk()
    atlas = template()
    moving = _image(data if brain is None else np.where(brain, data, 0), affine)
    start = _crown_start(data, affine) if brain is None else _centre(brain, affine)
    centre = _LPS[:3, :3] @ atlas.centre_mm
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre.tolist())
    rigid.SetTranslation((_LPS[:3, :3] @ start - centre).tolist())
    try:
        _optimise(atlas, moving, rigid, ((4, 6.0, 0.3), (2, 3.0, 0.2)), step_mm=2.0)
        full = sitk.AffineTransform(3)
        full.SetCenter(rigid.GetCenter())
        full.SetMatrix(rigid.GetMatrix())
        full.SetTranslation(rigid.GetTranslation())
        _optimise(atlas, moving, full, ((4, 4.0, 0.5), (2, 2.0, 0.3), (1, 0.0, 0.1)), step_mm=1.0)
    except RuntimeError as error:  # SimpleITK's only error type
        raise InputError(f"{name} could not be registered to the template: {_reason(error)}; {_ADVICE}") from error
    matrix = _matrix(full)
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if not (_SCALES[0] <= scales.min() and scales.max() <= _SCALES[1]):
        raise InputError(
            f"{name} could not be registered to the template: sizes would change by {scales.min():.2f} to "
            f"{scales.max():.2f}, and {_SCALES[0]:g} to {_SCALES[1]:g} is plausible; {_ADVICE}"
        )
    return matrix


def register_rigid(fixed: Target, data: Array, affine: Array, name: str) -> Array:
    """Lay a scan's brain over another scan of the same head, rigidly, from where the headers put them.

    Args:
        fixed: The scan whose brain is known.
        data: The other scan (X, Y, Z), of any contrast.
        affine: Its voxel index to RAS mm (4, 4).
        name: Its name in messages.

    Returns:
        RAS mm of the first to RAS mm of the other (4, 4).

    Raises:
        InputError: No plausible place was found.
    """
    check_shear(fixed.affine, f"the first channel of {name}")
    check_shear(affine, name)
    rigid = simpleitk().Euler3DTransform()
    rigid.SetCenter((_LPS[:3, :3] @ fixed.centre_mm).tolist())
    try:
        _optimise(fixed, _image(data, affine), rigid, ((4, 4.0, 0.5), (2, 2.0, 0.3), (1, 0.0, 0.1)), step_mm=1.0)
    except RuntimeError as error:
        raise InputError(f"{name} could not be registered to its first channel: {_reason(error)}; {_ADVICE}") from error
    return _matrix(rigid)


def check_shear(affine: Array, name: str) -> None:
    """Refuse a sheared grid, which ITK cannot represent: its images have orthogonal axes, so the shear would be lost.

    Args:
        affine: Voxel index to RAS mm (4, 4).
        name: Name of the scan in messages.

    Raises:
        InputError: Two axes are further from a right angle than :data:`MAX_SHEAR_DEGREES`.

    Example:
        >>> check_shear(np.diag([2.0, 2.0, 3.0, 1.0]), "scan")
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    degrees = float(np.degrees(np.arcsin(np.abs(np.triu(axes.T @ axes, 1)).max().clip(0, 1))))
    if degrees > MAX_SHEAR_DEGREES:
        raise InputError(
            f"the grid of {name} is sheared by {degrees:.3g} degrees (two of its axes are {90 - degrees:.3g} degrees "
            f"apart), and registration takes at most {MAX_SHEAR_DEGREES:g}, else the shear would be lost; resample the "
            "scan onto an orthogonal grid first, or leave out the registration: --register none, and --no-align for "
            "further channels"
        )


def _matrix(transform: Any) -> Array:
    """Turn a transform with a centre, LPS, into a matrix (4, 4), RAS."""
    linear, centre = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - linear @ centre
    result: Array = _LPS @ matrix @ _LPS
    return result


_ADVICE = "check orientation and spacing in the header, or give a brain mask and use --register none"


def rigid_part(matrix: Array, centre_mm: Array) -> Array:
    """Keep rotation and position of an affine map: the nearest rotation, and the same image of one point.

    Example:
        >>> rigid_part(np.diag([2.0, 2.0, 2.0, 1.0]), np.zeros(3)).tolist() == np.eye(4).tolist()
        True
    """
    left, _, right = np.linalg.svd(matrix[:3, :3])
    result = np.eye(4)
    result[:3, :3] = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    result[:3, 3] = matrix[:3, :3] @ centre_mm + matrix[:3, 3] - result[:3, :3] @ centre_mm
    return result


def _optimise(
    fixed: Target, moving: Any, transform: Any, levels: tuple[tuple[int, float, float], ...], *, step_mm: float
) -> None:
    """Improve a transform in place; a level is (shrink factor, smoothing in mm, share of voxels sampled)."""
    sitk = simpleitk()
    shrink, smooth, share = zip(*levels, strict=True)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums in one order: equal input gives equal output
    method.SetMetricAsMattesMutualInformation(32)
    rim = ndimage.binary_dilation(fixed.brain, iterations=max(1, round(_RIM_MM / fixed.finest_mm)))
    method.SetMetricFixedMask(sitk.Cast(_image(rim, fixed.affine), sitk.sitkUInt8))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(share, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(step_mm, 1e-3, 200, 0.6, 1e-5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(smooth)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(_image(fixed.data, fixed.affine), moving)


def _crown_start(data: Array, affine: Array) -> Array:
    """Guess the middle of the brain from the crown of the head: necks and shoulders below do not count."""
    sitk = simpleitk()
    head = _values(sitk.OtsuThreshold(_image(data, affine), 0, 1, 200)) > 0
    head = largest_component(ndimage.binary_opening(head, iterations=2))
    points = np.argwhere(head if head.any() else np.ones_like(head))
    world = points @ affine[:3, :3].T + affine[:3, 3]
    top = np.percentile(world[:, 2], 99.8)
    upper = world[world[:, 2] > top - _HEAD_MM]
    middle = np.percentile(upper, [1, 99], axis=0).mean(axis=0)
    # In a scan of the brain alone the head ends below; its middle is then a better guess than a fixed depth.
    depth = min(_BRAIN_HALF_MM, float(top - world[:, 2].min()) / 2)
    result: Array = np.array([middle[0], middle[1], top - depth])
    return result


def _centre(mask: BoolArray, affine: Array) -> Array:
    box = bounding_box(mask)
    if box is None:
        raise InputError("the brain mask is empty; give a mask that marks the brain")
    middle = np.array([(side.start + side.stop - 1) / 2 for side in box])
    result: Array = affine[:3, :3] @ middle + affine[:3, 3]
    return result


def _image(data: Array, affine: Array) -> Any:
    sitk = simpleitk()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)  # headers are rounded; ITK wants orthonormal axes
    geometry = _LPS[:3, :3] @ left @ right
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(data, np.float32).transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS[:3, :3] @ affine[:3, 3]).tolist())
    image.SetDirection(geometry.ravel().tolist())
    return image


def _values(image: Any) -> Array:
    result: Array = simpleitk().GetArrayFromImage(image).transpose(2, 1, 0)
    return result


def _reason(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ").rstrip(".")
