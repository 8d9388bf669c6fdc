"""Choose the device and the precision of computation."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch

from maediff.errors import ConfigError
from maediff.system import memory_bytes


def resolve_device(name: str) -> torch.device:
    """Choose a device; only "auto" may fall back.

    Args:
        name: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        ConfigError: Unknown name, or a device that this machine lacks.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use --device auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not here; use --device auto or cpu")
    return device


def channels_last(dims: int) -> torch.memory_format:
    """Return the memory format in which convolutions over 2 or 3 dimensions are fast."""
    return torch.channels_last_3d if dims == 3 else torch.channels_last


class _Defaults:
    """How many calls compute with the usual dtype now, and the one that the last to leave puts back."""

    lock = threading.Lock()
    inside = 0
    dtype = torch.float32


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Create tensors as torch usually does, float32 on the CPU, whatever defaults the caller has set.

    The default dtype belongs to the whole process: several threads may be inside, and the last one that leaves puts
    the caller's back.

    Example:
        >>> with usual_defaults():
        ...     torch.zeros(1).dtype
        torch.float32
    """
    with _Defaults.lock:
        if not _Defaults.inside:
            _Defaults.dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _Defaults.inside += 1
    elsewhere = torch.get_default_device().type != "cpu"
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        with _Defaults.lock:
            _Defaults.inside -= 1
            if not _Defaults.inside:
                torch.set_default_dtype(_Defaults.dtype)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global random state as it was, on the CPU and on a device that is computed on."""
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    with torch.random.fork_rng([index] if device.type == "cuda" else []):
        yield


class _Fork:
    """Whether a model was loaded here, and whether this process was forked from one that had loaded one."""

    loaded = False
    after = False


def note_loaded() -> None:
    """Remember that a model was loaded in this process, so that its threads may run."""
    _Fork.loaded = True


def check_not_forked() -> None:
    """Refuse to compute where torch would wait for threads that a fork did not copy.

    Raises:
        ConfigError: This process was forked from one that had loaded a model, and computes with several threads.
    """
    if _Fork.after and torch.get_num_threads() > 1:
        raise ConfigError(
            "this process was forked after load_model, and torch's threads are not copied by a fork: it would wait for "
            "ever; load the model in the worker, start workers by 'spawn', or call torch.set_num_threads(1) in them"
        )


def _after_fork() -> None:
    _Fork.after = _Fork.loaded


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def has_fast_bf16(device: torch.device) -> bool:
    """Check whether bf16 arithmetic is in the hardware: Ampere and later, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public test in torch 2.8 to 2.13
        return bool(supported and supported())
    return False


def use_bf16(device: torch.device, precision: str) -> bool:
    """Resolve "auto", "bf16" or "fp32" on a device."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def mixed_precision(device: torch.device, precision: str) -> Literal["no", "bf16", "fp16"]:
    """Resolve "auto", "bf16", "fp16" or "fp32" of a training on a device, to accelerate's names.

    Raises:
        ConfigError: fp16 without a CUDA device.

    Example:
        >>> mixed_precision(torch.device("cpu"), "fp32")
        'no'
    """
    if precision == "fp16":
        if device.type != "cuda":
            raise ConfigError(
                f"train.precision=fp16 needs a CUDA device, and this training is on {device.type!r}; "
                "use train.precision=bf16, fp32 or auto"
            )
        return "fp16"
    return "bf16" if use_bf16(device, precision) else "no"


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device now; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return memory_bytes()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Measure the floating-point operations per second of a large matrix product: the ceiling of every network.

    The fastest of several counts, which other programs disturb the least.
    """
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    found = []
    for _ in range(repeats + 1):  # the first warms up
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        found.append(time.perf_counter() - start)
    return 2 * side**3 / min(found[1:])
