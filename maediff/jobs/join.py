"""Join side networks that were trained on the same base, each alone, into one adapted model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from maediff.config import Config, override
from maediff.errors import ConfigError, ModelError
from maediff.low_rank import Adapter
from maediff.model_folder import StoredModel, describe_model, load_model_folder, resolve_model, save_adapted


def join_adapted(models: Sequence[str | Path], out: str | Path) -> str:
    """Write an adapted model with the side networks of several, in their order, each with factor 1.

    Their residuals are added; `structure.omega` scales them. The joined model has no threshold until it is calibrated.

    Args:
        models: Adapted models of one base, two or more.
        out: Where to write.

    Returns:
        The model hash.

    Raises:
        ConfigError: Their bases reconstruct channels of other names.
        ModelError: One holds no side network, or belongs to another base.
        OutputError: The folder cannot be written.
    """
    folders = [resolve_model(model) for model in models]
    stored = [load_model_folder(folder) for folder in folders]
    _check(folders, stored)
    base = load_model_folder(stored[0].base or folders[0])
    first = len(base.config.structure.kinds)
    tensors: dict[str, Tensor] = {}
    kinds, guides = [*base.config.structure.kinds], [*base.config.structure.guides]
    for model in stored:
        theirs = model.config.structure
        for index in range(first, len(theirs.kinds)):
            old, new = f"structure.{index}.", f"structure.{len(kinds)}."
            own = {name: value for name, value in model.weights.items() if name.startswith(old)}
            tensors |= {new + name.removeprefix(old): value for name, value in own.items()}
            kinds.append(theirs.kinds[index])
            guides.append(theirs.guides[index])
    changes = [f"structure.kinds=[{', '.join(kinds)}]", f"structure.guides=[{', '.join(guides)}]", "structure.omega=[]"]
    channels = _channels([model.config for model in stored])
    if channels:
        changes += [f"data.channels=[{', '.join(channels)}]", "heads.enabled=false"]
    names = ", ".join(folder.name for folder in folders[1:])
    card = f"{stored[0].card.rstrip()}\n\nThe side networks of {names} were joined to it.\n"
    facts = {"joined": [model.hash for model in stored]}
    return save_adapted(out, Adapter(tensors, facts), stored[0].base or "", override(stored[0].config, changes), card)


def _check(folders: Sequence[Path], stored: Sequence[StoredModel]) -> None:
    """Refuse models without side networks of their own, or of several bases."""
    adapters = [describe_model(folder).get("adapter", {}) for folder in folders]
    for folder, adapter, model in zip(folders, adapters, stored, strict=True):
        if model.base is None or "parameters" not in adapter:
            raise ModelError(
                f"{folder} holds no side network to join; give models of maediff adapt --kind controlnet|t2i"
            )
        if adapter["base_weights"] != adapters[0]["base_weights"]:
            raise ModelError(
                f"{folder} is an adapter of another base (weights {adapter['base_weights'][:12]}…) than {folders[0]} "
                f"(weights {adapters[0]['base_weights'][:12]}…); only side networks of one base can be joined"
            )


def _channels(configs: Sequence[Config]) -> tuple[str, ...]:
    """Name the channels of a joined model: those that are reconstructed, then each guide once."""
    named = [config for config in configs if config.data.channels]
    own = {config.data.channels[: config.reconstructed_channels] for config in named}
    if len(own) > 1:
        told = " and ".join(", ".join(names) for names in sorted(own))
        raise ConfigError(f"the models name what they reconstruct differently ({told}); adapt with the same --channel")
    return tuple(dict.fromkeys(name for config in named for name in config.data.channels))
