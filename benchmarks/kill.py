"""SIGKILL at random moments of train and infer: is anything lost, or half-written under a final name?

python -m benchmarks.kill [--kills 100] [--seed 0] [--json FILE]

A job trains the `quick` preset for a few steps on a small synthetic cohort (with --resume), calibrates, and scores the
test scans. It runs once undisturbed; then it is killed at random moments and started again with the same arguments,
a few kills in a row, until it ends. After each kill every file under a final name must be whole; at the end the files
must be those of the undisturbed run. Each start is a forked process, so that imports are paid once.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  imported before the forks, as is all that a job needs
import nibabel as nib
import numpy as np
import torch

from benchmarks._common import add_common, run, say
from maediff.config import Config, load_config
from maediff.data.cohort import synthesise
from maediff.errors import ModelError
from maediff.store import CHECKSUMS, verify_model_folder
from maediff.workflow import infer, train

OVERRIDES = ("train.max_steps=12", "train.val_every=6", "train.checkpoint_every=2", "train.warmup_steps=2")
IN_A_ROW = 5
LATEST = 0.6  # of the undisturbed span; a job goes on from where it was killed, so that every part is met
_TIMES = {"seconds", "written", "images_per_second", "status", "message", "arguments", "counts", "machine", "resume"}
"""What differs between any two runs, or says how a run came to its end."""


def job(folder: Path, table: Path, config: Config) -> None:
    """Train, calibrate and infer, going on from what is there."""
    torch.set_num_threads(1)
    model = train(config, table, folder / "run", resume=True, device="cpu")
    infer(model, table, folder / "out", split="test", device="cpu", preview=True)


def kill_at(delay: float, work: Callable[[], None]) -> bool:
    """Run work in a forked process and kill it after a delay.

    Returns:
        Whether it was killed; False where it had ended before.

    Raises:
        RuntimeError: It ended with an error of its own.
    """
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(delay)
    if process.exitcode is None:
        process.kill()
        process.join()
        return True
    if process.exitcode:
        raise RuntimeError(f"the job ended with exit code {process.exitcode}")
    return False


def half_written(folder: Path) -> Iterator[str]:
    """Name the files that carry a final name and are not whole."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        try:
            read(path)
        except Exception as error:
            yield f"{path.relative_to(folder)}: {error}"


def read(path: Path) -> object:
    """Read a file to its end, as something that compares equal to another reading of equal content."""
    if path.name.endswith(".nii.gz"):
        np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
    if path.suffix == ".pt":
        return _plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix in {".csv", ".tsv"}:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        return [_timeless(row) for row in rows]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays}
    return path.read_bytes()


def differences(calm: Path, killed: Path) -> list[str]:
    """Compare all files of two folders, hidden ones included, leaving out times."""
    names = [{str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (calm, killed)]
    found = [f"{name}: in one run only" for name in sorted(names[0] ^ names[1])]
    return found + [
        f"{name}: differs" for name in sorted(names[0] & names[1]) if read(calm / name) != read(killed / name)
    ]


def sound_or_refused(model: Path) -> bool:
    """Tell whether a model folder verifies; one that does not is refused, never used."""
    if not (model / CHECKSUMS).is_file():
        return True
    try:
        verify_model_folder(model)
    except ModelError:
        return False
    return True


def measure(place: Path, kills: int, seed: int, overrides: Sequence[str] = OVERRIDES) -> dict[str, Any]:
    """Kill jobs until enough kills were made.

    Returns:
        Counts, and the findings, which should be empty.
    """
    table = synthesise(place / "data", subjects=8, seed=seed, spacing_mm=8)
    config = load_config("quick", overrides)
    start = time.perf_counter()
    kill_at(3600, lambda: job(place / "calm", table, config))
    span = time.perf_counter() - start
    rng = np.random.default_rng(seed)
    done, episodes, refused = 0, 0, 0
    torn: list[str] = []
    different: list[str] = []
    while done < kills:
        folder = place / f"killed-{episodes}"
        for _ in range(min(IN_A_ROW, kills - done)):
            if not kill_at(float(rng.uniform(0, LATEST * span)), lambda folder=folder: job(folder, table, config)):  # type: ignore[misc]
                break
            done += 1
            torn += half_written(folder)
            refused += not sound_or_refused(folder / "run" / "model")
        kill_at(3600, lambda folder=folder: job(folder, table, config))  # type: ignore[misc]
        different += [f"{folder.name}/{line}" for line in differences(place / "calm", folder)]
        episodes += 1
        say(f"{done} kills in {episodes} jobs: {len(torn)} half-written, {len(different)} different at the end")
    return {
        "kills": done,
        "jobs": episodes,
        "seconds_undisturbed": round(span, 2),
        "half_written": torn,
        "different_at_the_end": different,
        "model_folders_refused_after_a_kill": refused,
        "seed": seed,
    }


def _timeless(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {key: value for key, value in row.items() if key not in _TIMES}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--kills", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cohort and of the moments")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        return run(lambda: measure(Path(place), args.kills, args.seed), args.json)


if __name__ == "__main__":
    sys.exit(main())
