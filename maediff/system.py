"""Resources of this machine: memory and cores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python's getpass looks
_GLANCE_S = 0.1  # to see which cores are busy


def memory_bytes() -> int | None:
    """Return the machine's memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def name_user() -> None:
    """Give a user id that the system has no name for the name ``uid<number>``, in the environment of this process.

    MONAI and PyTorch ask for the user's name when they are imported, and ``docker run --user`` or a cluster node may
    know none.
    """
    if any(os.environ.get(name) for name in _NAMES) or not hasattr(os, "getuid"):
        return
    with suppress(ImportError, KeyError):
        import pwd

        pwd.getpwuid(os.getuid())
        return
    os.environ["LOGNAME"] = f"uid{os.getuid()}"


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: by affinity, a container's quota, and what SLURM granted.

    Args:
        root: Where `sys/fs/cgroup` lies.
    """
    limits = [float(len(_affinity()))]
    limits += [quota for quota in (_quota(root / "sys/fs/cgroup"),) if quota is not None]
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits += [float(granted)] if granted.isdecimal() and int(granted) > 0 else []
    return max(1, math.floor(min(limits)))


def idle_cores(root: Path = Path("/")) -> float:
    """Measure for a moment how many of the cores that this process may run on are idle; all if the system cannot tell.

    Args:
        root: Where `proc/stat` lies.
    """
    before = _ticks(root, _affinity())
    time.sleep(_GLANCE_S)
    after = _ticks(root, _affinity())
    total, idle = after[0] - before[0], after[1] - before[1]
    return len(_affinity()) * (idle / total if total > 0 else 1.0)


def threads_beside(cores: int, idle: float) -> int:
    """Choose how many threads compute best beside other work: as many as there are idle cores, at least one.

    Threads of one computation wait for each other, so one that shares its core with other work slows all of them.

    Args:
        cores: Cores that may be used.
        idle: Idle cores of the machine.

    Example:
        >>> threads_beside(8, 7.8), threads_beside(8, 5.1), threads_beside(2, 40.0), threads_beside(2, 0.0)
        (8, 5, 2, 1)
    """
    return max(1, min(cores, round(idle)))


def _affinity() -> Collection[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # macOS and Windows
        return range(os.cpu_count() or 1)


def _quota(folder: Path) -> float | None:
    """Read a container's share of processor time, in cores; version 2 of control groups, then version 1."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        allowed, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if allowed == "max" else float(allowed) / float(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        own = folder / "cpu"
        allowed, period = ((own / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        return float(allowed) / float(period) if float(allowed) > 0 else None
    return None


def _ticks(root: Path, cores: Collection[int]) -> tuple[int, int]:
    """Add up all ticks of some cores, and the idle ones among them."""
    total = idle = 0
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/stat").read_text(encoding="ascii").splitlines():
            name, *ticks = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
                total += sum(map(int, ticks[:8]))
                idle += int(ticks[3]) + int(ticks[4])
    return total, idle
