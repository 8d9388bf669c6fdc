"""Targets that keep a short training from forgetting: what the trained network itself makes of a slice. [ours]

A few healthy scans of one contrast say how healthy tissue looks there, and nothing of lesions or of other contrasts. So
only healthy tissue has itself as target. Within a pseudo-lesion, and in slices whose intensities are exchanged for
random ones, the target is the answer of the network before the training (learning without forgetting, Li and Hoiem
2016): it goes on to remove what it has removed, and to treat other contrasts as it has treated them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maediff.config import Config
from maediff.diffusion.noise import generator
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.objective import estimate_of, perturb
from maediff.training.stream import Sample

_EXCHANGED = 4
"""One sample of so many has its intensities exchanged."""
_KNOTS = 6
"""Points of the random curve that exchanges intensities."""


class Rehearsal:
    """Replace the targets of samples.

    Args:
        base: The network before the training; it is only asked.
        config: Configuration of the samples.
    """

    def __init__(self, base: Reconstructor, config: Config) -> None:
        self.base = base.eval()
        self.config = config

    @torch.no_grad()
    def __call__(self, batch: Sample, number: int) -> Sample:
        """Return a batch (B, …) with new targets, and with exchanged intensities in the first samples.

        Args:
            batch: Samples of :class:`maediff.training.stream.SampleStream`, on the device of the base. Channels that
                the base does not have, which only side networks see, come last and stay as they are.
            number: Of the batch, from which chance is drawn.
        """
        known = {name: batch[name][:, : self.base.channels].clone() for name in ("image", "clean", "noise")}
        image, clean = known["image"], known["clean"]
        count = len(image) // _EXCHANGED
        rng = generator("rehearsal", self.config.train.seed, number)
        for index in range(count):
            curve = (torch.rand(_KNOTS, generator=rng) * 2 - 1).to(image)
            image[index], clean[index] = exchanged(image[index], curve), exchanged(clean[index], curve)
        kept = (image - clean).abs() > 0
        kept[:count] = True
        answer = self._answer({**batch, **known})
        inside = kept & (clean > -1)  # outside the brain there is nothing to draw
        beside = {name: batch[name][:, self.base.channels :] for name in ("image", "clean")}
        return {
            **batch,
            "image": torch.cat([image, beside["image"]], 1),
            "clean": torch.cat([torch.where(inside, answer, clean), beside["clean"]], 1),
        }

    def _answer(self, batch: Sample) -> Tensor:
        noised = perturb(batch, batch["mask"], self.base.abar)
        prediction = self.base(noised.image, noised.mask, batch["t"]).prediction.float()
        return estimate_of(self.config.diffusion, prediction, noised.own(prediction.shape[1]))


def exchanged(image: Tensor, curve: Tensor) -> Tensor:
    """Replace intensities by those of a curve through points that are evenly spaced from -1 to 1.

    Args:
        image: Any shape, working units; -1, the background, stays.
        curve: (K,) new intensities; above 1 the last one goes on.
    """
    place = ((image + 1) / 2).clamp(0, 1) * (len(curve) - 1)
    below = place.floor().clamp(max=len(curve) - 2)
    share = place - below
    index = below.long()
    return torch.where(image > -1, curve[index] * (1 - share) + curve[index + 1] * share, image)
