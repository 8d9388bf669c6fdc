"""The model folder: written whole, verified before it is read.

A model folder is data only; nothing in it is unpickled::

    model.safetensors   the weights
    config.yaml         the whole configuration, preprocessing included
    calibration.json    the threshold and where it came from; null until calibrated
    README.md           the model card
    model.json          the schema number and the version that wrote the folder
    locations.safetensors   healthy residuals by place, if the calibration uses them; else absent
    adapter.safetensors     of an adapted model, instead of model.safetensors: low-rank updates of its base's weights,
                            or side networks that steer it
    SHA256SUMS          a checksum for each of the above, as `sha256sum -c` reads it

The model hash is the SHA-256 of the text of SHA256SUMS.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maediff._version import __version__
from maediff.errors import ConfigError, ModelError, OutputError
from maediff.files import atomic_path, cannot_write, file_sha256, flush_folder, json_text, write_json, write_text
from maediff.paths import WRITTEN_IN, stored_path, stored_places
from maediff.staging import (
    ADAPTER,
    CALIBRATION,
    CARD,
    CHECKSUMS,
    CONFIG,
    FILES,
    LOCATIONS,
    MANIFEST,
    WEIGHTS,
    format_sums,
    parse_sums,
    read_text,
    remove_staged,
    replace_files,
    settled_sums,
    sums_in_force,
)

if TYPE_CHECKING:
    import torch

    from maediff.config import Config  # its schema is slow to build, and checking a folder does not need it
    from maediff.low_rank import Adapter

SCHEMA = 1
FACTS = "maediff"
"""Key of its metadata under which it says what it is made of, as JSON."""
PACKAGED = Path(__file__).parent / "weights"
_MAX_REASON = 1000  # characters of another library's error


@dataclass(frozen=True)
class StoredModel:
    """What a model folder holds.

    Attributes:
        weights: Tensor of each parameter and buffer, on the CPU.
        config: The configuration that the weights were trained with.
        calibration: ``Calibration.to_dict()`` of the threshold, or None before calibration.
        card: The model card, Markdown.
        hash: SHA-256 over the folder's checksums: changes with any byte of the model.
        locations: Bytes of the healthy residuals by place, or None if the calibration does not rest on them.
        base: Folder of the base of an adapted model, whose weights are merged with the adapter's here; else None.
        adapted_to: Contrasts of the scans that it was adapted to; empty if they were not read.
    """

    weights: dict[str, torch.Tensor]
    config: Config
    calibration: dict[str, Any] | None
    card: str
    hash: str
    locations: bytes | None = None
    base: Path | None = None
    adapted_to: tuple[str, ...] = ()


def save_model(
    folder: str | Path,
    weights: Mapping[str, torch.Tensor],
    config: Config,
    calibration: Mapping[str, Any] | None,
    card: str,
) -> str:
    """Write a model folder; a model that was there before is replaced, other files stay.

    All files are written beside the folder first, then moved in: a new folder at once, a replaced one file by file
    with the checksums last. A save that is cut off leaves the earlier model, or (within the moment of moving) a
    folder that its checksums refuse and that the next save mends; never a mixture that can be used.

    Args:
        folder: Where to write.
        weights: Tensors by name; moved to the CPU and made contiguous.
        config: The configuration that rebuilds the network and its preprocessing.
        calibration: ``Calibration.to_dict()``, or None.
        card: The model card, Markdown.

    Returns:
        The model hash.

    Raises:
        OutputError: The folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    # save_file would hide the file from everyone else (mode 0600)
    return _save(Path(folder), (WEIGHTS, save(tensors)), config, calibration, card)


def save_adapted(folder: str | Path, adapter: Adapter, base: str | Path, config: Config, card: str) -> str:
    """Write an adapted model: an adapter beside a reference to its base, by the hash of the base's weights.

    Args:
        folder: Where to write, as :func:`save_model` does.
        adapter: Its tensors and what they are made of; where the base is, is added.
        base: Model folder of the base, which is not adapted itself.
        config: The base's configuration, with the side networks if there are any.
        card: The model card, Markdown.

    Returns:
        The model hash.

    Raises:
        ConfigError: The adapter is too large, see :meth:`maediff.low_rank.Adapter.check_size`.
        ModelError: The base is not a sound model, or is adapted itself.
        OutputError: The folder cannot be written.
    """
    folder, base = Path(folder), resolve_model(base)
    check_beside(base, folder)
    digest = _base_weights(base)
    packaged = base.name if base.parent == PACKAGED else None
    place = packaged or stored_path(base, folder)
    reference = {"base": place, "base_weights": digest, WRITTEN_IN: str(folder.resolve())}
    adapter = replace(adapter, facts={**adapter.facts, **reference})
    adapter.check_size()
    return _save(folder, (ADAPTER, adapter.to_bytes()), config, None, card)


def check_beside(base: Path, folder: Path) -> None:
    """Refuse to write an adapter into the folder of its base, whose weights it would replace.

    Raises:
        OutputError: The two are one folder.
    """
    if folder.resolve() == base.resolve():
        raise OutputError(f"{folder} is the model that is adapted, and would be lost; choose another folder for -o")


def merge_adapter(model: str | Path, folder: str | Path) -> str:
    """Write an adapted model as a stand-alone model, with its calibration; its maps stay the same, bit for bit.

    Args:
        model: The adapted model.
        folder: Where to write.

    Returns:
        The model hash.

    Raises:
        ModelError: The model is not adapted, or its base cannot be found.
        OutputError: The folder cannot be written.
    """
    stored = load_model_folder(resolve_model(model))
    if stored.base is None:
        raise ModelError(f"{model} is no adapted model: there is nothing to merge")
    merged = save_model(folder, stored.weights, stored.config, stored.calibration, stored.card)
    if stored.calibration is not None and stored.locations is not None:
        merged = update_calibration(folder, stored.calibration, locations=stored.locations)
    return merged


def _save(
    folder: Path, content: tuple[str, bytes], config: Config, calibration: Mapping[str, Any] | None, card: str
) -> str:
    """Write a model folder whose weights, or adapter, are given as a file's name and bytes."""
    from maediff.config import dump_yaml

    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    files = (content[0], *(name for name in FILES if name != WEIGHTS))
    try:
        with atomic_path(staging / content[0]) as temporary:
            temporary.write_bytes(content[1])
        write_text(staging / CONFIG, dump_yaml(config))
        write_json(staging / CALIBRATION, None if calibration is None else dict(calibration))
        write_text(staging / CARD, card)
        write_json(staging / MANIFEST, {"schema": SCHEMA, "maediff": __version__})
        write_text(staging / CHECKSUMS, format_sums({name: file_sha256(staging / name) for name in files}))
        return _move_in(staging, folder, files)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_model_folder(folder: str | Path) -> StoredModel:
    """Read a model folder after checking its schema and every checksum.

    Raises:
        ModelError: The folder is missing or incomplete, a checksum does not fit, or the schema is newer
            than this version reads.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from maediff.config import load_config

    folder = Path(folder)
    text = _verified(folder)
    adapter, base = _adapter(folder, text)
    try:
        weights = load_file((base or folder) / WEIGHTS)
        config = load_config(folder / CONFIG)
        calibration = read_calibration(folder)
        card = (folder / CARD).read_text(encoding="utf-8")
        locations = (folder / LOCATIONS).read_bytes() if LOCATIONS in parse_sums(text, folder) else None
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise ModelError(f"model folder {folder} cannot be read: {str(error)[:_MAX_REASON]}") from error
    adapted_to: tuple[str, ...] = ()
    if adapter is not None:
        weights, adapted_to = adapter.merged(weights), tuple(map(str, adapter.facts.get("contrasts", ())))
    model_hash = hashlib.sha256(text.encode()).hexdigest()
    return StoredModel(weights, config, calibration, card, model_hash, locations, base, adapted_to)


def model_files(folder: str | Path) -> tuple[str, ...]:
    """Verify a model folder that stands on its own and name its files, the checksums last.

    Raises:
        ModelError: As :func:`load_model_folder`, or the model is adapted: without its base nobody can use it.
    """
    sums = parse_sums(_verified(Path(folder)), Path(folder))
    if ADAPTER in sums:
        raise ModelError(
            f"{folder} is an adapter of another model and cannot be passed on alone; merge them first: maediff adapt "
            f"-m {folder} --merge -o MODEL"
        )
    return (*sums, CHECKSUMS)


def _adapter(folder: Path, text: str) -> tuple[Adapter | None, Path | None]:
    """Read the adapter of a folder and find its base; both are None if the folder has its own weights.

    Raises:
        ModelError: The base is gone, is another one, or is adapted itself.
    """
    if ADAPTER not in parse_sums(text, folder):
        return None, None
    from maediff.low_rank import Adapter  # loads torch, which most models are described without

    adapter = Adapter.from_bytes((folder / ADAPTER).read_bytes())
    name, wanted = str(adapter.facts.get("base")), adapter.facts.get("base_weights")
    places = [PACKAGED / name] if name in packaged_models() else stored_places(name, folder, adapter.facts)
    found = {place: _base_weights(place) for place in places if (place / CHECKSUMS).is_file()}
    for base, digest in found.items():
        if digest == wanted:
            return adapter, base
    own = f"the model whose weights have the hash {str(wanted)[:12]}…"
    for base, digest in found.items():
        raise ModelError(f"{folder} is an adapter of another base: {own}; {base} has {digest[:12]}…. Put its own back")
    raise ModelError(f"{folder} is an adapter of {name}, which is not there; put back {own}")


def _base_weights(base: Path) -> str:
    """Return the hash of the weights of a model that can be adapted.

    Raises:
        ModelError: It is not sound, or adapted itself: adapters are never stacked.
    """
    sums = parse_sums(_verified(base), base)
    if ADAPTER in sums:
        raise ModelError(
            f"{base} is adapted already, and adapters are not stacked; adapt its base, or merge first: maediff adapt "
            f"-m {base} --merge -o MODEL"
        )
    return sums[WEIGHTS]


def verify_model_folder(folder: str | Path) -> str:
    """Check schema and checksums of a model folder without loading its weights.

    Returns:
        The model hash.

    Raises:
        ModelError: As :func:`load_model_folder`.
    """
    return hashlib.sha256(_verified(Path(folder)).encode()).hexdigest()


def _verified(folder: Path) -> str:
    """Check schema and checksums and return the text of the checksums in force."""
    if not folder.is_dir():
        raise ModelError(
            f"no model folder at {folder}; give a folder that `maediff train` wrote, or {_packaged_hint(str(folder))}"
        )
    _check_schema(folder)
    return sums_in_force(folder)


def update_calibration(
    folder: str | Path, calibration: Mapping[str, Any], *, card: str | None = None, locations: bytes | None = None
) -> str:
    """Put another calibration, and what belongs to it, into a verified model folder, all at once.

    The configuration's `score.locations` follows: true if there are healthy residuals by place, else false.

    Args:
        folder: A model folder.
        calibration: ``Calibration.to_dict()``.
        card: The card that tells of it, Markdown; the earlier one stays if not given.
        locations: Bytes of the healthy residuals by place that the maps rest on; earlier ones go if not given.

    Returns:
        The new model hash.

    Raises:
        ModelError: The folder is not a sound model.
        OutputError: It cannot be written.
    """
    from maediff.config import dump_yaml, load_config, override

    folder = Path(folder)
    sums = settled_sums(folder, _verified(folder))
    contents = {CALIBRATION: json_text(dict(calibration)).encode(), LOCATIONS: locations}
    if card is not None:
        contents[CARD] = card.encode()
    config = load_config(folder / CONFIG)
    if config.score.locations != (locations is not None):
        chosen = override(config, [f"score.locations={str(locations is not None).lower()}"])
        contents[CONFIG] = dump_yaml(chosen).encode()
    return replace_files(folder, sums, contents)


def update_card(folder: str | Path, card: str) -> str:
    """Put another model card into a verified model folder; returns and errors as :func:`update_calibration`.

    Args:
        folder: A model folder.
        card: The card, Markdown.
    """
    return replace_files(
        Path(folder),
        settled_sums(Path(folder), _verified(Path(folder))),
        {CARD: card.encode(errors="backslashreplace")},
    )


def describe_model(folder: str | Path) -> dict[str, Any]:
    """Verify a model folder and tell what it is, without torch and without loading its weights.

    Returns:
        Plain values: hash, version, parameters, sizes, how it works, its calibration and its card (Markdown).

    Raises:
        ModelError: As :func:`load_model_folder`.
    """
    from safetensors import SafetensorError

    from maediff.config import load_config

    folder = Path(folder)
    text = _verified(folder)
    adapter, base = _adapter(folder, text)
    weights = (base or folder) / WEIGHTS
    try:
        config = load_config(folder / CONFIG)
        calibration = read_calibration(folder)
        parameters = _count_parameters(weights)
        locations = _describe_locations(folder) if LOCATIONS in parse_sums(text, folder) else None
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise ModelError(f"model folder {folder} cannot be read: {str(error)[:_MAX_REASON]}") from error
    keys = ("threshold", "false_positive_rate", "n_scans", "origin")
    return {
        "folder": str(folder),
        "hash": hashlib.sha256(text.encode()).hexdigest(),
        "written_by": json.loads(read_text(folder / MANIFEST)).get("maediff"),
        "parameters": parameters,
        "weights_mib": round(weights.stat().st_size / 1024**2, 2),
        **({} if adapter is None else {"adapter": _describe_adapter(folder, adapter)}),
        **({"channels": list(config.data.channels)} if config.data.channels else {}),
        "size": list(config.data.size),
        "spacing_mm": config.data.spacing_mm,
        "window": config.partition.window,
        "stride": config.partition.stride,
        "condition": config.model.condition,
        "objective": config.diffusion.objective,
        "test_timesteps": list(config.diffusion.test_timesteps),
        "score": config.score.model_dump(mode="json"),
        "calibration": None if calibration is None else {key: calibration.get(key) for key in keys},
        "locations": locations,
        "card": read_text(folder / CARD),
    }


def packaged_models() -> tuple[str, ...]:
    """Name the models that ship with the package."""
    return tuple(sorted(path.parent.name for path in PACKAGED.glob(f"*/{CHECKSUMS}")))


def resolve_model(name: str | Path) -> Path:
    """Find a model folder by the name of a packaged model, or by path.

    ``RUN`` of ``maediff train`` is accepted for ``RUN/model``.

    Raises:
        ModelError: Neither a packaged model nor a folder with a model.
    """
    if str(name) in packaged_models():
        return PACKAGED / str(name)
    path = Path(name)
    for folder in (path, path / "model"):
        if (folder / CHECKSUMS).is_file():
            return folder
    if path.is_dir():
        raise ModelError(f"{path} holds no model ({CHECKSUMS} is missing); give RUN/model of a finished training")
    raise ModelError(f"no model {str(name)!r}: neither a folder nor packaged; {_packaged_hint(str(name))}")


def own_model(name: str | Path) -> Path:
    """Find a model folder that may be changed, as :func:`resolve_model` does; packaged models may not.

    Raises:
        ConfigError: It is a packaged model, by its name: all who use the installation share it.
        ModelError: No folder with a model.
    """
    folder = resolve_model(name)
    if str(name) in packaged_models():
        raise ConfigError(
            f"{name} is the model of this installation, which others use too; copy it first, and change the copy: "
            f"cp -r {folder} mine"
        )
    return folder


def _count_parameters(path: Path) -> int:
    """Count from the header of a safetensors file, which the library checks."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as stream:
        return sum(math.prod(stream.get_slice(name).get_shape()) for name in stream.keys())  # noqa: SIM118  no mapping


def _describe_locations(folder: Path) -> dict[str, Any]:
    """Read what the healthy residuals by place are made of."""
    from safetensors import safe_open

    with safe_open(folder / LOCATIONS, framework="np") as stream:
        facts: dict[str, Any] = json.loads((stream.metadata() or {}).get(FACTS, "{}"))
    return facts


def _describe_adapter(folder: Path, adapter: Adapter) -> dict[str, Any]:
    """Describe an adapter and its size."""
    facts = {name: value for name, value in adapter.facts.items() if name != WRITTEN_IN}
    if adapter.names:
        facts["layers"] = len(adapter.names)
    else:
        facts["parameters"] = sum(value.numel() for value in adapter.updates.values())
    return {**facts, "mib": round((folder / ADAPTER).stat().st_size / 1024**2, 3)}


def _packaged_hint(name: str) -> str:
    near = difflib.get_close_matches(name[:_MAX_REASON], packaged_models(), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"packaged: {', '.join(packaged_models()) or 'none'}"


def _move_in(staging: Path, folder: Path, files: Sequence[str]) -> str:
    text = (staging / CHECKSUMS).read_text(encoding="utf-8")
    if not folder.exists():
        os.replace(staging, folder)
    else:
        for name in (*files, CHECKSUMS):
            os.replace(staging / name, folder / name)
        for name in {LOCATIONS, WEIGHTS, ADAPTER} - set(files):
            (folder / name).unlink(missing_ok=True)  # of the earlier model
        remove_staged(folder)
        flush_folder(folder)
    flush_folder(folder.parent)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_schema(folder: Path) -> None:
    try:
        schema = json.loads(read_text(folder / MANIFEST))["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} states no schema number; this is not a MAEDiff model") from error
    if not isinstance(schema, int) or schema < 1:
        raise ModelError(f"{folder / MANIFEST} states schema {schema!r}; it must be a number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise ModelError(f"{folder} has schema {schema}, this MAEDiff reads up to {SCHEMA}; upgrade MAEDiff")


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """Read the calibration of a model folder; None before calibration.

    Raises:
        ModelError: The file cannot be read.
    """
    calibration = json.loads(read_text(folder / CALIBRATION))
    if calibration is None or isinstance(calibration, dict):
        return calibration
    raise ModelError(f"{folder / CALIBRATION} holds {type(calibration).__name__}; expected an object or null")
