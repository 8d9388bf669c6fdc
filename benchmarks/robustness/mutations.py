"""Hostile inputs made from valid ones, for the fuzzer: a way to make one and a way to feed it, for each border."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml

from maediff.calibration import RATES, Calibration
from maediff.config import METHODS, UNTRAINED, Config, config_hash, dump_yaml, load_config, override, parse_config
from maediff.data.cases import find_cases
from maediff.evaluation.reference import Reference
from maediff.files import file_sha256
from maediff.inference.load import load_model
from maediff.methods.build import build_network, check_trainable, network_shapes
from maediff.model_folder import describe_model, save_model
from maediff.staging import CALIBRATION, CHECKSUMS, CONFIG, FILES, WEIGHTS
from maediff.volume import read_nifti
from maediff.working import prepare

Random = np.random.Generator
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 127, 255, 256, 32767, -32768, 2**31 - 1, -(2**31), 2**32, 2**63, 10**30)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"), 0.02, 50.0, 2.5)
WORDS = (
    *("", "n/a", "nan", "image", "mask", "label", "split", "train", "~", "~nobody-here/x", "../../../etc/passwd"),
    *("/dev/zero", "/dev/stdin", "a.nii.gz", "a" * 300, "x" * 70_000, "\x00", "\ufeff", "\u202e", "é", "'", '"', ","),
    *("\t", "\n", "\r", ";", "=1+1", "1e400", "1_000", "0x10", "null", "true", "*a", "&a", "!!python/object:os.system"),
    *("<<", "{", "[", "[[[[", "- ", ": ", "%", "@", "`", "|", ">", "#", "1:30", "2001-01-01", ".nan", ".inf", "-.inf"),
    *("-1", "0", "1e9", "99999999999999999999", "[]", "{}", "[1, 2, 3]", "{a: 1}"),
)


@dataclass(frozen=True)
class Border:
    """Where something from outside comes in.

    Attributes:
        name: Of the border.
        share: Its weight among the inputs.
        prepare: Puts what is valid into a folder.
        make: Makes a hostile input in that folder.
        feed: Gives it to the code that reads it.
    """

    name: str
    share: int
    prepare: Callable[[Path], None]
    make: Callable[[Random, Path], Any]
    feed: Callable[[Any], object]


def pick(rng: Random, choices: Sequence[Any]) -> Any:
    """Draw one."""
    return choices[int(rng.integers(len(choices)))]


def mutate_bytes(rng: Random, data: bytes, within: int | None = None) -> bytes:
    """Change a few bytes: flip, overwrite, insert, remove, repeat or cut off.

    Args:
        rng: Draws.
        data: Valid bytes.
        within: Change only this many bytes at the start.
    """
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        end = min(len(content), within or len(content))
        if end == 0:
            break
        at, length = int(rng.integers(end)), int(rng.integers(1, 9))
        kind = int(rng.integers(6))
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at : at + length] = rng.bytes(length)
        elif kind == 2:
            content[at:at] = rng.bytes(length)
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + 16 * length]
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def mutate_text(rng: Random, text: str) -> bytes:
    """Change a few places of a text: hostile words for words, lines twice or swapped, raw bytes."""
    for _ in range(int(rng.integers(1, 4))):
        lines = text.split("\n")
        at = int(rng.integers(len(lines)))
        kind = int(rng.integers(6))
        if kind == 0:
            parts = lines[at].split(",")
            parts[int(rng.integers(len(parts)))] = pick(rng, WORDS)
            lines[at] = ",".join(parts)
        elif kind == 1:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
        elif kind == 2:
            cut = int(rng.integers(len(lines[at]) + 1))
            lines[at] = lines[at][:cut] + pick(rng, WORDS) + lines[at][cut:]
        elif kind == 3:
            del lines[at]
        elif kind == 4:
            lines[at] = " " * int(rng.integers(9)) + lines[at]
        else:
            return mutate_bytes(rng, text.encode())
        text = "\n".join(lines) or "\n"
    return text.encode("utf-8", "surrogatepass")


# NIfTI


def prepare_scans(folder: Path) -> None:
    """Write small valid scans of several kinds."""
    rng = np.random.default_rng(0)
    data = np.zeros((9, 8, 7))
    data[1:-1, 1:-1, 1:-1] = rng.uniform(100, 900, (7, 6, 5))
    affine = np.diag([-9.0, 11, 13, 1])
    affine[:3, 3] = 30, -40, 20
    kinds: Any = (
        ("a.nii", nib.Nifti1Image, np.int16),
        ("b.nii.gz", nib.Nifti1Image, np.float32),
        ("c.nii", nib.Nifti2Image, np.float64),
        ("d.nii.gz", nib.Nifti1Image, np.uint8),
    )
    for name, kind, dtype in kinds:
        image = kind(data.astype(dtype if dtype != np.uint8 else np.float64), affine)
        image.set_data_dtype(dtype)  # uint8: with slope and intercept
        image.set_qform(affine, 1)
        nib.save(image, folder / name)
    header = nib.Nifti1Header(endianness=">")
    big = nib.Nifti1Image(data.astype(">i2"), affine, header)
    big.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 40))
    nib.save(big, folder / "e.nii")


def make_scan(rng: Random, folder: Path) -> Path:
    """Mutate header fields, header bytes, any bytes, or the packed stream of a scan."""
    source = folder / pick(rng, ("a.nii", "b.nii.gz", "c.nii", "d.nii.gz", "e.nii"))
    packed = source.suffix == ".gz"
    raw = source.read_bytes()
    content = gzip.decompress(raw) if packed else raw
    kind = int(rng.integers(5))
    if kind <= 1:
        content = _odd_fields(rng, content, second="c.nii" in source.name, big="e.nii" in source.name)
    elif kind == 2:
        content = mutate_bytes(rng, content, within=540)
    elif kind == 3:
        content = mutate_bytes(rng, content)
    target = folder / f"x{''.join(source.suffixes)}"
    target.write_bytes(
        mutate_bytes(rng, raw) if kind == 4 else gzip.compress(content, 1, mtime=0) if packed else content
    )
    return target


def feed_scan(path: Path) -> None:
    """Read a scan and bring it to the working grid, along its own axes and the scanner's."""
    volume = read_nifti(path)
    for align in ("voxel", "world"):
        prepare(volume, None, override(load_config("quick"), [f"data.align={align}"]).data)


def _odd_fields(rng: Random, content: bytes, *, second: bool, big: bool) -> bytes:
    kind: Any = nib.Nifti2Header if second else nib.Nifti1Header
    size = 540 if second else 348
    header = kind(content[:size], endianness=">" if big else "<", check=False)
    fields = [name for name in header.keys() if header[name].dtype.kind in "iuf"]  # noqa: SIM118  no mapping
    for _ in range(int(rng.integers(1, 4))):
        name = pick(rng, fields if rng.random() < 0.5 else ("dim", "pixdim", "datatype", "bitpix", "vox_offset"))
        values = header[name].copy()
        choices = FLOATS if values.dtype.kind == "f" else NUMBERS
        with np.errstate(all="ignore"):
            value = np.array(pick(rng, choices), np.float64).astype(values.dtype)
        if values.ndim:
            values[int(rng.integers(values.size))] = value
            header[name] = values
        else:
            header[name] = value
    return bytes(header.binaryblock) + content[size:]


# Manifest


def prepare_tables(folder: Path) -> None:
    """Write a table and the scans that it names."""
    prepare_scans(folder)
    rows = ["image,image_t1,mask,label,subject,session,split,lesion"]
    rows += [
        f"{name},{name},a.nii,,s{k},ses-1,{'train' if k else 'test'},ms" for k, name in enumerate(("a.nii", "c.nii"))
    ]
    (folder / "valid.csv").write_text("\n".join(rows) + "\n")


def make_table(rng: Random, folder: Path) -> tuple[Path, str | None, str | None]:
    """Mutate a table; draw how it is asked."""
    text = (folder / "valid.csv").read_text()
    suffix = pick(rng, (".csv", ".csv", ".tsv"))
    path = folder / f"x{suffix}"
    path.write_bytes(mutate_text(rng, text.replace(",", "\t") if suffix == ".tsv" else text))
    asked = [word for word in WORDS if len(word) <= 300]
    split, channel = (pick(rng, (word, word, *asked)) if rng.random() < 0.2 else None for word in ("train", "t1"))
    return path, split, channel


def feed_table(source: tuple[Path, str | None, str | None]) -> None:
    """List the cases of a table, and use it as a reference of evaluation."""
    path, split, channel = source
    Reference(path)
    find_cases(path, split=split, channel=channel)


# Configuration


def make_config(rng: Random, folder: Path) -> tuple[str, Any]:
    """Mutate YAML text, a tree of values, or an override."""
    config = load_config(pick(rng, ("quick", "tiny", "base", "paper")), [f"method={pick(rng, _METHODS)}"])
    if rng.random() < 0.35:
        path = folder / "x.yaml"
        path.write_bytes(mutate_text(rng, dump_yaml(config)))
        return "file", path
    tree, assignment = odd_tree(rng, config)
    return ("override", assignment) if rng.random() < 0.3 else ("tree", tree)


def odd_tree(rng: Random, config: Config) -> tuple[dict[str, Any], str]:
    """Put odd values into a configuration; returns its tree, and the last change as an override."""
    tree = config.model_dump(mode="json")
    sections = [name for name, value in tree.items() if isinstance(value, dict)]
    assignment = ""
    for _ in range(int(rng.integers(1, 4))):
        section = pick(rng, sections)
        key = pick(rng, list(tree[section]))
        tree[section][key] = odd_value(rng, tree[section][key])
        assignment = f"{section}.{key}={json.dumps(tree[section][key])}"
    return tree, assignment


def odd_value(rng: Random, value: Any) -> Any:
    """Replace a value, or a part of it, by one that is near, extreme or of another kind."""
    kind = int(rng.integers(4))
    if isinstance(value, list) and value and kind < 3:
        items = list(value)
        items[int(rng.integers(len(items)))] = odd_value(rng, items[0])
        return items * int(rng.integers(1, 5)) if kind == 2 else items
    if isinstance(value, (int, float)) and kind == 0:
        return pick(rng, (value + 1, value - 1, value * 2, value / 2, -value, value * 1000))
    return pick(rng, (*NUMBERS, *FLOATS, *WORDS, True, None, [], {}, [[]], {"a": 1}))


def feed_config(source: tuple[str, Any]) -> None:
    """Read a configuration; one that is accepted must make a network, and a small one must take a slice."""
    kind, value = source
    if kind == "file":
        config = load_config(value)
    else:
        config = override(load_config("quick"), [value]) if kind == "override" else parse_config(value)
    config_hash(config)
    if config.method in UNTRAINED:
        return
    check_trainable(config)
    if is_cheap(config):
        slices = torch.zeros(1, *config.data.size)
        build_network(config).eval().engine(config, torch.device("cpu"), bf16=False)(slices, slices == 0, ("fuzz",))


def is_cheap(config: Config) -> bool:
    """Check whether a slice takes a moment."""
    kind = config.diffusion
    passes = len(kind.test_timesteps) * config.infer.draws
    steps = (
        1
        if kind.sampler == "single_step"
        else kind.sampler_steps
        if kind.sampler == "ddim"
        else max(kind.test_timesteps)
    )
    rounds = 1 if config.method != "autoddpm" else config.baselines.repaint_rounds * config.baselines.repaint_timestep
    windows = max(1, config.data.size[0] / config.partition.stride) * max(
        1, config.data.size[1] / config.partition.stride
    )
    if passes * steps * rounds * windows > 300 or config.data.size[0] * config.data.size[1] > 96 * 96:
        return False
    return sum(map(math.prod, network_shapes(config).values())) < 1_000_000


# Model folder


def prepare_models(folder: Path) -> None:
    """Write small models of several methods."""
    small = ("model.channels=[8,16]", "model.attention=[false,false]", "model.mae_width=16", "data.size=[32,32]")
    for method in ("maediff", "vae", "intensity"):
        config = load_config("quick", [f"method={method}", *small, "partition.window=16", "partition.stride=16"])
        torch.manual_seed(0)
        weights = {} if method in UNTRAINED else build_network(config).state_dict()
        rates = {f"{rate:g}": 0.5 for rate in RATES}
        calibration = Calibration(0.5, 0.01, 2, 1000, rates, (0.1, 0.2)).to_dict()
        save_model(folder / method, weights, config, calibration, "# A model\n")
    prepare_scans(folder)


def make_model(rng: Random, folder: Path) -> tuple[Path, Path | None]:
    """Mutate a file of a model folder and, mostly, make the checksums fit again."""
    source, target = folder / pick(rng, ("maediff", "vae", "intensity")), folder / "x"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    name = pick(rng, (*FILES, CONFIG, CONFIG, CALIBRATION, WEIGHTS, WEIGHTS))
    path = target / name
    path.write_bytes(_odd_file(rng, path, load_config(source / CONFIG)))
    sums = "".join(f"{file_sha256(target / each)}  {each}\n" for each in sorted(FILES))
    if rng.random() < 0.9:
        (target / CHECKSUMS).write_text(sums)
    if rng.random() < 0.1:
        (target / CHECKSUMS).write_bytes(mutate_text(rng, sums))
    return target, (folder / "a.nii" if rng.random() < 0.2 else None)


def feed_model(source: tuple[Path, Path | None]) -> None:
    """Describe a model, load it and, now and then, score a scan."""
    folder, scan = source
    describe_model(folder)
    predictor = load_model(folder, "cpu")
    if scan is not None and (predictor.config.method in UNTRAINED or is_cheap(predictor.config)):
        result = predictor.predict(scan)
        if not np.isfinite(result.anomaly).all():
            raise AssertionError("the map is not finite")


def _odd_file(rng: Random, path: Path, config: Config) -> bytes:
    data = path.read_bytes()
    if path.name == WEIGHTS:
        return _odd_weights(rng, data)
    if path.name == CONFIG and rng.random() < 0.7:
        return yaml.safe_dump(odd_tree(rng, config)[0]).encode()
    if path.suffix == ".json" and rng.random() < 0.7:
        tree = json.loads(data)
        key = pick(rng, list(tree))
        tree[key] = odd_value(rng, tree[key])
        return json.dumps(pick(rng, (tree, tree, tree, [tree], None, key))).encode()
    return mutate_text(rng, data.decode())


def _odd_weights(rng: Random, data: bytes) -> bytes:
    """Mutate the bytes, the length or the JSON of the header, or the numbers of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = int(rng.integers(5))
    if kind == 0:
        return mutate_bytes(rng, data, within=8 + length)
    if kind == 1:
        return int(abs(pick(rng, NUMBERS)) % 2**64).to_bytes(8, "little") + data[8:]
    if kind == 2 and body:
        return data[: 8 + length] + np.full(len(body) // 4, pick(rng, FLOATS), np.float32).tobytes()
    tree = json.loads(header)
    name = pick(rng, list(tree) or ["x"])
    entry = tree.setdefault(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    if kind == 3 and "dtype" in entry:
        entry[pick(rng, list(entry))] = pick(
            rng, ("F64", "BOOL", "F8_E4M3", "C64", "U64", [], [0], [2**40, 2**40], [-1, 4])
        )
    else:
        key = pick(rng, list(entry))
        entry[key] = odd_value(rng, entry[key])
    if rng.random() < 0.2:
        tree[pick(rng, WORDS)] = tree.pop(name)
    text = json.dumps(tree).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


_METHODS = tuple(method for method in METHODS if method not in {"zscore", "volumetric"})
BORDERS = {
    border.name: border
    for border in (
        Border("nifti", 4, prepare_scans, make_scan, feed_scan),
        Border("manifest", 3, prepare_tables, make_table, feed_table),
        Border("config", 3, lambda folder: None, make_config, feed_config),
        Border("model", 2, prepare_models, make_model, feed_model),
    )
}
