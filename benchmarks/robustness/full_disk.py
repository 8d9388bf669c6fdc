"""A full disk and a read-only folder: what does each command say, and what does it leave?

python -m benchmarks.robustness.full_disk [--json FILE]            (as root, or after: unshare -rm)

Each command that writes (synth, train, calibrate, infer, evaluate, report) runs by the command line into a small file
system of its own (tmpfs) that is mounted read-only, or where a filler leaves no byte free, or half of what the command
writes. Told are the exit code and the last line of the message, and of the files left: those
under a final name, which must be whole, and hidden ones, of which there must be none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from maediff.cli import app

from benchmarks.common import Benchmark, say, table
from benchmarks.robustness.small_jobs import SMALL, half_written, sound_or_refused
from maediff.errors import OutputError

BENCHMARK = Benchmark(__file__, __doc__, page="docs/robustness.md", results=("full_disk.json",))
SHARES = (0.0, 0.5)
COMMANDS = ("synth", "train", "calibrate", "infer", "evaluate", "report")
_ROOM = 64 * 2**20


def arguments(command: str, place: Path, target: Path) -> list[str]:
    """Spell out a command that writes into a folder.

    Args:
        command: Which.
        place: Holds `data`, `run` and `out` of undisturbed runs.
        target: Where the command writes.
    """
    data, model = str(place / "data" / "cases.csv"), str(place / "run" / "model")
    out, device = str(target / command), ["--device", "cpu"]
    settings = [part for text in SMALL for part in ("--set", text)]
    return {
        "synth": ["synth", "-o", out, "--subjects", "8", "--spacing", "8"],
        "train": ["train", "-c", "quick", "-i", data, "-o", out, *device, *settings],
        "calibrate": ["calibrate", "-m", str(target / "model"), "-i", str(place / "data" / "healthy.csv"), *device],
        "infer": ["infer", "-m", model, "-i", data, "-o", out, "--preview", *device],
        "evaluate": ["evaluate", "-i", str(place / "infer"), "-r", data, "-o", out],
        "report": ["report", "-i", str(place / "infer"), "-r", data, "-o", f"{out}.html"],
    }[command]


def execute(command: Sequence[str]) -> tuple[int, str]:
    """Run the command line; returns the exit code and the last line that it says."""
    result = CliRunner().invoke(app, list(command), prog_name="maediff")
    if result.exception and not isinstance(result.exception, SystemExit):
        return -1, f"traceback: {result.exception!r}"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return result.exit_code, lines[-1] if lines else ""


@contextmanager
def small_file_system(folder: Path, num_bytes: int) -> Iterator[None]:
    """Mount a file system of a given size on a folder.

    Raises:
        OutputError: This process may not mount.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise OutputError("no file system can be mounted here; run as root, or by: unshare -rm python -m …")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def attempt(command: str, place: Path, target: Path, free: int | None) -> dict[str, Any]:
    """Run a command into a full file system.

    Args:
        command: Which.
        place: Holds what it reads.
        target: The folder to mount on.
        free: Bytes that are left to it; None mounts read-only.
    """
    with small_file_system(target, _ROOM):
        if command == "calibrate":
            shutil.copytree(place / "run" / "model", target / "model")
        if free is None:
            subprocess.run(["mount", "-o", "remount,ro", str(target)], check=True)
        else:
            fill(target, free)
        code, message = execute(arguments(command, place, target))
        files = [path for path in target.rglob("*") if path.is_file() and path.name != "filler"]
        hidden = [str(path.relative_to(target)) for path in files if path.name.startswith(".")]
        torn = list(half_written(target))
        if not sound_or_refused(target / "model"):
            torn.append("model folder does not verify")
    return {
        "command": command,
        "free_bytes": free,
        "exit_code": code,
        "message": message.replace(str(target), "OUT"),
        "final_files": len(files) - len(hidden),
        "hidden_files": hidden,
        "half_written": torn,
    }


def fill(folder: Path, free: int) -> None:
    """Fill a file system up to the given number of free bytes, in whole pages."""
    there = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, there.f_bavail * there.f_frsize - free))


def written(command: str, place: Path) -> int:
    """Run a command undisturbed and count the bytes that it writes, in whole pages."""
    if command == "calibrate":
        shutil.copytree(place / "run" / "model", place / "model")
    code, message = execute(arguments(command, place, place))
    if code:
        raise OutputError(f"{command} fails undisturbed: {message}")
    target = {"calibrate": place / "model", "report": place / "report.html"}.get(command, place / command)
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    if command == "calibrate":
        files = [path for path in files if path.name in {"calibration.json", "README.md", "SHA256SUMS"}]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


def measure(place: Path) -> dict[str, Any]:
    """Try every command with every fault."""
    execute(["synth", "-o", str(place / "data"), "--subjects", "8", "--spacing", "8"])
    lines = (place / "data" / "cases.csv").read_text().splitlines()
    healthy = [lines[0], *(line for line in lines if ",val," in line)]
    (place / "data" / "healthy.csv").write_text("\n".join(healthy) + "\n")
    execute(arguments("train", place, place))
    (place / "train").rename(place / "run")
    rows = []
    for command in COMMANDS:
        needed = written(command, place)
        for free in (None, *(int(share * needed) // 4096 * 4096 for share in SHARES)):
            rows.append(attempt(command, place, place / "small", free))
            last = rows[-1]
            say(f"{command}, free {free}: exit {last['exit_code']}, {last['message']}, {last['final_files']} files")
    columns = ("command", "free_bytes", "exit_code", "final_files", "hidden_files", "half_written")
    shown = [[len(row[name]) if isinstance(row[name], list) else row[name] for name in columns] for row in rows]
    print(table(columns, shown))
    return {"attempts": rows}


def measure_all(_: argparse.Namespace) -> dict[str, Any]:
    """Try every command with every fault, in a temporary folder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        return measure(Path(place))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure_all, None, arguments)


if __name__ == "__main__":
    sys.exit(main())
