"""Record of a run, as ``run.json``: versions, arguments, seeds, device, hashes and the machine.

Left out on purpose: host names and every header field of a scan. Paths are stored so that they can be opened (see
:mod:`maediff.paths`); reports hide the user names in them.
"""

from __future__ import annotations

import math
import platform
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from maediff._version import __version__
from maediff.files import write_json
from maediff.paths import WRITTEN_IN, stored_path
from maediff.system import memory_bytes, usable_cores

PACKAGES = ("torch", "monai", "numpy", "nibabel", "scipy", "accelerate")


def versions() -> dict[str, str | None]:
    """Versions of Python, MAEDiff and the packages that shape a result; None if one is not installed.

    Nothing heavy is imported.

    Example:
        >>> sorted(versions())[:3]
        ['accelerate', 'maediff', 'monai']
    """
    found: dict[str, str | None] = {"python": platform.python_version(), "maediff": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Facts of the machine that explain a timing: system, processor, cores, memory, accelerators.

    Returns:
        Plain values; ``memory_gib`` is None if the system does not report it.
    """
    return {
        "system": platform.system(),
        "release": platform.release(),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "accelerators": _accelerators(),
    }


def peak_rss_mib() -> float | None:
    """Return the largest resident memory of this process so far, MiB; None if unknown (Windows).

    Linux is asked for VmHWM: its getrusage also counts what the parent held when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024.0, 1)
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024.0**2 if sys.platform == "darwin" else 1024.0), 1)


def run_record(
    command: str,
    arguments: Mapping[str, Any],
    *,
    seed: int | None = None,
    device: str | None = None,
    hashes: Mapping[str, str | None] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Assemble what ``run.json`` holds.

    Args:
        command: What ran, for example ``infer``.
        arguments: Its arguments; a ``Path`` among them is stored relative to ``run.json`` if that is possible.
        seed: The run's seed.
        device: The device that was used, not the one that was asked for.
        hashes: Such as ``{"model": …, "config": …}``.
        **facts: More of the run, such as ``seconds``.
    """
    return {
        "command": command,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "arguments": dict(arguments),
        "seed": seed,
        "device": device,
        "hashes": dict(hashes or {}),
        **facts,
        "versions": versions(),
        "machine": machine(),
    }


def write_run(folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Write ``run.json`` into a folder, atomically.

    Args:
        folder: Where the run's outputs lie.
        record: From :func:`run_record`.

    Returns:
        The file's path.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(folder) / "run.json"
    write_json(path, _plain({**record, WRITTEN_IN: str(path.parent.resolve())}, path.parent))
    return path


def _plain(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, folder) for item in value]
    if isinstance(value, Path):
        return stored_path(value, folder)
    if isinstance(value, Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, Integral) else float(value)
        return number if math.isfinite(number) else None
    return value if value is None or isinstance(value, bool) else str(value)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def _memory_gib() -> float | None:
    there = memory_bytes()
    return None if there is None else round(there / 1024**3, 1)


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
