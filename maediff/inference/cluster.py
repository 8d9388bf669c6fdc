"""A cohort on a Dask cluster: one task per scan, one model load per worker, lost scans run again, no scan twice.

Dask hands out tasks, notices dead workers, starts new ones (local clusters, dask-jobqueue) and reassigns their tasks. A
scan whose worker died after its outputs were complete is not computed again: the task finds them finished. Needs the
extra `cluster`.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maediff.data.cases import Case
from maediff.errors import ConfigError, ModelError
from maediff.extras import install_hint
from maediff.inference.cohort import CaseJob, CaseOutcome, CaseTable, InferSummary, Outputs, RunKey, summarize
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.inference.result import AnomalyResult

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
_LOADING = threading.Lock()
"""Held while a model is loaded, so that the threads of a worker load it once."""
_TASKS_A_THREAD = 3
"""Tasks submitted per worker thread: enough that no thread idles, without queueing the whole cohort at once."""


@dataclass(frozen=True)
class ScanTask:
    """What a worker needs to score a scan; kept small, since it is sent with each task.

    Attributes:
        model: Model folder, which every worker can read.
        device: Where workers compute.
        overrides: Changes of the model's configuration.
        out: Output folder, which every worker can write.
        seed: Seed of the noise.
        overwrite: Recompute scans that were finished before this run.
        began_ns: Time at which the run's table was first written, on the clock of the output folder's file system.
        on_result: Called with each new result, before its sidecar is written.
        threshold: Threshold of the map to use instead of the calibrated one.
        rate: False-positive rate whose recorded threshold to use.
        accept: Codes of input checks that do not refuse the scan.
        model_hash: Hash of the model that the run began with; "" for any.
    """

    model: str
    device: str
    overrides: tuple[str, ...]
    out: Path
    seed: int
    overwrite: bool
    began_ns: int
    on_result: Callable[[AnomalyResult, Outputs], None] | None
    threshold: float | None = None
    rate: float | None = None
    accept: tuple[str, ...] = ()
    model_hash: str = ""

    def __call__(self, case: Case) -> CaseOutcome:
        """Score a scan, unless a worker that died since the run began had finished it.

        Raises:
            ModelError: The model folder has changed since the run began.
        """
        with _LOADING:
            predictor = _load_once(
                self.model, self.device, self.overrides, self.threshold, self.rate, self.accept, self.model_hash
            )
        key = RunKey.of(predictor, self.seed)
        outputs = Outputs.of(case, self.out)
        finished_now = outputs.sidecar.is_file() and outputs.sidecar.stat().st_mtime_ns >= self.began_ns
        job = CaseJob(predictor, self.out, key, self.overwrite and not finished_now, self.on_result)
        outcome = job(case)
        if finished_now and outcome.status == "skipped":
            return replace(outcome, status="done", message="finished by a worker that was lost afterwards")
        return outcome

    def abandon(self, case: Case) -> None:
        """Remove the leftovers of dead workers for a scan that is not retried."""
        Outputs.of(case, self.out).remove()


@functools.lru_cache(maxsize=1)
def _load_once(  # noqa: PLR0917
    model: str,
    device: str,
    overrides: tuple[str, ...],
    threshold: float | None,
    rate: float | None,
    accept: tuple[str, ...],
    model_hash: str,
) -> Predictor:
    """Load a model; workers outlive a run, and another hash is another model at the same place."""
    predictor = load_model(model, device, overrides, threshold=threshold, rate=rate, accept=accept)
    if model_hash and predictor.model_hash != model_hash:
        raise ModelError(f"{model} has changed since the run began; start the run again")
    return predictor


@contextmanager
def connect(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """Connect to a Dask scheduler, or start a cluster of worker processes on this machine.

    Args:
        scheduler: Address such as ``tcp://host:8786``; None starts a local cluster.
        workers: Processes of the local cluster, each with one task at a time; they share the cores.

    Raises:
        ConfigError: Dask is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError(f"--scheduler and --workers need Dask: {install_hint('cluster')}") from error
    if scheduler is None:
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:  # noqa: SIM117
            with Client(cluster) as client:
                yield client
        return
    try:
        client = Client(scheduler, timeout=30)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {scheduler!r} ({error}); start one with `dask scheduler`, "
            "or use --workers N on this machine"
        ) from error
    with client:
        yield client


def infer_on_cluster(
    client: Client,
    cases: Sequence[Case],
    task: ScanTask,
    table: CaseTable,
    *,
    on_case: Callable[[CaseOutcome], None] | None = None,
) -> InferSummary:
    """Score scans on the workers of a cluster.

    Args:
        client: From :func:`connect`.
        cases: Scans.
        task: What scores a scan.
        table: The open table of outcomes: in the order of completion during the run, in that of `cases` at its end.
        on_case: Called with the outcome of each scan.

    Raises:
        OutputError: The output folder cannot be written.
    """
    for index, outcome in _finished(client, cases, task):
        table.add(outcome)
        if on_case:
            on_case(outcome)
        log.debug("scan %d of %d: %s", index + 1, len(cases), outcome.status)
    place = {case.id: index for index, case in enumerate(cases)}
    table.outcomes.sort(key=lambda outcome: place[outcome.case])
    return summarize(table.outcomes)


def _finished(client: Client, cases: Sequence[Case], task: ScanTask) -> Iterator[tuple[int, CaseOutcome]]:
    """Yield the outcome of each scan as it finishes, with few tasks queued at any time."""
    from distributed import KilledWorker, as_completed

    waiting: Iterator[tuple[int, Case]] = iter(enumerate(cases))
    running: dict[Any, tuple[int, Case]] = {}

    def submit(some: Iterable[tuple[int, Case]]) -> list[Any]:
        futures = [(client.submit(task, case, pure=False, retries=0), index, case) for index, case in some]
        running.update({future.key: (index, case) for future, index, case in futures})
        return [future for future, _, _ in futures]

    threads = sum(client.nthreads().values()) or 1
    queue = as_completed(submit(islice(waiting, _TASKS_A_THREAD * threads)))
    for future in queue:
        index, case = running.pop(future.key)
        try:
            outcome = future.result()
        except KilledWorker:
            task.abandon(case)
            outcome = CaseOutcome(case.id, "failed", message="several workers died on this scan; is memory short?")
        future.release()
        queue.update(submit(islice(waiting, 1)))
        yield index, outcome
