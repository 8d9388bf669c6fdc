"""Check whether this machine can run MAEDiff. Results name no user, host or scan."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from maediff.errors import MAEDiffError
from maediff.model_folder import packaged_models, resolve_model, verify_model_folder
from maediff.provenance import machine, versions

MEMORY_GIB, DISK_GIB = 4.0, 1.0
_IMPORTS = ("torch", "monai.networks.nets", "accelerate", "nibabel", "scipy", "skimage", "sklearn", "nilearn", "einops")


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: "ok"; "note", which does not prevent a run; or "problem", which does.
        detail: What was found and, unless ok, what to do.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    detail: str


def diagnose(device: str = "auto", *, thorough: bool = False) -> list[Check]:
    """Run every check.

    Args:
        device: The device to compute on, as ``--device``.
        thorough: Also import every package, which takes several seconds; else look whether each is installed.

    Returns:
        Findings in a fixed order. No finding raises.
    """
    return [*_python(), *_packages(thorough), *_device(device), *_resources(), *_models()]


def _python() -> Iterator[Check]:
    known = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Check(
        "python", "ok" if known else "note", platform.python_version() + ("" if known else "; tested: 3.10 to 3.13")
    )


def _packages(thorough: bool) -> Iterator[Check]:
    probe = importlib.import_module if thorough else _locate
    broken = [f"{name} ({reason})" for name in _IMPORTS if (reason := _why_not(probe, name))]
    if broken:
        yield Check("packages", "problem", f"cannot import {', '.join(broken)}; install MAEDiff anew")
    else:
        found = {name: version for name, version in versions().items() if name != "python"}
        yield Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _locate(name: str) -> None:
    """Find the package of a module without importing it.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}")


def _device(name: str) -> Iterator[Check]:
    def compute() -> None:
        import torch

        x = torch.ones(1, 1, 8, 8, device=resolve_device(name))
        torch.nn.functional.conv2d(x, x[:, :, :3, :3]).sum().item()

    try:
        from maediff.hardware import has_fast_bf16, resolve_device
    except ImportError as error:
        yield Check("device", "problem", f"torch cannot be used: {error}")
        return
    reason = _why_not(compute)
    if reason:
        yield Check("device", "problem", reason)
        return
    device = resolve_device(name)
    yield Check("device", "ok", f"{device}, {'bf16' if has_fast_bf16(device) else 'fp32'} arithmetic")


def _resources() -> Iterator[Check]:
    facts = machine()
    yield Check("machine", "ok", f"{facts['system']}, {facts['processor']}, {facts['cores']} cores")
    memory = facts["memory_gib"]
    if memory is not None:
        enough = memory >= MEMORY_GIB
        yield Check(
            "memory",
            "ok" if enough else "note",
            f"{memory} GiB" + ("" if enough else f"; {MEMORY_GIB:.0f} are advised"),
        )
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1024**3
    enough = free >= DISK_GIB
    yield Check("disk", "ok" if enough else "note", f"{free:.1f} GiB free for temporary files")


def _models() -> Iterator[Check]:
    names = packaged_models()
    if not names:
        yield Check("models", "note", "no packaged model is installed; -m needs a folder that `maediff train` wrote")
    for name in names:
        try:
            yield Check("model", "ok", f"{name}, hash {verify_model_folder(resolve_model(name))[:12]}")
        except MAEDiffError as error:
            yield Check("model", "problem", str(error))


def _why_not(action: Callable[..., object], *arguments: object) -> str:
    try:
        action(*arguments)
    except Exception as error:  # whatever is broken is the finding
        return f"{type(error).__name__}: {error}"
    return ""
