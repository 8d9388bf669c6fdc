"""What varies in healthy brains beyond noise: tissue from region to region, and bright caps beside the ventricles.

A restorer that never saw such variation paints it as a lesion. [ours]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from maediff.diffusion.noise import chance, uniform
from maediff.heads.fields import smooth_field
from maediff.heads.labels import WHITE, class_index, indices, parenchyma
from maediff.heads.lesions import Lesion
from maediff.heads.plane import Plane

STRONGEST = 0.06
"""Standard deviation of a tissue's signal between regions: limbic cortex is some 10 % brighter than other on FLAIR."""
REGION_MM = (18.0, 55.0)
_CAP_MM = (1.0, 3.0)
_CAPPED = 0.5
"""Share of slices whose ventricles have a rim that is not a lesion."""


def regional_variation(plane: Plane, rng: torch.Generator) -> Tensor:
    """Draw a factor on the signal (h, w): grey and white matter drift smoothly, each in its own way; fluid does not."""
    shape = (plane.depth.shape[0], plane.depth.shape[1])
    in_white, in_grey = (
        uniform(0, STRONGEST, rng)
        * smooth_field(shape, uniform(*REGION_MM, rng) / plane.pixel_mm, rng)[0].clamp(-2.5, 2.5)
        for _ in range(2)
    )
    return regional_factor(plane, in_white, in_grey)


def regional_factor(plane: Plane, in_white: Tensor, in_grey: Tensor) -> Tensor:
    """Turn the relative change of white and of grey matter (h, w) into a factor on the signal; fluid stays."""
    white = plane.among(indices(WHITE))
    return 1 + plane.among(parenchyma()) * (white * in_white + (1 - white) * in_grey)


def draw_caps(plane: Plane, rng: torch.Generator) -> list[Lesion]:
    """Draw the rim of changed white matter that healthy ventricles have, as a lesion that is to stay; often none."""
    if not chance(_CAPPED, rng):
        return []
    fluid = plane.among([class_index("lateral ventricle")])[None, None]
    reach = round(uniform(*_CAP_MM, rng) / plane.pixel_mm)
    grown = functional.max_pool2d(fluid, 2 * reach + 1, stride=1, padding=reach)
    rim = (functional.avg_pool2d(grown, 3, stride=1, padding=1) - fluid).clamp(min=0)[0, 0]
    patchy = (0.7 + 0.5 * smooth_field((rim.shape[0], rim.shape[1]), 8.0 / plane.pixel_mm, rng)[0]).clamp(0, 1)
    opacity = uniform(0.1, 0.5, rng) * rim * plane.among(indices(WHITE)) * patchy
    return [Lesion(opacity, "gliosis")]
