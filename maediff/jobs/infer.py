"""Score scans: write maps and a sidecar per scan, `cases.tsv` and `run.json`.

Planning reads no weights, so modules that need the network's packages are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maediff.calibration import Calibration, with_threshold
from maediff.config import Config, config_hash, load_config, override
from maediff.data.bids import DERIVATIVE_FILES, describe_derivatives
from maediff.data.cases import Case, Search, search_cases
from maediff.data.cases import shard as shard_of
from maediff.data.walk import LeftOut, as_facts
from maediff.dicom import dicom_cases, holds_dicom
from maediff.errors import InputError
from maediff.files import remove_leftovers
from maediff.inference.cohort import CaseOutcome, CaseTable, InferSummary, Outputs, PlannedCase, RunKey, plan_cases
from maediff.inference.cohort import table_name as table_of
from maediff.inference.plan import of_participants, part_of
from maediff.locking import Part, folder_lock
from maediff.model_folder import read_calibration, resolve_model, verify_model_folder
from maediff.provenance import run_record, write_run

if TYPE_CHECKING:
    from maediff.inference.cost import Cost
    from maediff.inference.predictor import Predictor
    from maediff.inference.result import AnomalyResult

OnCase = Callable[[CaseOutcome], None]
OnBatch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class InferJob:
    """A run of :func:`infer`, whose arguments are its attributes.

    A job searches its source, and converts DICOM series, only once, whether it plans, runs or does both.
    """

    model: str | Path
    source: Path
    out: Path
    mask: Path | None = None
    device: str = "auto"
    seed: int = 0
    shard: tuple[int, int] = (1, 1)
    overwrite: bool = False
    preview: bool = False
    split: str | None = None
    channel: str | None = None
    pattern: str | None = None
    overrides: tuple[str, ...] = ()
    scheduler: str | None = None
    workers: int | None = None
    threshold: float | None = None
    rate: float | None = None
    accept: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()

    def plan(self) -> list[PlannedCase]:
        """List what :meth:`run` would do, without loading weights; DICOM series are converted to NIfTI, as in a run.

        Raises:
            InputError: No scan found.
            ModelError: The model cannot be used.
        """
        folder = resolve_model(self.model)
        chosen = None
        if self.threshold is not None or self.rate is not None:
            stored = read_calibration(folder)
            calibration = Calibration.from_dict(stored) if stored else None
            chosen = with_threshold(calibration, self.threshold, self.rate).threshold
        key = RunKey(verify_model_folder(folder), config_hash(self._config), self.seed, chosen, accept=self.accept)
        return plan_cases(self._found.cases, self.out, key, overwrite=self.overwrite)

    def estimate(self, planned: Sequence[PlannedCase]) -> Cost | None:
        """Estimate what :meth:`run` would cost for what :meth:`plan` lists; None if the method slides no windows."""
        return estimate_inference(self.model, planned, device=self.device, overrides=self.overrides, accept=self.accept)

    def run(self, on_case: OnCase | None = None, on_batch: OnBatch | None = None) -> InferSummary:
        """Score the scans; callbacks, result and errors are those of :func:`infer`."""
        from maediff.inference.load import load_model

        alone = self.scheduler is None and self.workers is None
        device = self.device if alone else "cpu"  # the devices belong to the workers
        predictor = load_model(
            self.model, device, self.overrides, threshold=self.threshold, rate=self.rate, accept=self.accept
        )
        found = self._found
        with folder_lock(self.out, self.part):
            self._clear_leftovers()
            if alone:
                summary = self._run_here(predictor, found.cases, on_case, on_batch)
            else:
                summary = self._run_on_cluster(found.cases, predictor.model_hash, on_case)
            used = str(predictor.device) if alone else f"{self.device} on Dask workers"
            write_run(self.out, self._record(predictor, summary, found.left_out, used))
            suffixes = [case.bids.suffix for case in found.cases if case.bids]
            if suffixes:
                describe_derivatives(self.out, suffixes)
        return summary

    @property
    def _table(self) -> Path:
        return self.out / table_of(self.part)

    @property
    def part(self) -> Part:
        """Part of the cohort that this job works on."""
        return part_of(self.shard, self.participants, self.sessions)

    @cached_property
    def _config(self) -> Config:
        return override(load_config(resolve_model(self.model) / "config.yaml"), self.overrides)

    @cached_property
    def _found(self) -> Search:
        """List the scans of this part of the run, and other contents of the source."""
        if (self.source / "dataset_description.json").is_file() and self.out.resolve() == self.source.resolve():
            raise InputError(
                f"{self.out} is the BIDS data set itself, whose description and README would be replaced; choose "
                f"another folder, such as {self.out / 'derivatives' / 'maediff'}"
            )
        if holds_dicom(self.source, [self.out]):
            found = Search(tuple(dicom_cases(self.source, self.out / "scans", self.mask)))
        else:
            found = search_cases(
                self.source,
                self.mask,
                self.split,
                self.channel,
                self._config.data.channels,
                pattern=self.pattern,
                exclude=[self.out],
                splits=False,
            )
        cases = of_participants(found.cases, self.participants, self.sessions)
        return replace(found, cases=tuple(shard_of(cases, *self.shard)))

    def _clear_leftovers(self) -> None:
        """Remove half-written files of a killed run; those of other parts only if this run has a single part."""
        shared = ("run.json", *DERIVATIVE_FILES) if self.part == (1, 1) else ()
        for name in (self._table.name, *shared):
            remove_leftovers(self.out / name)

    def _run_here(
        self, predictor: Predictor, cases: Sequence[Case], on_case: OnCase | None, on_batch: OnBatch | None
    ) -> InferSummary:
        from maediff.inference.cohort import infer_cases

        return infer_cases(
            predictor,
            cases,
            self._table,
            seed=self.seed,
            overwrite=self.overwrite,
            on_case=on_case,
            on_result=_preview if self.preview else None,
            on_batch=on_batch,
        )

    def _run_on_cluster(self, cases: Sequence[Case], model_hash: str, on_case: OnCase | None) -> InferSummary:
        from maediff.inference.cluster import ScanTask, connect, infer_on_cluster

        with connect(self.scheduler, self.workers) as client, CaseTable(self._table) as rows:
            task = ScanTask(
                str(resolve_model(self.model).resolve()),
                self.device,
                self.overrides,
                self.out.resolve(),
                self.seed,
                self.overwrite,
                rows.start(),
                _preview if self.preview else None,
                self.threshold,
                self.rate,
                self.accept,
                model_hash,
            )
            return infer_on_cluster(client, cases, task, rows, on_case=on_case)

    def _record(
        self, predictor: Predictor, summary: InferSummary, left_out: Sequence[LeftOut], device: str
    ) -> dict[str, Any]:
        """Assemble `run.json`: this job and its results."""
        calibration = predictor.calibration.to_dict() if predictor.calibration else None
        if calibration:
            calibration["healthy"] = len(calibration["healthy"])  # their measurements are stored with the model
        model = Path(self.model) if Path(self.model).exists() else self.model  # stored so that it can be opened
        return run_record(
            "infer",
            asdict(self) | {"model": model},
            seed=self.seed,
            device=device,
            hashes={"model": predictor.model_hash, "config": predictor.config_hash},
            counts={"done": summary.done, "skipped": summary.skipped, "failed": summary.failed},
            calibration=calibration,
            calibration_suspended=predictor.suspended or None,
            left_out=as_facts(left_out),
        )


def infer(  # noqa: PLR0913  the public door: a keyword per attribute of the job
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    preview: bool = False,
    split: str | None = None,
    channel: str | None = None,
    pattern: str | None = None,
    overrides: Iterable[str] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    threshold: float | None = None,
    rate: float | None = None,
    accept: Iterable[str] = (),
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    on_case: OnCase | None = None,
    on_batch: OnBatch | None = None,
) -> InferSummary:
    """Turn scans into anomaly maps in their own space.

    Args:
        model: Model folder, or "phantom".
        source: NIfTI file, folder, CSV/TSV table, BIDS data set or folder of DICOM series.
        out: Output folder: maps and a sidecar per scan, `cases.tsv` and `run.json`; DICOM series become NIfTI files in
            its folder `scans`.
        mask: Brain mask of a single scan.
        device: Where to compute.
        seed: Seed of the noise.
        shard: (K, N): work on the K-th of N parts; its table is `cases-K-of-N.tsv`.
        overwrite: Recompute finished scans.
        preview: Also write a PNG per scan.
        split: Only rows of this split.
        channel: Which `image_<channel>` column of a table.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
        overrides: Changes of the model's configuration, see :func:`~maediff.inference.load.load_model`.
        scheduler: Address of a Dask scheduler, whose workers score the scans; `out` and scans on shared storage.
        workers: Score the scans in this many processes on this machine, if no scheduler is given.
        threshold: Threshold of the map to use instead of the calibrated one.
        rate: Use the threshold that the calibration records for this false-positive rate.
        accept: Codes of input checks that do not refuse a scan, see :data:`maediff.inputcheck.ACCEPTABLE`.
        participants: Only these, with or without `sub-`; runs over others may write into the same folder.
        sessions: Only these, with or without `ses-`.
        on_case: Called with the outcome of each scan.
        on_batch: Progress callback within a scan, called with (case, windows done, windows in total); not on a cluster.

    Returns:
        Counts and outcomes; a scan that failed is listed there and in `cases.tsv`, the others are done.

    Raises:
        InputError: No scan found.
        ModelError: The model cannot be used.
        OutputError: The output folder cannot be written.
    """
    job = InferJob(
        model,
        Path(source),
        Path(out),
        mask=_path(mask),
        device=device,
        seed=seed,
        shard=shard,
        overwrite=overwrite,
        preview=preview,
        split=split,
        channel=channel,
        pattern=pattern,
        overrides=tuple(overrides),
        scheduler=scheduler,
        workers=workers,
        threshold=threshold,
        rate=rate,
        accept=tuple(sorted(accept)),
        participants=tuple(participants),
        sessions=tuple(sessions),
    )
    return job.run(on_case, on_batch)


def plan_inference(  # noqa: PLR0913  the public door: a keyword per attribute of the job
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    split: str | None = None,
    channel: str | None = None,
    pattern: str | None = None,
    overrides: Iterable[str] = (),
    threshold: float | None = None,
    rate: float | None = None,
    accept: Sequence[str] = (),
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
) -> list[PlannedCase]:
    """List what :func:`infer` would do, without loading weights; arguments are the same."""
    job = InferJob(
        model,
        Path(source),
        Path(out),
        mask=_path(mask),
        seed=seed,
        shard=shard,
        overwrite=overwrite,
        split=split,
        channel=channel,
        pattern=pattern,
        overrides=tuple(overrides),
        threshold=threshold,
        rate=rate,
        accept=tuple(accept),
        participants=tuple(participants),
        sessions=tuple(sessions),
    )
    return job.plan()


def estimate_inference(
    model: str | Path,
    planned: Sequence[PlannedCase],
    *,
    device: str = "auto",
    overrides: Iterable[str] = (),
    accept: Sequence[str] = (),
) -> Cost | None:
    """Estimate what :func:`infer` would cost for what :func:`plan_inference` lists; arguments are the same."""
    from maediff.inference.cost import estimate_cost
    from maediff.inference.load import load_model

    return estimate_cost(load_model(model, device, tuple(overrides), accept=accept), planned)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _preview(result: AnomalyResult, outputs: Outputs) -> None:
    from maediff.report.preview import write_preview

    write_preview(result, outputs.preview)
