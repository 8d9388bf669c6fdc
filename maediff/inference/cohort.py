"""Score many scans on disk: write maps and a sidecar per scan; one bad scan never stops the others."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from maediff import tables
from maediff.calibration import among_healthy
from maediff.config import maps_hash
from maediff.data.cases import Case
from maediff.data.search import wrote_brain
from maediff.errors import InputError, MAEDiffError, OutputError
from maediff.files import file_sha256, read_json, remove_leftovers, update_json, write_json
from maediff.findings import components_path, largest_finding, scan_findings, write_components
from maediff.inference.overlap import overlapped
from maediff.locking import PARTICIPANTS, Part
from maediff.notes import read_notes, warnings_of
from maediff.paths import WRITTEN_IN, stored_path, stored_places
from maediff.typing import FloatMap
from maediff.volume import read_map, write_like
from maediff.volume.checks import check_file

if TYPE_CHECKING:
    import pandas as pd

    # the predictor imports the network's packages, which a run of finished scans does not need
    from maediff.inference.predictor import LoadedScan, Predictor
    from maediff.inference.result import AnomalyResult

log = logging.getLogger(__name__)
Status = Literal["done", "skipped", "failed"]
T = TypeVar("T")
Maps: TypeAlias = "tuple[FloatMap, FloatMap, FloatMap | None]"
"""Anomaly map, reconstruction and uncertainty of a scan, on its voxels."""
_MAX_MESSAGE = 1000  # characters; tables with longer cells than 4096 are not read
_MAX_NAME_BYTES = 255  # of every usual file system


@dataclass(frozen=True)
class CaseOutcome:
    """Outcome of one scan; a row of `cases.tsv`."""

    case: str
    status: Status
    score: float | None = None
    anomalous_volume_ml: float | None = None
    seconds: float | None = None
    message: str = ""
    notes: tuple[str, ...] = ()
    """Notes for the user about the scan; `message` joins them in the table."""
    standing: str = ""
    """Comparison of the score with those of healthy scans, in words; not in the table."""
    largest: str = ""
    """Volume and place of the largest finding, in words; not in the table."""


@dataclass(frozen=True)
class InferSummary:
    """How many scans were done, skipped because they were finished, and failed."""

    done: int
    skipped: int
    failed: int
    cases: tuple[CaseOutcome, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return the outcomes as a table, one row per scan, with the columns of `cases.tsv`."""
        import pandas as pd

        return pd.DataFrame(map(outcome_row, self.cases), columns=outcome_columns())

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        counts = f"{self.done} done, {self.skipped} skipped, {self.failed} failed"
        return f"<p>{counts}</p>{self.to_frame().to_html(index=False)}"


@dataclass(frozen=True)
class PlannedCase:
    """A scan and what a run would do with it."""

    case: str
    image: Path
    action: Literal["infer", "skip", "fail"]
    mask: Path | None = None
    others: tuple[Path, ...] = ()
    sidecar: Path = Path()
    message: str = ""

    @property
    def images(self) -> tuple[Path, ...]:
        """All channels, the first one first."""
        return (self.image, *self.others)


@dataclass(frozen=True)
class Outputs:
    """Paths of the outputs of a case."""

    anomaly: Path
    reconstruction: Path
    mask: Path
    uncertainty: Path
    sidecar: Path
    preview: Path
    components: Path
    brain: Path

    @classmethod
    def of(cls, case: Case, out: Path) -> Outputs:
        """Name the outputs: BIDS derivatives for BIDS scans, else by the stem of the scan."""
        if case.bids:
            maps = {kind: out / case.bids.map(kind) for kind in ("anomaly", "reconstruction", "uncertainty")}
            return cls(
                **{kind: Path(f"{base}.nii.gz") for kind, base in maps.items()},
                mask=out / f"{case.bids.mask}.nii.gz",
                sidecar=Path(f"{maps['anomaly']}.json"),
                preview=Path(f"{maps['anomaly']}.png"),
                components=Path(f"{out / case.bids.map('components')}.tsv"),
                brain=out / f"{case.bids.mask.replace('_label-anomaly', '_label-brain')}.nii.gz",
            )
        stem = str(out / case.id)
        return cls(
            anomaly=Path(f"{stem}_anomaly.nii.gz"),
            reconstruction=Path(f"{stem}_reconstruction.nii.gz"),
            mask=Path(f"{stem}_anomaly-mask.nii.gz"),
            uncertainty=Path(f"{stem}_uncertainty.nii.gz"),
            sidecar=Path(f"{stem}_anomaly.json"),
            preview=Path(f"{stem}_preview.png"),
            components=Path(f"{stem}_components.tsv"),
            brain=Path(f"{stem}_brainmask.nii.gz"),
        )

    def remove(self) -> None:
        """Remove the outputs of an earlier run, the sidecar first; maps that this run does not write must not stay.

        Half-written hidden files of a killed run are removed too.

        Raises:
            InputError: The scan's name is too long to make output names of.
        """
        maps = [self.anomaly, self.reconstruction, self.mask, self.uncertainty]
        if wrote_brain(self.sidecar, self.brain):
            maps.append(self.brain)  # else it is the user's own, beside the scan
        for path in (self.sidecar, *maps, self.preview, self.components):
            length = len(path.name.encode())
            if length > _MAX_NAME_BYTES:
                raise InputError(f"its output name has {length} bytes, at most {_MAX_NAME_BYTES}; rename the scan")
            path.unlink(missing_ok=True)
            remove_leftovers(path)


@dataclass(frozen=True)
class RunKey:
    """Properties that a finished output must share with this run to be kept."""

    model_hash: str
    config_hash: str
    seed: int
    threshold_given: float | None = None
    maps_hash: str = ""
    accept: tuple[str, ...] = ()

    @classmethod
    def of(cls, predictor: Predictor, seed: int) -> RunKey:
        """Return the key that all outputs of a predictor share."""
        hashes = (predictor.model_hash, predictor.config_hash)
        accepted = tuple(sorted(predictor.accept))
        return cls(*hashes, seed, predictor.threshold_given, maps_hash(predictor.config), accepted)

    def fits(self, case: Case, outputs: Outputs) -> bool:
        """Check whether the outputs of a case are finished and belong to this input, model, configuration and seed."""
        wanted = {"config_hash": self.config_hash, "threshold_given": self.threshold_given}
        return self._finished(case, outputs, wanted)

    def kept_maps(self, case: Case, outputs: Outputs) -> Maps | None:
        """Read the maps of a finished scan if only the threshold changed; None if they must be computed."""
        if not self._finished(case, outputs, {"maps_hash": self.maps_hash}):
            return None
        names = read_json(outputs.sidecar)["outputs"]
        try:
            anomaly, reconstruction = (read_map(path).data for path in (outputs.anomaly, outputs.reconstruction))
            return anomaly, reconstruction, read_map(outputs.uncertainty).data if "uncertainty" in names else None
        except MAEDiffError:  # damaged since
            return None

    def _finished(self, case: Case, outputs: Outputs, more: dict[str, Any]) -> bool:
        found = read_json(outputs.sidecar)
        wanted = {"model_hash": self.model_hash, "seed": self.seed} | more
        if any(found.get(name) != value for name, value in wanted.items()):
            return False
        if set(found.get("accepted", ())) != set(self.accept):
            return False
        named = [outputs.sidecar.parent / str(name) for name in found.get("outputs", {}).values()]
        try:
            return all(path.is_file() for path in named) and found.get("input_sha256") == input_hash(case)
        except OSError:
            return False


def input_hash(case: Case) -> str:
    """Hash a scan, all its channels, and its brain mask."""
    parts = [file_sha256(path) for path in (*case.images, case.mask) if path is not None]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _check_owner(case: Case, sidecar: Path) -> None:
    """Refuse to replace the results of another scan that is still there, such as another patient's of the same name.

    Raises:
        InputError: The sidecar belongs to a scan at another place.
    """
    found = read_json(sidecar)
    for place in stored_places(found.get("image"), sidecar.parent, found):
        if place.is_file() and place.resolve() != case.image.resolve():
            raise InputError(
                f"{sidecar.parent} holds the results of another scan of this name, {place}; choose another output "
                "folder, score both together (-i with their folder or a table), or replace them with --overwrite"
            )


def refresh_paths(sidecar: Path, item: Case | PlannedCase) -> None:
    """Update where the inputs of a finished scan are, if they were moved since."""
    update_json(sidecar, _places(item, sidecar.parent))


def _places(item: Case | PlannedCase, folder: Path) -> dict[str, Any]:
    """Say where the inputs of a scan are, as seen from the folder of its outputs."""
    return {
        "image": stored_path(item.image, folder),
        **({"further_channels": [stored_path(path, folder) for path in item.others]} if item.others else {}),
        **({"mask": stored_path(item.mask, folder)} if item.mask else {}),
        WRITTEN_IN: str(folder.resolve()),
    }


def plan_cases(cases: Sequence[Case], out: Path, key: RunKey, *, overwrite: bool) -> list[PlannedCase]:
    """List what a run would do, without computing anything."""

    def planned(case: Case) -> PlannedCase:
        if case.problem:
            return PlannedCase(case.id, case.image, "fail", message=case.problem)
        outputs = Outputs.of(case, out)
        action: Literal["infer", "skip"] = "skip" if not overwrite and key.fits(case, outputs) else "infer"
        return PlannedCase(case.id, case.image, action, case.mask, case.others, outputs.sidecar)

    return [planned(case) for case in cases]


def infer_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    table: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    on_case: Callable[[CaseOutcome], None] | None = None,
    on_result: Callable[[AnomalyResult, Outputs], None] | None = None,
    on_batch: Callable[[str, int, int], None] | None = None,
) -> InferSummary:
    """Score scans one after another and write their outputs; the next scan is read while one is computed.

    Args:
        predictor: The model.
        cases: Scans.
        table: File of the outcomes, updated as they arrive; the outputs go into its folder.
        seed: Seed of the noise.
        overwrite: Recompute finished scans.
        on_case: Called with the outcome of each scan.
        on_result: Called with each new result, before its sidecar is written (previews).
        on_batch: Progress callback within a scan, called with (case, windows done, windows in total).

    Returns:
        Counts and outcomes.

    Raises:
        OutputError: The output folder cannot be written, so no other scan would succeed either.
    """
    key = RunKey.of(predictor, seed)
    job = CaseJob(predictor, table.parent, key, overwrite, on_result, on_batch)
    with CaseTable(table) as rows:
        for outcome in overlapped(cases, job.read, job.score, job.write):
            rows.add(outcome)
            if on_case:
                on_case(outcome)
    return summarize(rows.outcomes)


@dataclass(frozen=True)
class Staged:
    """A scan between two stages of :class:`CaseJob`, with the result of the last stage."""

    case: Case
    outputs: Outputs
    made: Any
    maps: Maps | None = None
    """Maps of an earlier run, if only the threshold changed."""


@dataclass(frozen=True)
class CaseJob:
    """One scan from file to files, in three stages, of which only the middle one needs the network.

    A stage that fails or has nothing to do returns a :class:`CaseOutcome`, which later stages pass on.

    Attributes:
        predictor: The model.
        out: Output folder.
        key: What finished outputs must share with this run.
        overwrite: Recompute finished scans.
        on_result: Called with each new result, before its sidecar is written.
        on_batch: Progress callback within a scan, called with (case, windows done, windows in total).
    """

    predictor: Predictor
    out: Path
    key: RunKey
    overwrite: bool
    on_result: Callable[[AnomalyResult, Outputs], None] | None = None
    on_batch: Callable[[str, int, int], None] | None = None

    def read(self, case: Case) -> Staged:
        """Skip a finished scan, else remove older outputs and prepare it."""
        outputs = Outputs.of(case, self.out)
        kept: list[Maps | None] = []

        def prepared() -> LoadedScan | CaseOutcome:
            if case.problem:
                raise InputError(case.problem)
            if not self.overwrite and self.key.fits(case, outputs):
                refresh_paths(outputs.sidecar, case)
                return finished_outcome(case.id, outputs.sidecar)
            for path in (*case.images, case.mask):
                if path is not None and not path.is_file():
                    check_file(path)  # says why; finished results outlive scans that are away for a while
            if not self.overwrite:
                _check_owner(case, outputs.sidecar)
            kept.append(None if self.overwrite else self.key.kept_maps(case, outputs))
            outputs.remove()  # the scan counts as unfinished until the new outputs are complete
            return self.predictor.prepare(case.images, case.mask)

        made = _guarded(case, prepared)
        return Staged(case, outputs, made, kept[0] if kept else None)

    def score(self, scan: Staged) -> Staged:
        """Compute the maps."""
        if isinstance(scan.made, CaseOutcome):
            return scan
        on_batch = None if self.on_batch is None else partial(self.on_batch, scan.case.id)
        score = partial(self.predictor.score, scan.made, self.key.seed, on_batch, maps=scan.maps)
        return replace(scan, made=_guarded(scan.case, score))

    def write(self, scan: Staged) -> CaseOutcome:
        """Write the maps, then the sidecar that makes them count as finished."""
        if isinstance(scan.made, CaseOutcome):
            return scan.made
        write = partial(_write_result, scan.case, scan.made, scan.outputs, self.key, self.on_result)
        return _guarded(scan.case, write)

    def __call__(self, case: Case) -> CaseOutcome:
        """Take a scan through all stages."""
        return self.write(self.score(self.read(case)))


class CaseTable:
    """`cases.tsv`: rewritten atomically as outcomes arrive, and on exit even after an error.

    Rewriting takes longer as the table grows. It therefore waits until the last rewrite took less than a twentieth of
    the time since, so that a run spends at most 5 % of its time on it, however many scans it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: list[CaseOutcome] = []
        self._next = 0.0

    def start(self) -> int:
        """Write the empty table and return its modification time, ns, on the clock of the folder's file system."""
        self._write()
        return self.path.stat().st_mtime_ns

    def add(self, outcome: CaseOutcome) -> None:
        """Add an outcome."""
        self.outcomes.append(outcome)
        if time.monotonic() >= self._next:
            self._write()

    def _write(self) -> None:
        start = time.monotonic()
        write_table(self.path, self.outcomes)
        end = time.monotonic()
        self._next = end + 20 * (end - start)

    def __enter__(self) -> CaseTable:
        return self

    def __exit__(self, *_: object) -> None:
        if self.outcomes:
            self._write()


def summarize(outcomes: Sequence[CaseOutcome]) -> InferSummary:
    """Count outcomes."""
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "skipped", "failed")}
    return InferSummary(counts["done"], counts["skipped"], counts["failed"], tuple(outcomes))


def _guarded(case: Case, stage: Callable[[], T]) -> T | CaseOutcome:
    """Turn the failure of one scan into its outcome; an output folder that cannot be written stops the run."""
    try:
        return stage()
    except OutputError:
        raise
    except Exception as error:  # whatever is wrong with a scan must not stop the others
        log.debug("case %s failed", case.id, exc_info=True)
        return CaseOutcome(case.id, "failed", message=_one_line(error))


def _write_result(
    case: Case,
    result: AnomalyResult,
    outputs: Outputs,
    key: RunKey,
    on_result: Callable[[AnomalyResult, Outputs], None] | None,
) -> CaseOutcome:
    written = _write_maps(result, outputs)
    if on_result:
        on_result(result, outputs)
    sidecar = _sidecar(case, result, key, outputs.sidecar.parent) | {"outputs": written}
    if "brain" in written:
        sidecar["mask"] = written["brain"]  # from here on the extracted brain is the scan's mask
    write_json(outputs.sidecar, sidecar)
    message = "; ".join(result.notes)
    numbers = (result.score, result.volume_ml, result.seconds)
    largest = largest_finding(outputs.components)
    return CaseOutcome(case.id, "done", *numbers, message, result.notes, result.standing, largest)


def _write_maps(result: AnomalyResult, outputs: Outputs) -> dict[str, str]:
    """Write maps, mask and findings; return the file names of the maps."""
    written = {"anomaly": outputs.anomaly, "reconstruction": outputs.reconstruction}
    write_like(outputs.anomaly, result.anomaly, result.volume)
    write_like(outputs.reconstruction, result.reconstruction, result.volume)
    if result.anomaly_mask is not None:
        written["mask"] = write_like(outputs.mask, result.anomaly_mask, result.volume, np.uint8)
        findings = scan_findings(result.volume, result.anomaly, result.anomaly_mask, result.brain_mask)
        write_components(outputs.components, findings.components)
    if "brain_mask" in result.steps:
        written["brain"] = write_like(outputs.brain, result.brain_mask, result.volume, np.uint8)
    if result.uncertainty is not None:
        written["uncertainty"] = write_like(outputs.uncertainty, result.uncertainty, result.volume)
    return {name: path.name for name, path in written.items()}


def save_result(result: AnomalyResult, folder: Path, stem: str) -> Path:
    """Write a result that was computed in memory, named as in an output folder; return the path of the map.

    Raises:
        InputError: The stem is too long to make output names of.
        OutputError: A file cannot be written.
    """
    image = result.volume.source or Path(f"{stem}.nii.gz")
    outputs = Outputs.of(Case(stem, image, None, None, stem, None, None, stem), folder)
    outputs.remove()
    written = _write_maps(result, outputs)
    named = {"image": stored_path(image, folder)} if result.volume.source else {}
    place = {WRITTEN_IN: str(folder.resolve())}
    content = {"case": stem, **named, **place, **result.to_dict(), "outputs": written, "use": "research use only"}
    write_json(outputs.sidecar, content)
    return outputs.anomaly


def _sidecar(case: Case, result: AnomalyResult, key: RunKey, folder: Path) -> dict[str, Any]:
    return {
        "case": case.id,
        "subject": case.subject,
        "mask": None,
        **_places(case, folder),
        "input_sha256": input_hash(case),
        "model_hash": key.model_hash,
        "config_hash": key.config_hash,
        "maps_hash": key.maps_hash,
        "seed": key.seed,
        "threshold_given": key.threshold_given,
        "accepted": sorted(key.accept),
        **result.to_dict(),
        "use": "research use only",
    }


def finished_outcome(case: str, sidecar: Path) -> CaseOutcome:
    """Describe a scan that an earlier run finished, from its sidecar."""
    found = read_json(sidecar)
    message = "finished in an earlier run"
    notes = read_notes(found)
    numbers = (found.get("score"), found.get("volume_ml"), found.get("seconds"))
    anomaly = sidecar.with_name(f"{sidecar.name.removesuffix('.json')}.nii.gz")
    largest = largest_finding(components_path(anomaly))
    known = (found.get(key) for key in ("score_percentile", "healthy_scans", "calibration_suspended"))
    return CaseOutcome(case, "skipped", *numbers, message, notes, among_healthy(*known), largest)


def table_name(part: Part) -> str:
    """Name the table of a run over part K of N, or over some participants.

    Example:
        >>> table_name((1, 1)), table_name((2, 4)), table_name(("sub-01", "participants"))
        ('cases.tsv', 'cases-2-of-4.tsv', 'cases-sub-01.tsv')
    """
    if part[1] == PARTICIPANTS:
        return f"cases-{part[0]}.tsv"
    return "cases.tsv" if part == (1, 1) else f"cases-{part[0]}-of-{part[1]}.tsv"


def outcome_columns() -> list[str]:
    """Name the columns of `cases.tsv`."""
    named = [field.name for field in fields(CaseOutcome) if field.name not in ("notes", "standing", "largest")]
    return [*named, "warnings"]


def outcome_row(outcome: CaseOutcome) -> dict[str, Any]:
    """Return a row of `cases.tsv`; `warnings` counts the notes that are warnings, and is None for a failed scan."""
    warnings = None if outcome.status == "failed" else len(warnings_of(outcome.notes))
    return asdict(outcome) | {"warnings": warnings}


def write_table(path: Path, outcomes: Sequence[CaseOutcome]) -> None:
    """Write `cases.tsv` atomically."""
    tables.write_table(path, map(outcome_row, outcomes), outcome_columns(), missing="n/a")


def _one_line(error: BaseException) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
