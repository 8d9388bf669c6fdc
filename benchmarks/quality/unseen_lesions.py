"""What is found of lesions that no training has shown? Models that learned to remove bright blobs meet other kinds.

    python -m benchmarks.quality.unseen_lesions --masks DIR --work runs/cross_validation/PROTOCOL --row maediff \
      ddpm-lesions --json benchmarks/results/unseen_lesions.json
    python -m benchmarks.quality.unseen_lesions --render --page docs/cross-validation.md    the table of a page

The models are those of `benchmarks.quality.cross_validation`, whose pseudo-lesions are bright. On slices of each fold's
test patients that hold none of the tumour, one lesion of a family is put into each: bright as in training, dark, fluid,
misplaced (tissue from elsewhere in the slice, at the brightness of what it replaces), squeezed (bent tissue, no new
intensity), smooth (structure is missing) and turned (upside down in its place). The truth is the region of the lesion.
The map is the absolute residual with the filters of the models' configuration. Where a row has several timesteps, their
mean is scored beside each alone, each in units of its residual on healthy slices of validation patients. Intensity is
the distance from the median of the slice's brain, with the same filters. Scores are stored beside each model after each
patient, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from benchmarks.common import RESULTS, Benchmark, markdown_table, plain, say, table, write_between
from benchmarks.common import cell as shown
from benchmarks.quality.cross_validation.folds import COMPARED, FOLDS, patients, split
from benchmarks.quality.cross_validation.statistics import difference, mean
from benchmarks.quality.patients import Patient
from benchmarks.quality.settings import at_timestep
from benchmarks.quality.table.rows import DATA_SETS, Row
from maediff.config import Config, load_config
from maediff.data.cases import Case
from maediff.errors import InputError
from maediff.evaluation import voxel_metrics
from maediff.files import file_sha256, read_json, write_json
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.scoring import postprocess
from maediff.typing import BoolArray, DoubleArray, FloatMap
from maediff.working import WorkingScan, lesion_slices, prepare

BENCHMARK = Benchmark(__file__, __doc__, page="docs/cross-validation.md", results=("unseen_lesions.json",))
SLICES, RADII, SEED = 4, (2.5, 6.0), 16
"""Slices of a patient, half axes of lesions in pixels of 3 mm, and the seed of all lesions."""
RIM = 0.5
"""Width of a lesion's soft rim, pixels."""
LARGE = 0.6
"""Brain that a slice must hold, as a share of the patient's largest slice."""
INTENSITY = "intensity"
BEGIN, END = "<!-- begin: python -m benchmarks.quality.unseen_lesions --render -->", "<!-- end -->"
Spacing = tuple[float, float, float]
Families = dict[str, dict[str, float]]
"""AUPRC of a patient, by family and timestep."""
Patients = dict[str, Families]
Fill = Callable[["Spot"], FloatMap]


@dataclass(frozen=True)
class Spot:
    """Where a lesion lies.

    Attributes:
        image: The slice (H, W), working units.
        brain: (H, W).
        centre: Row and column.
        alpha: Share of lesion (H, W), 0 to 1.
        rng: Source of the lesion's look.
    """

    image: FloatMap
    brain: BoolArray
    centre: tuple[int, int]
    alpha: FloatMap
    rng: np.random.Generator

    @property
    def inside(self) -> BoolArray:
        """Pixels that are mostly lesion."""
        within: BoolArray = (self.alpha > 0.5) & self.brain
        return within


@dataclass(frozen=True)
class Painted:
    """Slices of a patient with a lesion of one family in each: images and truth (S, H, W)."""

    images: FloatMap
    truth: BoolArray


def bright(spot: Spot) -> FloatMap:
    """Make tissue brighter, as the pseudo-lesions of the training do."""
    changed: FloatMap = spot.image + np.float32(spot.rng.uniform(0.2, 0.8))
    return changed


def dark(spot: Spot) -> FloatMap:
    """Make tissue darker."""
    changed: FloatMap = spot.image - np.float32(spot.rng.uniform(0.2, 0.8))
    return changed


def fluid(spot: Spot) -> FloatMap:
    """Put fluid in the place of tissue: the brightness of the darkest twentieth of the brain."""
    return np.full_like(spot.image, np.quantile(spot.image[spot.brain], 0.05))


def misplaced(spot: Spot) -> FloatMap:
    """Show tissue of another place of the slice, with the mean brightness of what it replaces."""
    rows, columns = np.nonzero(spot.brain)
    far = np.hypot(rows - spot.centre[0], columns - spot.centre[1]) > 12
    pick = int(spot.rng.choice(np.flatnonzero(far)))
    shift = (spot.centre[0] - int(rows[pick]), spot.centre[1] - int(columns[pick]))
    other = np.roll(spot.image, shift, (0, 1))
    known = np.roll(spot.brain, shift, (0, 1))
    level = spot.image[spot.inside].mean()
    seen = spot.inside & known
    matched = other - (other[seen].mean() if seen.any() else level) + level
    changed: FloatMap = np.where(known, matched, level).astype(np.float32)
    return changed


def squeezed(spot: Spot) -> FloatMap:
    """Pull tissue to the centre, or push it away, by up to half of the distance."""
    grid = np.indices(spot.image.shape).astype(np.float64)
    offset = grid - np.reshape(spot.centre, (2, 1, 1))
    amount = spot.rng.choice((-0.5, 0.5))
    reach = np.sqrt(max(int(spot.inside.sum()), 1) / np.pi) * 1.3
    fade = np.exp(-((np.hypot(*offset) / reach) ** 2))
    return _sampled(spot.image, grid + amount * fade * offset)


def smooth(spot: Spot) -> FloatMap:
    """Blur structure away, counting only brain."""
    share = ndimage.gaussian_filter(spot.brain.astype(np.float32), 3.0)
    total = ndimage.gaussian_filter(np.where(spot.brain, spot.image, 0).astype(np.float32), 3.0)
    changed: FloatMap = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
    return changed


def turned(spot: Spot) -> FloatMap:
    """Turn tissue by half a turn about the centre."""
    grid = np.indices(spot.image.shape)
    place = 2 * np.reshape(spot.centre, (2, 1, 1)) - grid
    return _sampled(spot.image, place.astype(np.float64))


def _sampled(image: FloatMap, places: DoubleArray) -> FloatMap:
    """Interpolate an image (H, W) at places (2, H, W)."""
    found: FloatMap = ndimage.map_coordinates(image, places, order=1, mode="nearest").astype(np.float32)
    return found


FAMILIES: dict[str, Fill] = {fill.__name__: fill for fill in (bright, dark, fluid, misplaced, squeezed, smooth, turned)}


def blob(shape: tuple[int, int], centre: tuple[int, int], rng: np.random.Generator) -> FloatMap:
    """Draw a soft ellipse (H, W), 0 to 1, with half axes within :data:`RADII`."""
    axes, angle = rng.uniform(*RADII, 2), rng.uniform(0, np.pi)
    down, right = (place - middle for place, middle in zip(np.indices(shape), centre, strict=True))
    along = (down * np.cos(angle) + right * np.sin(angle)) / axes[0]
    across = (right * np.cos(angle) - down * np.sin(angle)) / axes[1]
    beyond = (np.hypot(along, across) - 1) * axes.min() / RIM
    soft: FloatMap = (1 / (1 + np.exp(np.clip(beyond, -30, 30)))).astype(np.float32)
    return soft


def paint(image: FloatMap, brain: BoolArray, family: str, rng: np.random.Generator) -> tuple[FloatMap, BoolArray]:
    """Put a lesion of a family into a slice.

    Args:
        image: (H, W), working units, -1 outside the brain.
        brain: (H, W).
        family: One of :data:`FAMILIES`.
        rng: Source of chance; the place and the shape come first, so that families of one seed share them.

    Returns:
        The slice with the lesion, and the lesion's region within the brain.
    """
    tissue = ndimage.uniform_filter(image, 2 * int(RADII[0]) + 1) > np.quantile(image[brain], 0.25)
    rows, columns = np.nonzero(ndimage.binary_erosion(brain, iterations=3) & tissue)  # fluid in fluid is no lesion
    pick = int(rng.integers(len(rows)))
    centre = (int(rows[pick]), int(columns[pick]))
    alpha = blob((image.shape[0], image.shape[1]), centre, rng)
    spot = Spot(image, brain, centre, alpha, rng)
    changed = image + alpha * (FAMILIES[family](spot) - image)
    return np.where(brain, np.clip(changed, -1, None), image).astype(np.float32), spot.inside


def chosen_slices(prepared: WorkingScan, tumour: BoolArray) -> list[int]:
    """List :data:`SLICES` slices, evenly spaced, that are large and hold none of the tumour (S,)."""
    area = prepared.mask.sum((1, 2))
    fit = np.flatnonzero((area >= LARGE * area.max()) & ~tumour)
    spread = np.linspace(0, len(fit) - 1, min(SLICES, len(fit))).round().astype(int)
    return [int(index) for index in fit[spread]]


def painted(scan: FloatMap, brain: BoolArray, family: str, name: str) -> Painted:
    """Put a lesion of a family into each slice (S, H, W), at places that depend on the patient and the slice."""
    images, truth = [], []
    for index, (image, inside) in enumerate(zip(scan, brain, strict=True)):
        rng = np.random.default_rng((SEED, index, *name.encode()))
        changed, region = paint(image, inside, family, rng)
        images.append(changed)
        truth.append(region)
    return Painted(np.stack(images), np.stack(truth))


@dataclass(frozen=True)
class Model:
    """A trained model with what its residuals are on healthy slices.

    Attributes:
        predictor: The model.
        healthy: Mean absolute residual of validation patients' slices without tumour, at each timestep.
    """

    predictor: Predictor
    healthy: Mapping[int, float]

    def residuals(self, images: FloatMap, brain: BoolArray) -> dict[str, FloatMap]:
        """Compute the absolute residual (S, H, W) at each timestep.

        With several timesteps, `all` is the mean over them, each in units of what it is on healthy slices.
        """
        found = {t: absolute_residual(self.predictor, images, brain, t) for t in self.healthy}
        named = {f"t {t}": values for t, values in found.items()}
        if len(found) > 1:
            scaled = [values / np.float32(self.healthy[t]) for t, values in found.items()]
            named["all"] = np.mean(scaled, axis=0, dtype=np.float32)
        return named


def absolute_residual(predictor: Predictor, images: FloatMap, brain: BoolArray, t: int) -> FloatMap:
    """Reconstruct slices (S, H, W) at one timestep, and compare."""
    healthy = at_timestep(predictor, t).reconstruct(torch.from_numpy(images), torch.from_numpy(brain), (SEED, t))
    return healthy.residual(images, "abs")


def load(folder: Path, timesteps: Sequence[int], validation: Sequence[Case]) -> Model:
    """Load a model, and measure its residuals on healthy slices."""
    predictor = load_model(folder, "cpu")
    healthy = []
    for case in validation:
        images, brain, _ = _tumour_free(case)
        if len(images):
            healthy.append([absolute_residual(predictor, images, brain, t)[brain].mean() for t in timesteps])
    return Model(predictor, dict(zip(timesteps, np.mean(healthy, axis=0).tolist(), strict=True)))


def _tumour_free(case: Case) -> tuple[FloatMap, BoolArray, Spacing]:
    """Prepare the chosen slices of a patient: images and brain (S, H, W), and the spacing in mm."""
    patient = Patient(case)
    prepared = prepare(patient.volume, patient.brain, _config().data)
    slices = chosen_slices(prepared, lesion_slices(patient.label, prepared.grid))
    return prepared.slices[slices], prepared.mask[slices], prepared.grid.spacing_mm


def _intensity(images: FloatMap, brain: BoolArray) -> FloatMap:
    """Measure the distance from the median of each slice's brain."""
    middles = [np.median(image[inside]) for image, inside in zip(images, brain, strict=True)]
    return np.abs(images - np.reshape(middles, (-1, 1, 1))).astype(np.float32) * brain


@cache
def _config() -> Config:
    """Load the settings that all rows share: slices and filters."""
    return load_config(DATA_SETS["lgg_flair"].config)


def _auprc(values: FloatMap, lesion: Painted, brain: BoolArray, spacing: Spacing) -> float:
    score = _config().score.model_copy(update={"sign": "abs"})
    return voxel_metrics(postprocess(values, brain, spacing, score), brain, lesion.truth, None).auprc


def intensity_scores(case: Case) -> Families:
    """Score the distance from each slice's median on a patient."""
    return scored(case, lambda images, brain: {"": _intensity(images, brain)})


def scored(case: Case, residuals: Callable[[FloatMap, BoolArray], Mapping[str, FloatMap]]) -> Families:
    """Score a patient: AUPRC over its slices by family and timestep; nothing if every large slice holds tumour."""
    images, brain, spacing = _tumour_free(case)
    return {
        family: {
            time: _auprc(values, lesion, brain, spacing) for time, values in residuals(lesion.images, brain).items()
        }
        for family in (FAMILIES if len(images) else ())
        for lesion in [painted(images, brain, family, case.subject)]
    }


def stored_scores(folder: Path, timesteps: Sequence[int], validation: list[Case], test: list[Case]) -> Patients:
    """Score a model on test patients, those alone whose scores are not yet stored beside it.

    Args:
        folder: The run folder; gets `unseen_lesions.json`, written anew after each patient.
        timesteps: Of the model's row.
        validation: Patients whose healthy slices give the units of each timestep.
        test: Patients to score.
    """
    path = folder / BENCHMARK.results[0]
    key = {
        "weights": file_sha256(folder / "model" / "model.safetensors"),
        "validation": [case.subject for case in validation],
    }
    stored = read_json(path) if path.is_file() else {}
    patients: Patients = stored["patients"] if stored.get("key") == key else {}
    absent = [case for case in test if case.subject not in patients]
    if absent:
        model = load(folder / "model", timesteps, validation)
        for case in absent:
            patients[case.subject] = scored(case, model.residuals)
            write_json(path, {"key": key, "patients": plain(patients)})
    return {case.subject: patients[case.subject] for case in test}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score test patients of the folds with the models of their fold, or render what is stored."""
    if options.render:
        text = markdown(read_json(RESULTS / BENCHMARK.results[0])["results"])
        print(text)
        if options.page:
            write_between(options.page, BEGIN, END, text)
        return {}
    if options.work is None:
        raise InputError("--work is missing: name the folder of the cross-validation's models")
    torch.set_num_threads(options.threads)
    rows = {name: _row(name) for name in options.row}
    cases = patients(options.data, options.masks)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fold in options.fold:
        part = {row["subject"]: row["split"] for row in split(cases, fold)}
        chosen = {name: [case for case in cases if part[case.subject] == name] for name in ("val", "test")}
        validation, test = chosen["val"][: options.limit], chosen["test"][: options.limit]
        _collect(found, INTENSITY, {case.subject: intensity_scores(case) for case in test})
        for name, row in rows.items():
            folder = options.work / f"fold{fold}" / name
            _collect(found, name, stored_scores(folder, row.timesteps, validation, test))
            say(f"fold {fold} {name}: {len(test)} patients")
    values = {name: {family: np.array([row]) for family, row in by.items()} for name, by in found.items()}
    print(_table(values))
    summary = {
        name: {
            family: {"auprc": mean(row), "above_intensity": difference(row, values[INTENSITY][family])}
            for family, row in by.items()
        }
        for name, by in values.items()
    }
    return {"families": summary, "patients": found}


def _collect(found: dict[str, dict[str, list[float]]], name: str, patients: Patients) -> None:
    """Add a model's scores, by name with timestep and by family."""
    for families in patients.values():
        for family, times in families.items():
            for time, value in times.items():
                found[", ".join(filter(None, (name, time)))][family].append(value)


def _row(name: str) -> Row:
    """Find the row of a run folder: its name, of other seeds with `.seedN` behind it."""
    rows = {row.name: row for row in COMPARED if row.name != INTENSITY}
    row = rows.get(_without_seed(name))
    if row is None:
        raise InputError(f"--row {name}: there is no such row; allowed are {', '.join(rows)}, and these with .seedN")
    return row


def _without_seed(folder: str) -> str:
    return folder.partition(".seed")[0]


def markdown(results: Mapping[str, Any]) -> str:
    """Render stored results: AUPRC of each method and family, and the number of patients."""
    titles = {row.name: row.title for row in COMPARED}
    lines = []
    for name, families in results["patients"].items():
        folder, _, time = name.partition(", ")
        row = _without_seed(folder)
        found = [shown(mean(np.array([families[family]], np.float64))) for family in FAMILIES]
        lines.append([", ".join(filter(None, (titles.get(row, row), time))), *found])
    count = len(results["patients"][INTENSITY]["bright"])
    return f"{count} patients.\n\n" + markdown_table(["method", *FAMILIES], lines)


def _table(values: dict[str, dict[str, DoubleArray]]) -> str:
    lines = [[name, *(mean(by[family]) for family in FAMILIES)] for name, by in values.items()]
    return table(["method", *FAMILIES], lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--masks", type=Path, metavar="DIR", help="brain masks instead of those of the data set")
    parser.add_argument("--work", type=Path, metavar="DIR", help="models, in foldK/ROW/model")
    parser.add_argument("--render", action="store_true", help="compute nothing")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the table into this page (with --render)")
    parser.add_argument("--row", nargs="+", default=[], metavar="ROW", help="methods, of other seeds as ROW.seedN")
    parser.add_argument("--fold", nargs="+", type=int, choices=range(FOLDS), default=list(range(FOLDS)), help="(all)")
    parser.add_argument("--limit", type=int, default=1000, help="patients per fold, of test and of validation (all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
