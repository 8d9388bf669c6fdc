"""Files that are either whole or absent, and the model folder.

A model folder is data only; nothing in it is unpickled::

    model.safetensors   the weights
    config.yaml         the whole configuration, preprocessing included
    calibration.json    the threshold and where it came from; null until calibrated
    README.md           the model card
    model.json          the schema number and the version that wrote the folder
    locations.safetensors   healthy residuals by place, where the calibration rests on them; else absent
    SHA256SUMS          a checksum for each of the above, as `sha256sum -c` reads it

The model hash is the SHA-256 of the text of SHA256SUMS.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maediff import __version__
from maediff.config import Config, dump_yaml, load_config, override
from maediff.errors import ConfigError, ModelError, OutputError
from maediff.system import memory_bytes

if TYPE_CHECKING:
    import torch

SCHEMA = 1
WEIGHTS, CONFIG, CALIBRATION, CARD, MANIFEST = (
    "model.safetensors",
    "config.yaml",
    "calibration.json",
    "README.md",
    "model.json",
)
FILES = (WEIGHTS, CONFIG, CALIBRATION, CARD, MANIFEST)
LOCATIONS = "locations.safetensors"
"""The one file that a model folder may lack."""
FACTS = "maediff"
"""Key of its metadata under which it says what it is made of, as JSON."""
CHECKSUMS = "SHA256SUMS"
_ALLOWED = (*FILES, LOCATIONS)
PACKAGED = Path(__file__).parent / "weights"
_MAX_REASON = 1000  # characters of another library's error
_MAX_TEXT_BYTES = 64 * 1024**2  # no file of a model folder but the weights is anywhere near
_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder; what is finished is kept",
    errno.EDQUOT: "free some of the quota or choose another folder; what is finished is kept",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that can be written"),
}


@dataclass(frozen=True)
class StoredModel:
    """What a model folder holds.

    Attributes:
        weights: Tensor of each parameter and buffer, on the CPU.
        config: The configuration that the weights were trained with.
        calibration: ``Calibration.to_dict()`` of the threshold, or None before calibration.
        card: The model card, Markdown.
        hash: SHA-256 over the folder's checksums: changes with any byte of the model.
        locations: Bytes of the healthy residuals by place, or None where the calibration does not rest on them.
    """

    weights: dict[str, torch.Tensor]
    config: Config
    calibration: dict[str, Any] | None
    card: str
    hash: str
    locations: bytes | None = None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file so that it is present only when finished.

    Yields a temporary path in the same folder with the same suffixes (writers choose the format by it).
    On success it is flushed to disk and renamed to ``path``; on any error it is removed and an earlier
    ``path`` stays as it was. Missing parent folders are made.

    Raises:
        OutputError: The folder or the file cannot be written (any OSError inside the block).

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "map.nii.gz"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_bytes(b"finished")
        >>> target.read_bytes(), temporary.exists()
        (b'finished', False)
    """
    path = Path(path)
    stem, dot, suffixes = _parts(path)
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}{dot}{suffixes}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Word why a file cannot be written and what to do, as an error to raise."""
    advice = _ADVICE.get(error.errno or 0, "choose a folder that exists or can be made")
    return OutputError(f"cannot write {path}: {error.strerror or error}; {advice}")


def remove_leftovers(path: Path) -> None:
    """Remove what a killed writer of ``path`` left beside it; only for the one process that may write ``path``."""
    stem, dot, suffixes = _parts(path)
    leftover = re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{8}}{re.escape(dot + suffixes)}")
    with suppress(OSError):  # a missing folder holds nothing
        for found in [entry for entry in path.parent.iterdir() if leftover.fullmatch(entry.name)]:
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink()


def _parts(path: Path) -> tuple[str, str, str]:
    """Part a name into the start of its stem, the dot and the suffixes, of which temporary names are made."""
    stem, dot, suffixes = path.name.lstrip(".").partition(".")
    return stem[:80], dot, suffixes


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically (see :func:`atomic_path`).

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused because JSON has neither.

    Raises:
        OutputError: The file cannot be written.
        ValueError: ``value`` holds a NaN or an infinity.
        TypeError: ``value`` holds something that JSON cannot express.
    """
    write_text(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a file that is missing, unreadable or holds anything else counts as empty."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def file_sha256(path: str | Path) -> str:
    """Hash a file's bytes, reading in pieces.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


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

    folder = Path(folder)
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
        with atomic_path(staging / WEIGHTS) as temporary:
            temporary.write_bytes(save(tensors))  # save_file would hide the file from everyone else (mode 0600)
        write_text(staging / CONFIG, dump_yaml(config))
        write_json(staging / CALIBRATION, None if calibration is None else dict(calibration))
        write_text(staging / CARD, card)
        write_json(staging / MANIFEST, {"schema": SCHEMA, "maediff": __version__})
        write_text(staging / CHECKSUMS, _format_sums({name: file_sha256(staging / name) for name in FILES}))
        return _move_in(staging, folder)
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

    folder = Path(folder)
    text = _sums_in_force(folder)
    try:
        weights = load_file(folder / WEIGHTS)
        config = load_config(folder / CONFIG)
        calibration = read_calibration(folder)
        card = (folder / CARD).read_text(encoding="utf-8")
        locations = (folder / LOCATIONS).read_bytes() if LOCATIONS in _parse_sums(text, folder) else None
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise ModelError(f"model folder {folder} cannot be read: {str(error)[:_MAX_REASON]}") from error
    return StoredModel(weights, config, calibration, card, hashlib.sha256(text.encode()).hexdigest(), locations)


def model_files(folder: str | Path) -> tuple[str, ...]:
    """Verify a model folder and name its files, the checksums last.

    Raises:
        ModelError: As :func:`load_model_folder`.
    """
    return (*_parse_sums(_sums_in_force(Path(folder)), Path(folder)), CHECKSUMS)


def verify_model_folder(folder: str | Path) -> str:
    """Check schema and checksums of a model folder without loading its weights.

    Returns:
        The model hash.

    Raises:
        ModelError: As :func:`load_model_folder`.
    """
    return hashlib.sha256(_sums_in_force(Path(folder)).encode()).hexdigest()


def _sums_in_force(folder: Path) -> str:
    """Verify a model folder and return the text of the checksums that fit it.

    They are those of SHA256SUMS or, where :func:`_replace` was killed while it moved its files in, the next ones; the
    moves are finished then.
    """
    if not folder.is_dir():
        raise ModelError(
            f"no model folder at {folder}; give a folder that `maediff train` wrote, or {_packaged_hint(str(folder))}"
        )
    _check_schema(folder)
    try:
        return _fitting_sums(folder, CHECKSUMS)
    except ModelError:
        if (folder / _next(CHECKSUMS)).is_file():
            with suppress(ModelError):
                return _rolled_forward(folder)
        raise


def _rolled_forward(folder: Path) -> str:
    """Move in what a killed replacement had staged; nothing is moved unless all files fit afterwards."""
    sums = _parse_sums(_read_text(folder / _next(CHECKSUMS)), folder)
    staged = [name for name, digest in sums.items() if _has(folder / _next(name), digest)]
    for name in sums.keys() - staged:
        if not _has(folder / name, sums[name]):
            raise ModelError(f"{folder / name} does not fit {_next(CHECKSUMS)}; the model is damaged: fetch it again")
    try:
        _move_staged(folder, staged)
    except OSError as error:
        raise ModelError(
            f"a calibration of {folder} was cut off and cannot be finished: {error.strerror}; let someone who may "
            "write there run `maediff info` on it"
        ) from error
    text = _fitting_sums(folder, _next(CHECKSUMS))
    with suppress(OSError):  # who may not write has the text
        os.replace(folder / _next(CHECKSUMS), folder / CHECKSUMS)
    return text


def _move_staged(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):  # who reads the folder finishes the moves, too, and may be faster
            os.replace(folder / _next(name), folder / name)


def _next(name: str) -> str:
    """Name the hidden file that waits to replace another."""
    return f".{name}.next"


def _has(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and file_sha256(path) == digest
    except OSError:
        return False


def _fitting_sums(folder: Path, sums: str) -> str:
    text = _read_text(folder / sums)
    for name, expected in _parse_sums(text, folder).items():
        if not (folder / name).is_file():  # a device or a pipe would be read for ever
            raise ModelError(f"{folder / name} is listed in {CHECKSUMS} but is missing or is not a file")
        _check_size(folder / name)
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise ModelError(
                f"{folder / name} is listed in {CHECKSUMS} but cannot be read: {error.strerror}"
            ) from error
        if found != expected:
            raise ModelError(
                f"{folder / name} does not fit its checksum (found {found[:12]}…, {CHECKSUMS} says {expected[:12]}…); "
                "the model is damaged or was edited: fetch or train it again"
            )
    return text


def update_calibration(
    folder: str | Path, calibration: Mapping[str, Any], *, card: str | None = None, locations: bytes | None = None
) -> str:
    """Put another calibration, and what belongs to it, into a verified model folder, all at once.

    The configuration's `score.locations` follows: true where there are healthy residuals by place, else false.

    Args:
        folder: A model folder.
        calibration: ``Calibration.to_dict()``.
        card: The card that tells of it, Markdown; the earlier one stays where not given.
        locations: Bytes of the healthy residuals by place that the maps rest on; earlier ones go where not given.

    Returns:
        The new model hash.

    Raises:
        ModelError: The folder is not a sound model.
        OutputError: It cannot be written.
    """
    folder = Path(folder)
    sums = _settled_sums(folder)
    contents = {CALIBRATION: _json_text(dict(calibration)).encode(), LOCATIONS: locations}
    if card is not None:
        contents[CARD] = card.encode()
    config = load_config(folder / CONFIG)
    if config.score.locations != (locations is not None):
        chosen = override(config, [f"score.locations={str(locations is not None).lower()}"])
        contents[CONFIG] = dump_yaml(chosen).encode()
    return _replace(folder, sums, contents)


def update_card(folder: str | Path, card: str) -> str:
    """Put another model card into a verified model folder; returns and errors as :func:`update_calibration`.

    Args:
        folder: A model folder.
        card: The card, Markdown.
    """
    return _replace(Path(folder), _settled_sums(Path(folder)), {CARD: card.encode()})


def _settled_sums(folder: Path) -> dict[str, str]:
    """Verify a model folder and clear away what a killed replacement left; for the one process that writes there."""
    text = _sums_in_force(folder)
    if _read_text(folder / CHECKSUMS) != text:
        _put_in_force(folder, text)
    remove_staged(folder)
    return _parse_sums(text, folder)


def remove_staged(folder: Path) -> None:
    """Remove what a killed replacement of files of a model folder left; for the one process that writes there."""
    for name in (CHECKSUMS, *_ALLOWED):  # the checksums first: without them nothing that is staged counts
        with suppress(OSError):
            (folder / _next(name)).unlink()
        remove_leftovers(folder / _next(name))
        remove_leftovers(folder / name)


def _replace(folder: Path, sums: Mapping[str, str], contents: Mapping[str, bytes | None]) -> str:
    """Replace files of a model folder, or remove those without content, all or none of them.

    The new files are staged under hidden names, their checksums last. Once these are there, the files are moved in,
    and whoever finds the folder half-way finishes the moves: killed at any moment, it is the old model or the new one.
    """
    kept = {name: digest for name, digest in sums.items() if name not in contents}
    new = {name: content for name, content in contents.items() if content is not None}
    text = _format_sums(kept | {name: hashlib.sha256(content).hexdigest() for name, content in new.items()})
    try:
        for name, content in new.items():
            with atomic_path(folder / _next(name)) as temporary:
                temporary.write_bytes(content)
        write_text(folder / _next(CHECKSUMS), text)
    except BaseException:
        remove_staged(folder)
        raise
    _put_in_force(folder, text, new)
    return hashlib.sha256(text.encode()).hexdigest()


def _put_in_force(folder: Path, text: str, staged: Iterable[str] = ()) -> None:
    """Move staged files in, let the next checksums be those of the folder, and remove what they do not list."""
    try:
        _move_staged(folder, staged)
        with suppress(FileNotFoundError):
            os.replace(folder / _next(CHECKSUMS), folder / CHECKSUMS)
        if LOCATIONS not in _parse_sums(text, folder):
            (folder / LOCATIONS).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder / CHECKSUMS, error) from error
    _flush_folder(folder)


def describe_model(folder: str | Path) -> dict[str, Any]:
    """Verify a model folder and tell what it is, without torch and without loading its weights.

    Returns:
        Plain values: hash, version, parameters, sizes, how it works, its calibration and its card (Markdown).

    Raises:
        ModelError: As :func:`load_model_folder`.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    text = _sums_in_force(folder)
    try:
        config = load_config(folder / CONFIG)
        calibration = read_calibration(folder)
        parameters = _count_parameters(folder / WEIGHTS)
        locations = _describe_locations(folder) if LOCATIONS in _parse_sums(text, folder) else None
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise ModelError(f"model folder {folder} cannot be read: {str(error)[:_MAX_REASON]}") from error
    keys = ("threshold", "false_positive_rate", "n_scans", "origin")
    return {
        "folder": str(folder),
        "hash": hashlib.sha256(text.encode()).hexdigest(),
        "written_by": json.loads(_read_text(folder / MANIFEST)).get("maediff"),
        "parameters": parameters,
        "weights_mib": round((folder / WEIGHTS).stat().st_size / 1024**2, 2),
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
        "card": _read_text(folder / CARD),
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


def _packaged_hint(name: str) -> str:
    near = difflib.get_close_matches(name[:_MAX_REASON], packaged_models(), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"packaged: {', '.join(packaged_models()) or 'none'}"


def _move_in(staging: Path, folder: Path) -> str:
    text = (staging / CHECKSUMS).read_text(encoding="utf-8")
    if not folder.exists():
        os.replace(staging, folder)
    else:
        for name in (*FILES, CHECKSUMS):
            os.replace(staging / name, folder / name)
        (folder / LOCATIONS).unlink(missing_ok=True)  # of the calibration of the earlier model
        remove_staged(folder)
        _flush_folder(folder)
    _flush_folder(folder.parent)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_schema(folder: Path) -> None:
    try:
        schema = json.loads(_read_text(folder / MANIFEST))["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} states no schema number; this is not a MAEDiff model") from error
    if not isinstance(schema, int) or schema < 1:
        raise ModelError(f"{folder / MANIFEST} states schema {schema!r}; it must be a number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise ModelError(f"{folder} has schema {schema}, this MAEDiff reads up to {SCHEMA}; upgrade MAEDiff")


def _check_size(path: Path) -> None:
    """Refuse a file of a model folder before it is read: a sparse one can claim any size."""
    size, limit = path.stat().st_size, _MAX_TEXT_BYTES if path.name != WEIGHTS else memory_bytes()
    if limit is not None and size > limit:
        raise ModelError(f"{path} has {size} bytes; at most {limit} are read: it is damaged, or no MAEDiff model")


def _read_text(path: Path) -> str:
    try:
        if path.is_file():
            _check_size(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}; this is not a whole MAEDiff model folder") from error


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """Read the calibration of a model folder; None before calibration.

    Raises:
        ModelError: The file cannot be read.
    """
    calibration = json.loads(_read_text(folder / CALIBRATION))
    if calibration is None or isinstance(calibration, dict):
        return calibration
    raise ModelError(f"{folder / CALIBRATION} holds {type(calibration).__name__}; expected an object or null")


def _format_sums(sums: Mapping[str, str]) -> str:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _parse_sums(text: str, folder: Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if name not in _ALLOWED:  # also keeps every path inside the folder
            raise ModelError(f"{folder / CHECKSUMS} lists {name!r}; allowed are {', '.join(_ALLOWED)}")
        sums[name] = digest
    missing = [name for name in FILES if name not in sums]
    if missing:
        raise ModelError(
            f"{folder / CHECKSUMS} lists no {', '.join(missing)}; this is not a whole MAEDiff model folder"
        )
    return sums


def _flush(path: Path) -> None:
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
