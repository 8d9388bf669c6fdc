"""From tissue to intensity: relaxation times with their spread, pulse sequences, and random contrasts.

Signal equations are the textbook ones: spin echo ``PD (1 - exp(-TR / T1)) exp(-TE / T2)`` and inversion recovery
``PD |1 - 2 exp(-TI / T1) + exp(-TR / T1)| exp(-TE / T2)``; the readout of a magnetisation-prepared gradient echo is
approximated by its effective inversion time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maediff.diffusion.noise import chance, uniform
from maediff.heads.labels import CSF, TISSUES, class_index, indices, outside_brain

Kind = Literal["t1", "t2", "flair", "pd", "random"]
KINDS: tuple[Kind, ...] = ("t1", "t2", "flair", "pd", "random")
PHYSICAL_SHARES: dict[Kind, float] = {"t1": 0.33, "t2": 0.25, "flair": 0.36, "pd": 0.06}
"""How often each physical contrast is drawn; clinical scans are mostly of the first three."""
_NO_INVERSION = math.inf


@dataclass(frozen=True)
class Relaxation:
    """Relaxation times and proton density of tissue classes; all of one shape, times in ms."""

    t1: Tensor
    t2: Tensor
    pd: Tensor


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence: repetition, inversion and echo time, ms; an infinite inversion time means none."""

    tr: float
    ti: float
    te: float

    def signal(self, tissue: Relaxation) -> Tensor:
        """Compute the magnitude signal, of the shape of the tissue's tensors.

        Example:
            >>> water = Relaxation(torch.tensor([4200.0]), torch.tensor([1500.0]), torch.tensor([1.0]))
            >>> bool(Sequence(9000.0, 4200.0 * math.log(2) / 1.1, 100.0).signal(water) < 0.25)  # FLAIR darkens water
            True
        """
        relaxed = torch.exp(-self.tr / tissue.t1)
        longitudinal = 1 - relaxed
        if math.isfinite(self.ti):
            longitudinal = (1 - 2 * torch.exp(-self.ti / tissue.t1) + relaxed).abs()
        return tissue.pd * longitudinal * torch.exp(-self.te / tissue.t2)


@dataclass(frozen=True)
class Contrast:
    """Intensities of each tissue class in one scan.

    Attributes:
        kind: "t1", "t2", "flair", "pd" or "random".
        signal: (K,) mean intensity of each class, about 0 to 1.
        spread: (K,) standard deviation of the intensity within each class.
        tissue: Tissue that the signal was computed from; None for random contrasts.
        sequence: The pulse sequence; None for random contrasts.
        gain: Factor from the sequence's signal to `signal`.
    """

    kind: Kind
    signal: Tensor
    spread: Tensor
    tissue: Relaxation | None
    sequence: Sequence | None
    gain: float = 1.0

    def signal_of(self, tissue: Relaxation) -> Tensor:
        """Compute the signal of changed tissue under the same sequence.

        Raises:
            ValueError: The contrast is random, so that tissue has no relaxation times.
        """
        if self.sequence is None:
            raise ValueError("a random contrast has no pulse sequence")
        return self.gain * self.sequence.signal(tissue)


def draw_contrast(rng: torch.Generator, kind: Kind | None = None, random_share: float = 0.27) -> Contrast:
    """Draw the contrast of one scan.

    Args:
        rng: Source of randomness.
        kind: Kind of contrast; drawn if None: random in `random_share`, else physical by :data:`PHYSICAL_SHARES`.
        random_share: Share of random contrasts.
    """
    if kind is None:
        shares = [*((1 - random_share) * share for share in PHYSICAL_SHARES.values()), random_share]
        kind = KINDS[int(torch.multinomial(torch.tensor(shares), 1, generator=rng))]
    if kind == "random":
        return _random_contrast(rng)
    tissue = draw_tissue(rng)
    sequence = _draw_sequence(kind, float(tissue.t1[class_index("sulcal CSF")]), rng)
    signal = sequence.signal(tissue)
    gain = 1.0 / float(signal[1:20].max())  # the brightest structure of the brain
    spread = (0.02 + 0.05 * torch.rand((), generator=rng)) * (0.5 + torch.rand(len(TISSUES), generator=rng))
    spread = spread * gain * signal
    spread[0] = 0
    return Contrast(kind, gain * signal, spread, tissue, sequence, gain)


def draw_tissue(rng: torch.Generator) -> Relaxation:
    """Draw the relaxation times of one person at one field strength around those of :data:`TISSUES`."""
    count = len(TISSUES)

    def around(values: list[float], common: float, own: float) -> Tensor:
        shift = common * torch.randn((), generator=rng) + own * torch.randn(count, generator=rng)
        return torch.tensor(values) * torch.exp(shift.clamp(-0.6, 0.6))

    t1 = around([tissue.t1_ms for tissue in TISSUES], 0.10, 0.05)  # 1.5 T is some 20 % shorter than 3 T
    t2 = around([tissue.t2_ms for tissue in TISSUES], 0.06, 0.05)
    pd = around([tissue.pd for tissue in TISSUES], 0.0, 0.02)
    outside = outside_brain()[1:]
    for values, width in ((t1, 0.35), (t2, 0.45), (pd, 0.3)):
        values[outside] *= torch.exp(width * torch.randn(len(outside), generator=rng))
    for values in (t1, t2, pd):  # fluid is the same everywhere, except for flow and partial volume
        fluid = indices(CSF)
        values[fluid] = values[fluid[0]] * (1 + 0.03 * torch.randn(len(fluid), generator=rng))
    return Relaxation(t1, t2, pd.clamp(max=1.1))


def _draw_sequence(kind: Kind, fluid_t1_ms: float, rng: torch.Generator) -> Sequence:
    """Draw the times of a sequence from the range of clinical protocols, ms; FLAIR's inversion nearly nulls fluid."""
    if kind == "t1":
        if chance(0.35, rng):
            return Sequence(uniform(400, 750, rng), _NO_INVERSION, uniform(8, 16, rng))  # spin echo
        # magnetisation-prepared gradient echo
        return Sequence(uniform(1900, 2800, rng), uniform(1000, 1500, rng), uniform(2, 5, rng))
    if kind == "t2":
        return Sequence(uniform(3000, 8000, rng), _NO_INVERSION, uniform(75, 125, rng))
    if kind == "pd":
        return Sequence(uniform(2000, 5000, rng), _NO_INVERSION, uniform(10, 30, rng))
    tr = uniform(8000, 11000, rng)
    null = fluid_t1_ms * math.log(2 / (1 + math.exp(-tr / fluid_t1_ms)))
    return Sequence(tr, null * uniform(0.94, 1.06, rng), uniform(85, 140, rng))


def _random_contrast(rng: torch.Generator) -> Contrast:
    """Draw any intensity for each structure, in half of the cases with the order of tissues in real scans."""
    signal = 0.05 + 0.95 * torch.rand(len(TISSUES), generator=rng)
    if chance(0.5, rng):
        # grey and white structures stay near their group's intensity, as in any real sequence
        white = float(torch.rand((), generator=rng))
        grey = float(torch.rand((), generator=rng))
        fluid = float(torch.rand((), generator=rng))
        share = torch.tensor([_whiteness(tissue.t1_ms) for tissue in TISSUES])
        mixed = share * white + (1 - share) * grey
        jitter = 0.05 * torch.randn(len(TISSUES), generator=rng)
        brain = [index for index in range(len(TISSUES)) if index not in outside_brain()]
        signal[brain] = (mixed + jitter)[brain].clamp(0.02, 1)
        signal[indices(CSF)] = max(fluid, 0.02)
    signal[class_index("background")] = 0
    spread = (0.02 + 0.05 * torch.rand((), generator=rng)) * torch.rand(len(TISSUES), generator=rng)
    spread[0] = 0
    return Contrast("random", signal, spread, None, None)


def _whiteness(t1_ms: float) -> float:
    """Place a structure between cortex (0) and white matter (1) by its T1."""
    return min(1.0, max(0.0, (1400.0 - t1_ms) / (1400.0 - 850.0)))
