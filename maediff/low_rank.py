"""Low-rank updates of a network's linear and convolution layers: W0 + B A, with W0 frozen.

LoRA (Hu et al. 2022) for matrices and LoCon (Yeh et al. 2024) for convolutions, whose kernels (out, in, k, k) are taken
as matrices (out, in k k). A starts random and B at zero, so that a network with fresh updates is the network itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maediff.errors import ConfigError, ModelError

FACTS = "maediff"
"""Key of an adapter file's metadata under which it says what it is made of, as JSON."""
MAX_BYTES = 2**20
"""Size of an adapter's file, at most."""
_MAX_FACTS_BYTES = 4096  # room for what is said about it later
_DOWN, _UP = ".down", ".up"


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of weights, or the weights of a side network, and what they are made of.

    Attributes:
        updates: A (rank, n) as ``NAME.down`` and B (m, rank) as ``NAME.up``, for each weight NAME that is updated; all
            other tensors are those of side networks, which the base does not have.
        facts: Plain values, such as the base that the updates belong to.
    """

    updates: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights that are updated."""
        return tuple(name.removesuffix(_UP) for name in self.updates if name.endswith(_UP))

    def to_bytes(self) -> bytes:
        """Write a safetensors file in half precision, the facts in its metadata."""
        from safetensors.torch import save

        halves = {name: value.detach().cpu().half().contiguous() for name, value in self.updates.items()}
        return save(halves, metadata={FACTS: json.dumps(dict(self.facts), sort_keys=True)})

    def check_size(self) -> None:
        """Refuse low-rank updates whose file would be larger than 1 MiB; side networks may be larger.

        Raises:
            ConfigError: It would be; the message names the rank that fits.
        """
        if not self.names:
            return
        size = len(self.to_bytes()) + _MAX_FACTS_BYTES
        if size > MAX_BYTES:
            rank = len(self.updates[f"{self.names[0]}{_DOWN}"])
            raise ConfigError(
                f"rank {rank} makes an adapter of {size / 2**20:.2f} MiB; at most {MAX_BYTES / 2**20:g} MiB are kept: "
                f"use --rank {max(1, rank * MAX_BYTES // size)} or less"
            )

    @classmethod
    def from_bytes(cls, data: bytes) -> Adapter:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ModelError: The file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            updates = load(data)
            size = int.from_bytes(data[:8], "little")
            facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][FACTS])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"the adapter is damaged ({type(error).__name__}); adapt the model again") from error
        return cls({name: value.float() for name, value in updates.items()}, facts)

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the updates to weights, W0 + B A, and put the weights of side networks beside them.

        Raises:
            ModelError: They belong to another network.
        """
        result = dict(weights)
        for name in self.names:
            update = (self.updates[name + _UP], self.updates.get(name + _DOWN))
            result[name] = _updated(name, weights.get(name), *update)
        beside = {name: value for name, value in self.updates.items() if not name.endswith((_DOWN, _UP))}
        replaced = sorted(beside.keys() & weights.keys())
        if replaced:
            raise ModelError(f"the adapter would replace {replaced[0]} of its base: it belongs to another network")
        return {**result, **beside}


class LowRank(nn.Module):
    """The update of one weight, as PyTorch's parametrisation of it.

    Args:
        shape: Of the weight, (out, in) or (out, in, k, k).
        rank: Rank of the update.

    Raises:
        ConfigError: The rank is not below both sides of the weight, as a matrix.
    """

    def __init__(self, shape: tuple[int, ...], rank: int) -> None:
        super().__init__()
        sides = (shape[0], math.prod(shape[1:]))
        if not 1 <= rank <= min(sides):
            raise ConfigError(
                f"rank {rank} does not fit a layer of {sides[0]} x {sides[1]}; use 1 to {min(sides)}, or leave it out"
            )
        self.down = nn.Parameter(torch.empty(rank, sides[1]))
        self.up = nn.Parameter(torch.zeros(sides[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W0 + B A."""
        return weight + (self.up @ self.down).reshape(weight.shape)


def attach(network: nn.Module, rank: int) -> list[nn.Parameter]:
    """Freeze a network and add fresh updates to its linear and convolution layers.

    Layers that are smaller than the rank are left as they are. The random start is drawn from torch's global generator.

    Args:
        network: Changed in place.
        rank: Of all updates.

    Returns:
        Parameters to train.

    Raises:
        ConfigError: The rank is larger than every layer.
    """
    network.requires_grad_(False)
    found = list(_layers(network))
    fitting = [(module, name) for module, name in found if rank <= _smaller_side(getattr(module, name))]
    if not fitting or rank < 1:
        most = max((_smaller_side(getattr(module, name)) for module, name in found), default=0)
        raise ConfigError(f"rank {rank} is larger than every layer of this network; use 1 to {most}")
    trained: list[nn.Parameter] = []
    for module, name in fitting:
        weight = getattr(module, name)
        update = LowRank(tuple(weight.shape), rank).to(weight.device)
        parametrize.register_parametrization(module, name, update)
        trained += [update.down, update.up]
    return trained


def detached(network: nn.Module) -> dict[str, Tensor]:
    """Copy the updates of a network that :func:`attach` changed, by the names that its weights had before."""
    updates = {}
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            weight = name.replace(".parametrizations.", ".").removeprefix("parametrizations.").rpartition(".")[0]
            updates[weight + _DOWN] = module.down.detach().cpu().clone()
            updates[weight + _UP] = module.up.detach().cpu().clone()
    return updates


def _layers(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """List modules and the names of their weights: linear layers, convolutions and the projections of attention."""
    found: list[tuple[nn.Module, str]] = []
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            found.append((module, "weight"))
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found.append((module, "in_proj_weight"))
    return found


def _smaller_side(weight: Tensor) -> int:
    return min(weight.shape[0], math.prod(weight.shape[1:]))


def _updated(name: str, weight: Tensor | None, up: Tensor, down: Tensor | None) -> Tensor:
    if weight is None or down is None:
        raise ModelError(f"the adapter updates {name}, which its base does not have: it belongs to another network")
    if (len(up), down.shape[1]) != (len(weight), math.prod(weight.shape[1:])) or up.shape[1] != len(down):
        raise ModelError(
            f"the adapter's update of {name} has {len(up)} x {down.shape[1]} values, the base's layer "
            f"{tuple(weight.shape)}: it belongs to another network"
        )
    merged: Tensor = weight.float() + (up.float() @ down.float()).reshape(weight.shape)
    return merged
