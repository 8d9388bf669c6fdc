"""One writer per output folder: an advisory lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from maediff.errors import OutputError
from maediff.files import cannot_write

PARTICIPANTS = "participants"
Part = tuple[int, int] | tuple[str, str]
"""What part of a cohort a run works on."""
WAIT_SECONDS = 2.0  # a run that merely looks at a lock holds it for less than a millisecond


@contextmanager
def folder_lock(folder: Path, part: Part = (1, 1)) -> Iterator[None]:
    """Hold a folder for one run; the K-th parts of one N may work side by side.

    Args:
        folder: Output folder; made if it is missing. A hidden lock file lies in it while the run goes on.
        part: (K, N) of a sharded run, or (names, "participants") of a run over some participants.

    Raises:
        OutputError: Another run writes there: an equal part, or a run that is divided into another number of parts.
            Or the folder cannot be written.
    """
    with ExitStack() as held:
        try:
            _take(folder, part, held)
        except Timeout as error:
            raise OutputError(
                f"another maediff run is writing into {folder} ({Path(error.lock_file).name} is held); wait until it "
                "has ended, choose another folder, or divide the work with --shard K/N, the same N for all"
            ) from None
        except OSError as error:
            raise cannot_write(folder, error) from error
        yield


def _take(folder: Path, part: Part, held: ExitStack) -> None:
    """Take the lock of a part until `held` is closed, and refuse runs over other parts."""
    own = folder / f".maediff-{part[0]}-of-{part[1]}.lock"
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(FileLock(own, timeout=WAIT_SECONDS))
    held.callback(own.unlink, missing_ok=True)  # while it is held: who waits for it notices that it is gone
    for other in folder.glob(".maediff-*-of-*.lock"):
        if not other.name.endswith(f"-of-{part[1]}.lock"):
            _refuse_if_held(other)


def _refuse_if_held(path: Path) -> None:
    """Raise Timeout if another run holds a lock; remove the lock file of a run that was killed."""
    with FileLock(path, timeout=0):
        path.unlink(missing_ok=True)
