"""Pseudo-lesions that the network must remove. [ours]

They follow the idea of learning to remove synthetic pathology (Kascenas et al. 2022, DAE; Lawry Aguila et
al. 2025), so that the network does not copy unseen structures; they are blobs of random shape, size, sign and
texture, and share no code or statistics with the lesions of the phantom.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff.config import LesionsConfig
from maediff.diffusion.noise import chance, coarse_noise, uniform

# Intensities are in working units; the scan's intensity scale spans 2 of them.
_SPOTS = (0.01, 0.035)
"""Half axis of small spots, as a share of the slice: two to seven pixels of 200."""
_CONTRAST = (0.07, 1.0)
"""Contrast of blobs of one sign; faint ones are as frequent as strong ones (the logarithm is uniform)."""
_IN_WINDOW = 0.75
"""Share of slices whose blobs start in the patch, where the loss sees them."""
_SHIFT = (0.15, 1.2)
"""How much brighter or darker shifted tissue is, of any sign."""
_BRIGHTER = 0.6
"""Share of shifted tissue that is brighter, not darker."""
_APART = (0.25, 3.0)
"""Distance of neighbouring slices, pixels. Random: a lesion may be flatter or longer than it is wide. [ours]"""
_LEAN = 0.7
"""How far the middle of a blob is from the slice, at most, as a share of its half axis across slices."""
_USUAL = LesionsConfig()


def add_pseudo_lesions(
    image: Tensor,
    mask: Tensor,
    donor: Tensor,
    clip: float,
    rng: torch.Generator,
    *,
    window: Tensor | None = None,
    look: LesionsConfig = _USUAL,
    offsets: tuple[int, ...] = (),
) -> Tensor:
    """Insert one to three blobs, or four to twelve small spots, into the brain.

    A blob has the same shape in all channels and a different appearance in each. It goes on in neighbouring slices,
    with the same appearance: a lesion that only the slice itself has would be known by that.

    Args:
        image: (C, H, W), or with neighbours (P, C, H, W), the slice first; -1 outside the brain.
        mask: (1, H, W) or (P, 1, H, W) bool, the brain.
        donor: Another slice, of the shape of `image`, whose texture some blobs take.
        clip: Upper limit of intensities.
        rng: Source of randomness.
        window: (1, H, W), 1 inside the patch; in three slices of four the blobs start there, where the loss sees them.
        look: Their appearance: sign, size and share of spots. Faint lesions of one sign are as frequent as strong ones.
        offsets: Distance of the neighbours, in slices; P - 1 of them.

    Returns:
        The shape of `image`; `image` itself if there is no brain.
    """
    brain = mask.flatten(0, -3)[0]
    pixels = brain.nonzero()
    if not len(pixels):
        return image
    if window is not None and chance(_IN_WINDOW, rng):
        inside = (brain & (window[0] > 0)).nonzero()
        pixels = inside if len(inside) else pixels
    count, sizes = ((4, 13), _SPOTS) if chance(look.spots, rng) else ((1, 4), look.size)
    for _ in range(int(torch.randint(*count, (), generator=rng))):
        centre = pixels[int(torch.randint(len(pixels), (), generator=rng))]
        alpha = _blob(centre, (image.shape[-2], image.shape[-1]), sizes, rng, offsets=offsets)
        alpha = alpha[:, None] if image.ndim == 4 else alpha
        parts = zip(image.split(1, -3), donor.split(1, -3), strict=True)
        fillings = [_filling(channel, mask, other, look, rng).expand_as(channel) for channel, other in parts]
        image = image + alpha * (torch.cat(fillings, -3) - image)
    return torch.where(mask, image.clamp(-1, clip), -1.0)


def _blob(
    centre: Tensor,
    shape: tuple[int, int],
    sizes: tuple[float, float],
    rng: torch.Generator,
    *,
    offsets: tuple[int, ...] = (),
) -> Tensor:
    """Draw a soft, irregular ellipse: (1, H, W), 0 to 1. Its half axis is within `sizes`, a share of the slice.

    With neighbours it is a cut through an ellipsoid, (P, H, W): on one side the cuts may grow before they shrink.
    """
    radius = shape[0] * math.exp(uniform(math.log(sizes[0]), math.log(sizes[1]), rng))
    stretch, angle = math.exp(uniform(-0.5, 0.5, rng)), uniform(0, math.pi, rng)
    rows = (torch.arange(shape[0]) - centre[0])[:, None] / radius
    columns = (torch.arange(shape[1]) - centre[1])[None, :] / radius
    along = rows * math.cos(angle) + columns * math.sin(angle)
    across = columns * math.cos(angle) - rows * math.sin(angle)
    squared = (along * stretch) ** 2 + (across / stretch) ** 2
    wobble = uniform(0, 0.35, rng) * coarse_noise(shape, max(2, int(radius / 1.5)), rng)[0]
    softness = uniform(0.03, 0.3, rng)
    opacity = uniform(0.5, 1.0, rng)
    depth, lean = torch.zeros(1), 0.0
    if offsets:
        depth = math.exp(uniform(math.log(_APART[0]), math.log(_APART[1]), rng)) / radius * torch.tensor((0, *offsets))
        lean = uniform(-_LEAN, _LEAN, rng)
    # (depth + lean)^2 - lean^2: the slice itself, at depth 0, keeps the shape that was drawn for it
    distance = (squared + (depth * (depth + 2 * lean))[:, None, None]).clamp(min=0).sqrt()
    return torch.sigmoid((1 - distance - wobble) / softness) * opacity


def _filling(image: Tensor, mask: Tensor, donor: Tensor, look: LesionsConfig, rng: torch.Generator) -> Tensor:
    """Choose the appearance of a blob in one channel, (1, H, W) or (P, 1, H, W)."""
    if look.sign == "any":
        return _any_filling(image, donor, rng)
    return _signed_filling(image, mask, 1.0 if look.sign == "bright" else -1.0, rng)


def _signed_filling(image: Tensor, mask: Tensor, sign: float, rng: torch.Generator) -> Tensor:
    """Shift tissue by a contrast, evenly or with a texture, with the tissue's own structure or with it blurred away."""
    contrast = sign * math.exp(uniform(math.log(_CONTRAST[0]), math.log(_CONTRAST[1]), rng))
    choice = int(torch.randint(3, (), generator=rng))
    if choice == 0:
        return image + contrast
    shift = contrast * (1 + _grain(image, rng, 0.5, most=2))
    return (image if choice == 1 else _blurred(image, mask)) + shift


def _any_filling(image: Tensor, donor: Tensor, rng: torch.Generator) -> Tensor:
    """Choose any appearance of a blob; holes are twice as frequent as each of the others."""
    choice = int(torch.randint(5, (), generator=rng))
    if choice == 0:
        return _shifted_tissue(image, rng)
    if choice == 1:
        return _textured_level(image, rng)
    if choice == 2:
        return _other_tissue(donor, rng)
    return _hole(image, rng)


def _shifted_tissue(image: Tensor, rng: torch.Generator) -> Tensor:
    """Make tissue brighter or darker, with its own structure."""
    sign = 1.0 if chance(_BRIGHTER, rng) else -1.0
    return image + sign * uniform(*_SHIFT, rng)


def _textured_level(image: Tensor, rng: torch.Generator) -> Tensor:
    """Replace tissue by one level with a coarse texture, as a tumour does."""
    size = int(torch.randint(2, 9, (), generator=rng))
    grain = coarse_noise((image.shape[-2], image.shape[-1]), size, rng)
    return uniform(-1.0, 1.4, rng) + uniform(0.0, 0.2, rng) * grain


def _other_tissue(donor: Tensor, rng: torch.Generator) -> Tensor:
    """Show tissue of another slice, at most 12 pixels away from its place, at another level."""
    shift = torch.randint(-12, 13, (2,), generator=rng).tolist()
    return torch.roll(donor, shift, (-2, -1)) + uniform(-0.4, 0.6, rng)


def _hole(image: Tensor, rng: torch.Generator) -> Tensor:
    """Return tissue as dark as outside the brain, like an old infarct or a cavity.

    Without holes, a network takes such lesions at the rim of the brain for background and leaves them.
    """
    return uniform(-1.0, -0.8, rng) + uniform(0.0, 0.05, rng) * torch.randn(image.shape, generator=rng)


def _grain(image: Tensor, rng: torch.Generator, strength: float, *, most: float) -> Tensor:
    """Draw a coarse texture (1, H, W) of random grain, of up to `strength` and clipped at `most` deviations."""
    size = int(torch.randint(2, 9, (), generator=rng))
    grain = coarse_noise((image.shape[-2], image.shape[-1]), size, rng)
    return uniform(0, strength, rng) * grain.clamp(-most, most)


def _blurred(image: Tensor, mask: Tensor) -> Tensor:
    """Average tissue over squares of a quarter of the slice, counting only brain; the shape of `image`."""
    side = image.shape[-2] // 4 | 1
    total, share = (_box_sum(x, side) for x in ((image + 1) * mask, mask.float()))
    return total / share.clamp(min=1) - 1


def _box_sum(x: Tensor, side: int) -> Tensor:
    """Sum the square of `side` pixels, an odd number, around each pixel (..., H, W); nothing lies outside."""
    for axis in (-2, -1):
        along = x.transpose(axis, -1)
        so_far = F.pad(along, (side // 2 + 1, side // 2)).double().cumsum(-1)
        x = (so_far[..., side:] - so_far[..., :-side]).to(x.dtype).transpose(axis, -1)
    return x
