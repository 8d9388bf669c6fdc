"""Readers' ratings of findings: ``ratings.tsv`` beside the maps, and the agreement between readers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from maediff.errors import InputError, OutputError
from maediff.evaluation.bootstrap import bootstrap_ci
from maediff.files import atomic_path, cannot_write, write_json
from maediff.tables import read_table

RATINGS_FILE = "ratings.tsv"
SUMMARY_FILE = "ratings.json"
REAL, ARTEFACT, UNSURE = "real", "artefact", "unsure"
RATINGS = (REAL, ARTEFACT, UNSURE)
_MAX_READER, _MAX_COMMENT = 60, 1000  # characters
_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Rating:
    """A reader's rating of one finding; a row of ``ratings.tsv``.

    Attributes:
        time: Time of the rating, ISO 8601, UTC.
        reader: Name of the reader.
        case: The scan's case id.
        finding: Number of the finding in ``<stem>_components.tsv``.
        rating: One of :data:`RATINGS`.
        comment: Free text, one line.
        volume_ml: Volume of the finding.
        x_mm: Centre of the finding, RAS mm.
        y_mm: See ``x_mm``.
        z_mm: See ``x_mm``.
        model_hash: Model whose map it is.
    """

    time: str
    reader: str
    case: str
    finding: int
    rating: str
    comment: str = ""
    volume_ml: float = math.nan
    x_mm: float = math.nan
    y_mm: float = math.nan
    z_mm: float = math.nan
    model_hash: str = ""

    def __post_init__(self) -> None:
        """Check the fields that a reader gave."""
        if self.rating not in RATINGS:
            raise InputError(f"rating {self.rating!r} is unknown; use {', '.join(RATINGS)}")
        if not 0 < len(self.reader.strip()) <= _MAX_READER:
            raise InputError(f"the reader's name has {len(self.reader.strip())} characters; give 1 to {_MAX_READER}")
        if len(self.comment) > _MAX_COMMENT:
            raise InputError(f"the comment has {len(self.comment)} characters; at most {_MAX_COMMENT} are kept")
        if self.finding < 1:
            raise InputError(f"finding {self.finding} does not exist; findings are counted from 1")

    @property
    def about(self) -> tuple[Any, ...]:
        """Key of the rated finding; the same number at another place belongs to another map."""
        place = (self.x_mm, self.y_mm, self.z_mm)
        return self.case, self.finding, *(round(value, 2) if math.isfinite(value) else None for value in place)


COLUMNS = tuple(field.name for field in fields(Rating))


def append_rating(folder: Path, rating: Rating) -> Path:
    """Append a row to ``ratings.tsv``, which other readers may be writing too.

    Args:
        folder: Output folder of ``maediff infer``.
        rating: The row.

    Returns:
        The file.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(folder) / RATINGS_FILE
    try:
        with FileLock(path.with_name(f".{RATINGS_FILE}.lock"), timeout=_WAIT_SECONDS):
            before = path.read_bytes() if path.is_file() else _line(COLUMNS)
            with atomic_path(path) as temporary:
                temporary.write_bytes(before + (b"" if before.endswith(b"\n") else b"\n") + _line(_cells(rating)))
    except Timeout as error:
        raise OutputError(f"another program holds {error.lock_file}; close it and rate again") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def read_ratings(folder: Path) -> list[Rating]:
    """Read the latest rating of each reader and finding from an output folder.

    Raises:
        InputError: There is no ``ratings.tsv``, or a row of it cannot be read.
    """
    path = Path(folder) / RATINGS_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {RATINGS_FILE}; rate findings with `maediff view {folder}` first")
    latest: dict[tuple[Any, ...], Rating] = {}
    for number, row in enumerate(read_table(path, COLUMNS[:5]).rows, 2):
        try:
            rating = _rating(row)
        except (InputError, ValueError) as error:
            raise InputError(f"line {number} of {path} cannot be read: {error}") from error
        key = (rating.reader, *rating.about)
        latest[key] = rating
    return list(latest.values())


def summarise_ratings(ratings: Sequence[Rating], *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Summarise ratings: precision of the findings, and agreement between readers.

    Precision is the share of real findings among those called real or artefact; its interval resamples scans.
    Agreement is Cohen's kappa over the three ratings, of the findings that both readers rated; None if all of them
    have the same rating, for which kappa is not defined.

    Args:
        ratings: Latest ratings, see :func:`read_ratings`.
        bootstrap: Resamples of scans for the intervals.
        seed: Seed of the resampling.

    Returns:
        ``readers`` (counts and precision of each), ``majority`` (precision of the findings by the rating that most
        of their readers gave), ``pairs`` (agreement of each two readers), and the numbers of findings and scans.
    """
    readers: dict[str, list[Rating]] = {}
    findings: dict[tuple[Any, ...], list[Rating]] = {}
    for rating in ratings:
        readers.setdefault(rating.reader, []).append(rating)
        findings.setdefault(rating.about, []).append(rating)
    majority = [(about[0], _most(own)) for about, own in findings.items()]
    return {
        "findings": len(findings),
        "scans": len({about[0] for about in findings}),
        "readers": {
            name: {"rated": len(own)}
            | {kind: sum(rating.rating == kind for rating in own) for kind in RATINGS}
            | {"precision": _precision([(rating.case, rating.rating) for rating in own], bootstrap, seed)}
            for name, own in sorted(readers.items())
        },
        "majority": {"precision": _precision(majority, bootstrap, seed)},
        "pairs": [_agreement(a, b, readers) for a, b in combinations(sorted(readers), 2)],
    }


def write_summary(folder: Path, metrics_dir: Path, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Summarise the ratings of an output folder and write ``ratings.json``.

    Args:
        folder: Output folder of ``maediff infer``.
        metrics_dir: Where to write; created if it is missing.
        bootstrap: Resamples of scans for the intervals.
        seed: Seed of the resampling.

    Returns:
        The content of ``ratings.json``: see :func:`summarise_ratings`.

    Raises:
        InputError: There are no ratings.
        OutputError: ``metrics_dir`` cannot be written.
    """
    summary = summarise_ratings(read_ratings(folder), bootstrap=bootstrap, seed=seed)
    write_json(Path(metrics_dir) / SUMMARY_FILE, summary)
    return summary


def _precision(rated: Iterable[tuple[str, str]], bootstrap: int, seed: int) -> dict[str, Any]:
    judged = [(case, float(rating == REAL)) for case, rating in rated if rating in {REAL, ARTEFACT}]
    return bootstrap_ci([value for _, value in judged], bootstrap, seed, [case for case, _ in judged]).to_dict()


def _most(own: Sequence[Rating]) -> str:
    """Return the rating that more readers gave than any other; unsure if there is none."""
    counts = {kind: sum(rating.rating == kind for rating in own) for kind in RATINGS}
    best = [kind for kind, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else UNSURE


def _agreement(a: str, b: str, readers: Mapping[str, Sequence[Rating]]) -> dict[str, Any]:
    first, second = ({rating.about: rating.rating for rating in readers[name]} for name in (a, b))
    both = [about for about in first if about in second]
    pairs = np.array([[first[about], second[about]] for about in both]).reshape(-1, 2)
    kappa = None
    if len(np.unique(pairs)) > 1:
        from sklearn.metrics import cohen_kappa_score

        kappa = float(cohen_kappa_score(pairs[:, 0], pairs[:, 1], labels=list(RATINGS)))
    agreement = float((pairs[:, 0] == pairs[:, 1]).mean()) if both else None
    return {"readers": [a, b], "findings": len(both), "agreement": agreement, "kappa": kappa}


def _rating(row: Mapping[str, str]) -> Rating:
    def number(name: str) -> float:
        return float(row.get(name) or "nan")

    return Rating(
        time=row["time"],
        reader=row["reader"],
        case=row["case"],
        finding=int(row["finding"]),
        rating=row["rating"],
        comment=row.get("comment", ""),
        volume_ml=number("volume_ml"),
        x_mm=number("x_mm"),
        y_mm=number("y_mm"),
        z_mm=number("z_mm"),
        model_hash=row.get("model_hash", ""),
    )


def _cells(rating: Rating) -> list[str]:
    values = asdict(rating) | {name: " ".join(getattr(rating, name).split()) for name in ("reader", "comment")}
    return ["" if value is None or value != value else str(value) for value in values.values()]


def _line(cells: Iterable[str]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", lineterminator="\n").writerow(cells)
    return stream.getvalue().encode()
