"""Define the rows and data sets of the benchmark table: methods with settings, data sets with post-processing."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import data_folder
from benchmarks.quality.patients import CONFIG, row, split_rows
from maediff.config import Config, ScoreConfig, load_config
from maediff.data.cases import find_cases
from maediff.data.lesions import KINDS
from maediff.data.synthesis import synthesise

PUBLISHED = (
    "lesions.share=0",
    "train.lesion_weight=0",
    "model.input_skip=false",
    "diffusion.loss=x0_l1",
    "diffusion.train_timesteps=[1, 1000]",
)
"""Settings of the methods as published: no pseudo-lesions, all timesteps, l1 of the x0 estimate (pDDPM's loss)."""
LATE, EARLY = (100, 250, 500, 750), (30, 60, 100, 200)
"""Test timesteps among which validation chooses: for methods trained on all timesteps, and on early ones."""
ONCE = (1,)
Cases = list[dict[str, str]]


@dataclass(frozen=True)
class Row:
    """A method of the table.

    Attributes:
        name: Key of its cells.
        title: Name in the table.
        overrides: Settings on top of the data set's configuration.
        timesteps: Test timesteps that validation tries.
        dense: Whether its code needs slices of one size, so that the grid must hold the largest brain.
        only: Data sets that it is tested on; empty for all.
        trained_as: Row whose trainings it uses, with the same `overrides`; None for its own.
        at_test: Settings of inference on top of those of the training.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    timesteps: tuple[int, ...] = EARLY
    dense: bool = False
    only: tuple[str, ...] = ()
    trained_as: str | None = None
    at_test: tuple[str, ...] = ()

    def tried_on(self, data: str) -> bool:
        """Check whether this row is tested on a data set."""
        return not self.only or data in self.only


REAL = ("lgg_flair", "mslub")
MASKED = "model.mask_channel=true"
ANY_LESION = ("lesions.sign=any", "lesions.size=[0.015, 0.25]", "lesions.spots=0.5")
"""Pseudo-lesions of any kind, not chosen for gliomas: brighter, darker, holes, half of them small spots."""
SEE_ALL, GATE, MIRROR = "train.outside_weight=1", "model.gate=true", "model.mirror=true"
CHOSEN = (SEE_ALL, GATE, MIRROR)
"""What the presets have since cross-validation chose it: the loss sees everything, gate, other hemisphere.
Other rows of MAEDiff are without, as they were before."""


def _published(name: str, title: str, *overrides: str, timesteps: tuple[int, ...] = LATE) -> Row:
    return Row(name, title, (*PUBLISHED, *overrides), timesteps)


def _dense(method: str, title: str) -> Row:
    return Row(method, title, (*PUBLISHED, f"method={method}"), ONCE, dense=True)


def _aided(method: str, title: str, timesteps: tuple[int, ...] = EARLY) -> Row:
    return Row(f"{method}-lesions", f"{title} + our pseudo-lesions", (f"method={method}",), timesteps)


ROWS = (
    _published("intensity", "intensity threshold", "method=intensity", timesteps=ONCE),
    _published("zscore", "voxelwise z-score", "method=zscore", timesteps=ONCE),
    _dense("ae", "AE"),
    _dense("vae", "VAE"),
    _published("dae", "DAE", "method=dae", timesteps=ONCE),
    _published("ddpm", "DDPM (AnoDDPM, Gaussian, DDIM)", "method=ddpm", "diffusion.sampler=ddim"),
    _published(
        "ddpm-simplex",
        "DDPM (AnoDDPM, simplex, DDIM)",
        "method=ddpm",
        "diffusion.sampler=ddim",
        "diffusion.noise=simplex",
    ),
    _published("pddpm", "pDDPM", "method=pddpm"),
    _published("cddpm", "cDDPM-like", "method=cddpm"),
    _published("latent_diffusion", "latent diffusion", "method=latent_diffusion"),
    _published(
        "conditioned_latent_diffusion",
        "latent diffusion, cross-attention to visible cells",
        "method=conditioned_latent_diffusion",
    ),
    _published(
        "autoddpm", "AutoDDPM-like", "method=autoddpm", "diffusion.sampler_steps=5", "baselines.repaint_rounds=2"
    ),
    _published("disyre", "DISYRE", "method=disyre", timesteps=ONCE),
    _published("maediff-plain", "MAEDiff, mask channel, no pseudo-lesions", MASKED),
    _aided("dae", "DAE", ONCE),
    _aided("ddpm", "DDPM"),
    Row(
        "ddpm-mirror",
        "DDPM + our pseudo-lesions, gate, other hemisphere",
        ("method=ddpm", GATE, MIRROR),
        only=REAL,
    ),
    _aided("pddpm", "pDDPM"),
    Row("maediff-any", "MAEDiff, mask channel, pseudo-lesions of any kind", (MASKED, *ANY_LESION), only=REAL),
    Row("maediff", "MAEDiff", CHOSEN, only=REAL),
    Row("maediff-window", "MAEDiff, loss within the window, no gate, one hemisphere"),
    Row("maediff-mask", "MAEDiff, mask channel", (MASKED,), only=REAL),
    Row(
        "maediff-wide",
        "MAEDiff, mask channel, windows of 64",
        (MASKED, "partition.window=64", "partition.stride=16"),
        only=REAL,
    ),
    Row("maediff-no-mae", "MAEDiff without MAE condition", ("model.condition=none",)),
    Row("maediff-cross", "MAEDiff, cross-attention", ("model.condition=cross_attention",)),
)
"""All rows start from `lgg_flair.yaml`, or from `tiny` without the other hemisphere: the same U-Net and training."""


def variant(row: str, seed: int) -> str:
    """Return the name of a row's cell and run folder for a seed of the training."""
    return f"{row}.seed{seed}" if seed else row


def cell_path(results: Path, data: str, row: str, seed: int = 0) -> Path:
    """Return the path of a cell."""
    return results / data / f"{variant(row, seed)}.json"


def seed_cells(results: Path, data: str, row: str) -> list[Path]:
    """List the cells of a row with other seeds, sorted by seed."""
    found = (results / data).glob(f"{row}.seed*.json")
    return sorted(found, key=lambda path: int(path.name.removesuffix(".json").rpartition("seed")[2]))


def lesion_kinds(cases: Path) -> dict[str, str]:
    """Read each subject's kind of lesion from a table; empty for healthy subjects and if the table has none."""
    with cases.open(newline="", encoding="utf-8") as file:
        return {row["subject"]: row.get("lesion") or "" for row in csv.DictReader(file)}


@dataclass(frozen=True)
class DataSet:
    """A data set of the table.

    Attributes:
        name: Key of its cells.
        title: Name on the page.
        config: Preset or YAML file that all methods start from.
        score: Post-processing, the same for all methods; with it validation chooses the timestep.
        others: Further post-processing among which validation then chooses, for each training.
        cases: Function that lists the cases with splits train, val and test. Its arguments are a folder for synthetic
            scans and the folder of real scans.
        budget_tflop: Training operations, forward and backward, that every method may spend.
        choose: Number of labelled validation scans that choose the timestep.
        dense_size: Size of a working slice that holds every brain, for rows with `dense`; for others the grid grows.
        trained_on: Data set whose models, timesteps and thresholds are used, if nothing is trained on this one.
        overrides: Settings on top of the configuration, for all methods.
    """

    name: str
    title: str
    config: str
    score: ScoreConfig
    cases: Callable[[Path, Path], Cases]
    others: tuple[ScoreConfig, ...] = ()
    budget_tflop: float = 0.0
    choose: int = 6
    dense_size: tuple[int, int] | None = None
    trained_on: str | None = None
    overrides: tuple[str, ...] = ()


def config_of(data: DataSet, row: Row, seed: int = 0) -> Config:
    """Configure a method for a data set."""
    grown = [f"data.size={list(data.dense_size)}"] if row.dense and data.dense_size else []
    return load_config(data.config, [*data.overrides, *row.overrides, *grown, f"train.seed={seed}"])


def _lgg_cases(_folder: Path, data: Path) -> Cases:
    return split_rows(find_cases(data_folder("lgg_flair", data) / "cases.csv"))


def _mslub_cases(_folder: Path, data: Path) -> Cases:
    """List the FLAIR scans of the two patients, all in the split test."""
    return [row(case, "test") for case in find_cases(data_folder("mslub", data) / "cases.csv", channel="flair")]


def _phantom_cases(folder: Path, _data: Path) -> Cases:
    """Synthesise 72 T2-like brains; the first two scans per kind of lesion validate, healthy ones are not tested."""
    cohort = synthesise(folder / "cohort", subjects=72, modality="t2", seed=2031)
    kinds = lesion_kinds(cohort)
    left = dict.fromkeys(KINDS, 2)
    rows = []
    for case in find_cases(cohort):
        kind, split = kinds.get(case.subject, ""), str(case.split)
        if left.get(kind, 0):
            left[kind] -= 1
            split = "val"
        if kind or split != "test":
            rows.append(row(case, split, kind))
    return rows


DATA_SETS = {
    "phantom": DataSet(
        "phantom",
        "T2-like phantoms",
        "tiny",
        ScoreConfig(sign="abs", median_mm=6.0, erode_mm=2.0),
        _phantom_cases,
        budget_tflop=10.0,
        overrides=("model.mirror=false",),  # these brains are more alike on both sides than real ones
    ),
    "lgg_flair": DataSet(
        "lgg_flair",
        "real FLAIR, gliomas",
        str(CONFIG),
        ScoreConfig(sign="bright", median_mm=15.0, erode_mm=4.0),
        _lgg_cases,
        budget_tflop=20.0,
        dense_size=(96, 96),  # masks that kept the scalp
    ),
    "mslub": DataSet(
        "mslub",
        "real FLAIR, multiple sclerosis (2 patients: a smoke test)",
        str(CONFIG),
        ScoreConfig(sign="bright", median_mm=0.0, erode_mm=4.0),
        _mslub_cases,
        trained_on="lgg_flair",
    ),
}
