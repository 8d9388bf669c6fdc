"""The truth: lesion mask, brain mask, patient and lesion kind of each case."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maediff.data.pairing import fits, is_lesion_label
from maediff.data.rows import path_cell, read_participants
from maediff.data.search import content_of
from maediff.data.walk import walk
from maediff.errors import InputError
from maediff.evaluation.outputs import OutputCase
from maediff.paths import stored_places
from maediff.tables import given, read_table
from maediff.volume import SUFFIXES, stem_of

_LABEL = r"lesions?|tumou?r|labels?|d?seg|segmentation|truth|gt|wmh|msk"
_ENDINGS = re.compile(
    rf"(?:[_-](?:(?:desc|label)-[a-z0-9]*)?(?:{_LABEL}|brain|brainmask|mask|roi)|_label-[LR](?=_))+$", re.IGNORECASE
)
_PROCESSED = re.compile(
    r"t[12](w|c|ce|gd|n|f|map)?|flair|pd|dwi|adc|swi|mprage|\d{4}|brain|ss|bet|stripped|n4|bfc|preproc(essed)?|reg|"
    r"registered|mni\d*|norm(alized)?|resampled|1mm|2mm",
    re.IGNORECASE,
)
_BRAIN = re.compile(r"(?:_(?:desc-)?brain(?:_?mask)?|_mask)$", re.IGNORECASE)
_LESION = re.compile(
    rf"[_-](?:(?:desc|label)-[a-z0-9]*)?(?:{_LABEL})(?:_(?:mask|roi))?$|_label-[LR](?:_desc-[a-z0-9]+)?_mask$",
    re.IGNORECASE,
)
_PATHS = ("image", "mask", "label")
HEALTHY_NAMES = frozenset({"", "none", "healthy", "no", "n/a", "0", "false"})


@dataclass(frozen=True)
class Truth:
    """Entry of the reference for one scan.

    Attributes:
        label: Lesion mask; None if the reference says that the scan is healthy.
        mask: Brain mask, or None.
        patient: Patient of the scan.
        lesion: Kind of lesion, or None if the reference does not name it.
        facts: Further cells by column, of the scan's row and of the patient's in ``participants.tsv``.
    """

    label: Path | None
    mask: Path | None
    patient: str
    lesion: str | None
    facts: tuple[tuple[str, str], ...] = ()


class Reference:
    """The truths of a reference table or folder, found by scan path, else by stem."""

    def __init__(self, source: Path, *, people: bool = False) -> None:
        """Read a reference.

        Args:
            source: CSV or TSV with columns ``image`` (or ``image_<channel>``) and ``label``, and optionally ``mask``,
                ``subject`` and ``lesion``; an empty label means a healthy scan. Or a folder: with such a table named
                ``cases.csv``, or with label files that share the scans' stems (``<stem>_lesion.nii.gz``,
                ``<subject>_label-lesion_mask.nii.gz``, …); there, a scan without a file has no reference.
            people: Whether to look up each patient in ``participants.tsv``. For a folder of label files this is always
                done, since it may name the kind of lesion.

        Raises:
            InputError: The source holds no usable reference.
        """
        source = Path(source)
        self._by_path: dict[Path, Truth] = {}
        self._by_stem: dict[str, list[Truth]] = defaultdict(list)
        if source.is_file():
            self._read_table(source, people)
        elif source.is_dir():
            table = source / "cases.csv"
            self._read_table(table, people) if table.is_file() else self._read_folder(source)
        else:
            raise InputError(f"reference {source} does not exist; give a CSV or TSV table, or a folder of lesion masks")

    def find(self, case: OutputCase) -> Truth:
        """Look up the truth of a case.

        Raises:
            InputError: The reference has no truth for the case, or more than one.
        """
        image = case.sidecar.get("image")
        for candidate in stored_places(image, case.folder, case.sidecar):
            if candidate.resolve() in self._by_path:
                return self._by_path[candidate.resolve()]
        stems = dict.fromkeys([case.case, *([stem_of(str(image))] if image else [])])
        for stem in stems:
            truths = self._stem(stem)
            if len(truths) == 1:
                return truths[0]
            if truths:
                raise InputError(f"{len(truths)} references fit {stem}; give a table whose image paths tell them apart")
        raise InputError(f"no reference for {' or '.join(stems)}")

    @property
    def stems(self) -> frozenset[str]:
        """Stems of all scans that the reference names."""
        return frozenset(self._by_stem)

    def _stem(self, stem: str) -> list[Truth]:
        if stem in self._by_stem:
            return list(dict.fromkeys(self._by_stem[stem]))
        shorter = [known for known in self._by_stem if _names_scan(known, stem)] if self._prefixes else []
        return self._by_stem[max(shorter, key=len)] if shorter else []

    _prefixes = False  # label files may be named after the subject; table rows name the scan

    def _read_table(self, table: Path, with_people: bool) -> None:
        columns, rows = read_table(table, ("label",))
        channels = [name for name in columns if name == "image" or name.startswith("image_")]
        if not (rows and channels):
            raise InputError(f"{table} has no rows with a column image (or image_<channel>), so no scan can be matched")
        people = read_participants(table.parent) if with_people else {}
        for row in rows:
            images = [path for name in channels if (path := path_cell(row, name, table.parent)) is not None]
            truth = _row_truth(row, table.parent, images, people)
            for image in images:
                self._by_path[image.resolve()] = truth
                self._by_stem[stem_of(image)].append(truth)

    def _read_folder(self, folder: Path) -> None:
        self._prefixes = True
        files = sorted(path for path in walk(folder).files if path.name.lower().endswith(SUFFIXES))
        labels = [path for path in files if _LESION.search(stem_of(path)) and not _of_tissues(stem_of(path))]
        rest = [path for path in files if not _BRAIN.search(stem_of(path)) and not _of_tissues(stem_of(path))]
        labels = labels or [path for path in rest if content_of(path) != "scan"]
        if not labels:
            raise InputError(f"no lesion masks (.nii, .nii.gz) in reference folder {folder}")
        brains = {_base(path): path for path in files if path not in labels and _BRAIN.search(stem_of(path))}
        people = read_participants(folder)
        for path in labels:
            base = _base(path)
            patient = _subject(base)
            facts = _known_of(patient, people)
            kind = _kind(facts["lesion"]) if "lesion" in facts else None
            self._by_stem[base].append(Truth(path, brains.get(base), patient, kind, tuple(facts.items())))


def _of_tissues(stem: str) -> bool:
    """Check whether a BIDS name is that of a segmentation of tissues, such as fMRIPrep's ``sub-1_dseg``."""
    return stem.startswith("sub-") and stem.endswith("_dseg") and not is_lesion_label(stem)


def _names_scan(label: str, scan: str) -> bool:
    """Check whether a label's name, without the part that marks it as a label, is a prefix of a scan's name.

    BIDS names must agree in subject, session and grid. In other names, the rest of the scan's name may only be its
    contrast and its processing, so that ``patient1`` does not match ``patient1_followup_t1``.

    Example:
        >>> _names_scan("sub-1", "sub-1_acq-3d_T1w"), _names_scan("sub-1", "sub-1_space-MNI_T1w")
        (True, False)
        >>> _names_scan("p1", "p1_t1"), _names_scan("p1", "p1_t1_brain"), _names_scan("p1", "p1_month12_t1")
        (True, True, False)
    """
    rest = next((scan[len(label) + 1 :] for mark in "_-" if scan.startswith(f"{label}{mark}")), "")
    if label.startswith("sub-") and scan.startswith("sub-"):
        return bool(rest) and fits(scan, label)
    return bool(rest) and all(_PROCESSED.fullmatch(part) for part in re.split(r"[_-]", rest))


def _row_truth(
    row: Mapping[str, str], folder: Path, images: list[Path], people: Mapping[str, Mapping[str, str]]
) -> Truth:
    stem = stem_of(images[0]) if images else ""
    patient = given(row, "subject") or _subject(stem)
    own = {name: cell for name, cell in row.items() if name not in _PATHS and not name.startswith("image_")}
    return Truth(
        label=path_cell(row, "label", folder),
        mask=path_cell(row, "mask", folder),
        patient=patient,
        lesion=_kind(row["lesion"]) if "lesion" in row else None,
        facts=tuple({**_known_of(patient, people), **own}.items()),
    )


def _known_of(patient: str, people: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """Look a patient up, who may be called ``01`` in one table and ``sub-01`` in ``participants.tsv``."""
    return people.get(patient if patient.startswith("sub-") else f"sub-{patient}", {})


def _kind(text: str) -> str | None:
    return None if text.lower() in HEALTHY_NAMES or given({"lesion": text}, "lesion") is None else text


def _base(path: Path) -> str:
    return _ENDINGS.sub("", stem_of(path))


def _subject(stem: str) -> str:
    match = re.match(r"sub-[a-zA-Z0-9]+", stem)
    return match.group() if match else stem
