"""From ideal signals to a scan: blur, bias field, texture, noise, ringing and motion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maediff.diffusion.noise import chance, uniform
from maediff.heads.fields import shrink, smooth_field
from maediff.heads.plane import FINE

_BIAS = 0.12
"""Most that the standard deviation of the logarithm of the bias field is."""


@dataclass(frozen=True)
class Acquisition:
    """Random effects of a scanner on a slice, drawn once and applied to both its healthy and its lesioned version.

    Attributes:
        blur: Standard deviations of the point spread function along rows and columns, fine pixels.
        gain: (H, W) smooth multiplicative bias field.
        texture: (H, W) unit-variance field, multiplied by the spread of each tissue.
        noise: (2, H, W) real and imaginary noise.
        noise_level: Standard deviation of the noise, in units of the signal.
        ringing: Share of k-space kept along each axis; 1 keeps all of it.
        ghost: Strength of a ghost displaced by half of the field of view.
    """

    blur: tuple[float, float]
    gain: Tensor
    texture: Tensor
    noise: Tensor
    noise_level: float
    ringing: float
    ghost: float

    def apply(self, fine: Tensor, spread: Tensor) -> Tensor:
        """Scan a slice.

        Args:
            fine: (h, w) ideal signal on the fine grid.
            spread: (H, W) standard deviation of the signal within tissue, on the working grid.

        Returns:
            (H, W) magnitude image on the working grid.
        """
        image = shrink(fine, self.blur, FINE) + spread * self.texture
        if self.ringing < 1:
            image = _truncated(image, self.ringing)
        if self.ghost > 0:
            image = image + self.ghost * torch.roll(image, image.shape[1] // 2, 1)
        image = image * self.gain
        real, imaginary = image + self.noise_level * self.noise[0], self.noise_level * self.noise[1]
        return (real**2 + imaginary**2).sqrt()  # Rician


def draw_acquisition(shape: tuple[int, int], rng: torch.Generator) -> Acquisition:
    """Draw the effects of a scanner on a slice of (H, W) pixels."""
    sharp = uniform(0.3, 1.3, rng)
    blur = (sharp, sharp)
    if chance(0.12, rng):  # acquired across this plane, with thick slices
        blur = (sharp, uniform(1.5, 3.0, rng)) if chance(0.5, rng) else (uniform(1.5, 3.0, rng), sharp)
    field = smooth_field(shape, min(shape) / uniform(1.5, 3, rng), rng)[0].clamp(-2, 2)
    strength = uniform(0, _BIAS, rng)
    texture = 0.8 * smooth_field(shape, 1.5, rng)[0] + 0.6 * smooth_field(shape, uniform(5, 14, rng), rng)[0]
    noise = torch.randn(2, *shape, generator=rng)
    if chance(0.6, rng):  # resampling has smoothed the noise
        width = uniform(0.4, 0.9, rng)
        noise = shrink(noise, (width, width), 1)
    return Acquisition(
        blur=blur,
        gain=torch.exp(strength * field),
        texture=texture,
        noise=noise,
        noise_level=uniform(0.002, 0.04, rng) if chance(0.85, rng) else uniform(0.04, 0.08, rng),
        ringing=uniform(0.55, 0.9, rng) if chance(0.12, rng) else 1.0,
        ghost=uniform(0.01, 0.06, rng) if chance(0.06, rng) else 0.0,
    )


def _truncated(image: Tensor, share: float) -> Tensor:
    """Keep the low frequencies of k-space along each axis only, which rings at edges (Gibbs)."""
    spectrum = torch.fft.rfft2(image)
    rows = torch.fft.fftfreq(image.shape[0]).abs() <= share / 2
    columns = torch.fft.rfftfreq(image.shape[1]) <= share / 2
    kept: Tensor = torch.fft.irfft2(spectrum * (rows[:, None] & columns), s=image.shape)
    return kept
