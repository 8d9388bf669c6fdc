"""BIDS names and the files that make an output folder a derivative data set (BIDS 1.9, which later ones include)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from maediff._version import __version__
from maediff.errors import InputError
from maediff.files import write_json, write_text

BIDS_VERSION = "1.9.0"
DERIVATIVE_FILES = ("dataset_description.json", ".bidsignore", "README.md", "mask.json")

SPACE = "MNI152NLin2009aSym"
"""BIDS name of the template that nilearn bundles."""
_SCAN = re.compile(
    r"(?P<folder>sub-[a-zA-Z0-9+]+(/ses-[a-zA-Z0-9+]+)?/anat)/"
    r"(?P<entities>sub-[a-zA-Z0-9+]+(_[a-z]+-[a-zA-Z0-9+]+)*)_(?P<suffix>T1w|T2w|FLAIR)"
)
_GRID = ("space", "cohort", "res", "den")
_AFTER_SPACE = ("split", "recording", "chunk", "seg", "label", "desc")
_IGNORED = (
    "cases*.tsv",
    "run*.json",
    "*.html",
    "*.png",
    "metrics*",
    "prepare.tsv",
    "*components*",  # the validator's patterns fail on longer names that a star starts
    "ratings.tsv",
)
_README = """# Anomaly maps by MAEDiff

Research use only; not a medical device.

- `*_desc-anomaly_<suffix>.nii.gz`: residual between the scan and its healthy reconstruction; the JSON beside it
  holds its units, score, threshold and what the map was made of.
- `*_desc-reconstruction_<suffix>.nii.gz`: the healthy reconstruction, in the scan's intensities.
- `*_label-anomaly_mask.nii.gz`: voxels above the calibrated threshold; `desc-<suffix>` tells contrasts apart.
"""


@dataclass(frozen=True)
class BidsName:
    """Parts of a BIDS file name, for naming its derivatives.

    Attributes:
        folder: Folder inside the data set, for example ``sub-01/ses-1/anat``.
        entities: Name up to the suffix, for example ``sub-01_ses-1_acq-3d``.
        suffix: ``T1w``, ``T2w`` or ``FLAIR``.
        alone: Whether the data set holds no other contrast with these entities.
    """

    folder: str
    entities: str
    suffix: str
    alone: bool = True

    @classmethod
    def parse(cls, text: str) -> BidsName:
        """Read what :attr:`scan` returns; other contrasts may share the entities.

        Raises:
            InputError: Not a path such as ``sub-01/anat/sub-01_T1w``.
        """
        found = _SCAN.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r} is not the BIDS path of a scan, such as sub-01/ses-1/anat/sub-01_ses-1_T1w")
        return cls(found["folder"], found["entities"], found["suffix"], alone=False)

    @property
    def scan(self) -> str:
        """Name of the scan inside its data set, without an ending."""
        return f"{self.folder}/{self.entities}_{self.suffix}"

    def in_space(self, space: str) -> BidsName:
        """Name the scan as resampled to a template; entities have a fixed order, in which few come after space.

        Example:
            >>> BidsName("sub-1/anat", "sub-1_run-2_chunk-1", "T1w").in_space("X").entities
            'sub-1_run-2_space-X_chunk-1'
            >>> BidsName("sub-1/anat", "sub-1_space-Y_res-2_desc-preproc", "T1w").in_space("X").entities
            'sub-1_space-X_desc-preproc'
        """
        parts = [part for part in self.entities.split("_") if part.partition("-")[0] not in _GRID]
        after = [part for part in parts if part.partition("-")[0] in _AFTER_SPACE]
        before = [part for part in parts if part not in after]
        return replace(self, entities="_".join([*before, f"space-{space}", *after]))

    def map(self, kind: str) -> str:
        """Name a map of the scan inside the derivative data set, without an ending; a ``desc`` of the scan is kept.

        Example:
            >>> BidsName("sub-1/anat", "sub-1", "T1w").map("anomaly")
            'sub-1/anat/sub-1_desc-anomaly_T1w'
            >>> BidsName("sub-1/anat", "sub-1_desc-preproc", "T1w").map("anomaly")
            'sub-1/anat/sub-1_desc-preprocanomaly_T1w'
        """
        entities, _, desc = self.entities.partition("_desc-")
        return f"{self.folder}/{entities}_desc-{desc}{kind}_{self.suffix}"

    @property
    def mask(self) -> str:
        """Name of the anomaly mask, without an ending; it includes the contrast if there are several.

        Example:
            >>> BidsName("sub-1/anat", "sub-1", "FLAIR", alone=False).mask
            'sub-1/anat/sub-1_label-anomaly_desc-FLAIR_mask'
        """
        entities, _, desc = self.entities.partition("_desc-")
        desc += "" if self.alone else self.suffix
        return f"{self.folder}/{entities}_label-anomaly{f'_desc-{desc}' if desc else ''}_mask"


def describe_data_set(
    folder: Path, name: str, kind: str, ignored: Iterable[str] = (), readme: str | None = None, **more: str
) -> None:
    """Write what makes a folder a BIDS data set: its description, and what of it is no part of BIDS.

    Args:
        folder: Root of the data set.
        name: What it is called.
        kind: ``raw`` or ``derivative``.
        ignored: Patterns of ``.bidsignore``.
        readme: Text of ``README.md``.
        more: Further fields of the description.

    Raises:
        OutputError: A file cannot be written.
    """
    generated = {"GeneratedBy": [{"Name": "maediff", "Version": __version__}]}
    content = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind} | generated | more
    write_json(folder / "dataset_description.json", content)
    patterns = list(ignored)
    if patterns:
        write_text(folder / ".bidsignore", "\n".join(patterns) + "\n")
    if readme is not None:
        write_text(folder / "README.md", readme)


def describe_derivatives(out: Path, suffixes: Iterable[str]) -> None:
    """Make an output folder of ``infer`` a BIDS derivative data set.

    Args:
        out: The folder.
        suffixes: Contrasts of its maps; a JSON per contrast at the root holds the facts that its maps share.

    Raises:
        OutputError: A file cannot be written.
    """
    describe_data_set(out, "MAEDiff anomaly maps", "derivative", _IGNORED, _README)
    mask = {"Type": "Lesion", "Description": "Voxels above the calibrated anomaly threshold; research use only"}
    write_json(out / "mask.json", mask)
    for suffix in sorted(set(suffixes)):
        text = f"Derived from {suffix} by MAEDiff inside the brain mask; research use only"
        write_json(out / f"{suffix}.json", {"SkullStripped": True, "Description": text})
