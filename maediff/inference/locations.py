"""Collect healthy residuals by place from scans, and compute leave-one-out maps of these scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maediff.data.cases import Case
from maediff.errors import InputError
from maediff.files import atomic_path
from maediff.methods.zscore import MIN_SCANS
from maediff.normative import Locations, residuals_by_place
from maediff.scoring import case_score
from maediff.typing import Array, FloatMap
from maediff.working import WorkingScan

if TYPE_CHECKING:
    from maediff.inference.predictor import Predictor


def fit_locations(
    predictor: Predictor, cases: Sequence[Case], folder: Path, on_case: Callable[[str], None] | None = None
) -> Locations:
    """Collect healthy residuals by place, one scan after another: memory does not grow with their number.

    Args:
        predictor: The model, with `score.locations` on.
        cases: Healthy scans in a template's space.
        folder: Where the residual of each scan is stored for :func:`left_out_maps`.
        on_case: Called with the name of each scan.

    Raises:
        InputError: Too few subjects, or a scan that cannot be used.
        GeometryError: The header of a scan does not place it in a template's space.
        OutputError: The folder is full.
    """
    subjects, least = len({case.subject for case in cases}), MIN_SCANS + 1
    if subjects < least:
        raise InputError(
            f"{subjects} subjects are too few for healthy residuals by place; give at least {least} (20 are better), "
            "or calibrate without --locations"
        )

    def one_by_one() -> Iterator[Locations]:
        for number, case in enumerate(cases):
            if on_case:
                on_case(case.id)
            scan = predictor.prepare(case.images, case.mask)
            residual, mask = predictor.residual(scan), scan.prepared.mask
            with atomic_path(_kept(folder, number)) as temporary:
                np.save(temporary, residual[mask])
            yield residuals_by_place(residual, mask, scan.prepared.grid)

    return reduce(Locations.plus, one_by_one())


def left_out_maps(
    predictor: Predictor,
    cases: Sequence[Case],
    locations: Locations,
    folder: Path,
    on_scan: Callable[[WorkingScan, FloatMap], None] | None = None,
) -> Iterator[tuple[FloatMap, Array, float]]:
    """Compute the map of each scan from the statistics of all other subjects, as if the scan were new.

    Statistics that include a scan's own residual shrink its deviations, so a threshold from such maps would be too low
    for later scans.

    Args:
        predictor: As for :func:`fit_locations`.
        cases: As for :func:`fit_locations`.
        locations: Result of :func:`fit_locations`.
        folder: Folder that :func:`fit_locations` filled.
        on_scan: Called with each scan and its map.

    Yields:
        Map and brain (X, Y, Z) of a scan, and its scan-level score; subject by subject.
    """
    numbers: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        numbers.setdefault(case.subject, []).append(number)
    for own in numbers.values():
        scans = [predictor.prepare(cases[number].images, cases[number].mask).prepared for number in own]
        residuals = [_unmasked(np.load(_kept(folder, number)), scan) for number, scan in zip(own, scans, strict=True)]
        pairs = list(zip(residuals, scans, strict=True))
        others = reduce(Locations.minus, (residuals_by_place(r, scan.mask, scan.grid) for r, scan in pairs), locations)
        for residual, scan in pairs:
            values = replace(predictor, locations=others).map_of(scan, residual)
            if on_scan:
                on_scan(scan, values)
            yield values, scan.native_mask, case_score(values, scan.native_mask)


def _kept(folder: Path, number: int) -> Path:
    return folder / f"{number}.npy"


def _unmasked(inside: FloatMap, scan: WorkingScan) -> FloatMap:
    values: FloatMap = np.zeros(scan.mask.shape, np.float32)
    values[scan.mask] = inside
    return values
