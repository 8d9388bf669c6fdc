"""Build the list of cases from a file, a folder, a table or a BIDS data set."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from os.path import commonpath
from pathlib import Path

from maediff.data.bids import BidsName
from maediff.data.pairing import best_fit, is_brain_mask, is_lesion_label
from maediff.data.rows import path_cell, read_participants
from maediff.data.search import describe_left_out, is_nifti, is_result, judge, named_label, other_formats, wrote_brain
from maediff.data.walk import LeftOut, Walk, walk
from maediff.errors import ConfigError, InputError
from maediff.paths import readable
from maediff.tables import given, listed, read_table
from maediff.volume import SUFFIXES, stem_of

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv")
BIDS_SUFFIXES = ("T1w", "T2w", "FLAIR")
BRAIN_SUFFIXES = ("brainmask", "brain_mask", "desc-brain_mask", "mask")
LABEL_SUFFIXES = (
    *(
        "label",
        "lesion",
        "tumour",
        "tumor",
        "seg",
        "dseg",
        "label-lesion_mask",
        "lesion_mask",
        "roi",
        "gt",
        "consensus_gt",
    ),
    *("wmh", "msk"),
)
_LABEL_FOLDERS = (("images", "labels"), ("images", "masks"), ("image", "label"), ("image", "mask"))


@dataclass(frozen=True)
class Search:
    """Result of :func:`search_cases`.

    Attributes:
        cases: Cases in a fixed order, with unique ids.
        left_out: Files and folders that are not used, and why.
    """

    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Case:
    """One scan with its masks and facts.

    Attributes:
        id: Unique in the list: the stem, or folders and stem where stems repeat.
        image: The scan.
        mask: Its brain mask, or None.
        label: Its lesion mask, or None.
        subject: Whose scan it is; several scans may share a subject.
        session: Session name, or None.
        split: ``train``, ``val``, ``test`` or whatever the table says; None if it says nothing.
        stem: File name of the scan without ``.nii`` or ``.nii.gz``.
        bids: Parts of the BIDS name where the scan is of a BIDS data set (a table may say so in column ``bids``), else
            None.
        others: Further channels of the same grid, for models that see several; `image` is the first.
        problem: Why it cannot be used, such as a DICOM series that cannot be read; empty for all others.
    """

    id: str
    image: Path
    mask: Path | None
    label: Path | None
    subject: str
    session: str | None
    split: str | None
    stem: str
    bids: BidsName | None = None
    others: tuple[Path, ...] = ()
    problem: str = ""

    @property
    def images(self) -> tuple[Path, ...]:
        """All channels, the first one first."""
        return (self.image, *self.others)


def find_cases(
    source: str | Path,
    mask: str | Path | None = None,
    split: str | None = None,
    channel: str | None = None,
    channels: Sequence[str] = (),
) -> list[Case]:
    """List the scans of a source, see :func:`search_cases`."""
    return list(search_cases(source, mask, split, channel, channels).cases)


def search_cases(
    source: str | Path,
    mask: str | Path | None = None,
    split: str | None = None,
    channel: str | None = None,
    channels: Sequence[str] = (),
    *,
    pattern: str | None = None,
    exclude: Iterable[str | Path] = (),
    splits: bool = True,
) -> Search:
    """List the scans of a source.

    - A NIfTI file: one case. A brain mask beside it (``<stem>_brainmask``, ``<stem>_brain_mask``, ``<stem>_mask``,
      or the same with the last ``_part`` of the stem replaced) is used if ``mask`` is not given.
    - A table ``.csv`` or ``.tsv`` with columns ``image[,mask][,label][,subject][,session][,split]``, paths relative to
      the table; several channels as ``image_t1,image_t2,...``, of which ``channel`` chooses one.
    - A folder with ``dataset_description.json`` is a BIDS data set; one with a ``cases.csv`` or ``cases.tsv`` is read
      through that table; any other is searched for NIfTI files that are not masks, labels or results, by their voxels
      and names (:func:`maediff.data.search.judge`). Links are followed, hidden folders and results of MAEDiff
      are not searched.

    Unused files of a folder are listed in a warning.

    Files are not read here, so that one bad scan does not stop the others.

    Args:
        source: File, table or folder.
        mask: Brain mask; for a single file only.
        split: Keep only this split (tables, and BIDS with a ``split`` column in ``participants.tsv``).
        channel: Contrast to choose, for example ``flair``, if the source has several.
        channels: Contrasts that belong together, for a model that sees several; the source is a table then.
        pattern: Of a folder, take the NIfTI files whose name or path below the folder fits, such as ``*_t1.nii.gz``,
            and judge none of them; ``*`` takes all.
        exclude: Folders not to search, such as that of the results.
        splits: Whether the cases of a BIDS data set need their splits; if not, ``participants.tsv`` is read only to
            choose one.

    Raises:
        InputError: Nothing there, no scans, a table without the columns needed, an unknown split or channel.
    """
    source = Path(source).expanduser()
    if channels and channel is not None:
        raise InputError(
            f"the model sees the channels {listed(list(channels))} together; leave out channel {channel!r}"
        )
    if not source.exists():
        raise InputError(
            f"{source} does not exist; give a NIfTI file, a folder, a .csv or .tsv table or a BIDS data set"
        )
    if channels and not channels_of(source):
        columns = ",".join(f"image_{name}" for name in channels)
        raise InputError(
            f"{source} has one channel a scan, the model sees {listed(list(channels))}; give a table with the columns "
            f"{columns}"
        )
    if source.is_file() and source.suffix.lower() not in TABLES:
        return Search((_single(source, mask, split),))
    if mask is not None:
        raise InputError(
            f"a brain mask can be given for a single scan, not for {source}; use a table with a mask column"
        )
    if pattern is not None and not (source.is_dir() and _is_plain(source)):
        raise InputError(f"pattern {pattern!r} is for a folder of scans; {source} is a table or a BIDS data set")
    if _is_bids(source):
        found = _from_bids(source, channel, splits=splits or split is not None)
    elif source.is_dir():
        found = _from_folder(source, channel, channels, pattern, [Path(path) for path in exclude])
    else:
        found = Search(tuple(_from_table(source, channel, channels)))
    cases = list(found.cases) if split is None else _of_split(list(found.cases), split, source)
    return replace(found, cases=tuple(_unique_ids(cases)))


def channels_of(source: str | Path) -> tuple[str, ...]:
    """Name the channels of a table with columns ``image_<channel>``, in their order; none if one is called image.

    Args:
        source: As for :func:`find_cases`.

    Raises:
        InputError: The table cannot be read.
    """
    source = Path(source).expanduser()
    tables = [source] if source.is_file() else [source / "cases.csv", source / "cases.tsv"]
    path = next((path for path in tables if path.is_file() and path.suffix.lower() in TABLES), None)
    if path is None or _is_bids(source):
        return ()
    columns = read_table(path).columns
    return () if "image" in columns else tuple(c.removeprefix("image_") for c in columns if c.startswith("image_"))


def shard(cases: Sequence[Case], k: int, n: int) -> list[Case]:
    """Take share ``k`` of ``n`` of the cases; the shares are disjoint, together whole, and equal to within one.

    Raises:
        ConfigError: Not 1 <= k <= n.

    Example:
        >>> shard([], 1, 2)
        []
    """
    if not 1 <= k <= n:
        raise ConfigError(f"shard {k}/{n} does not exist; K must be between 1 and N")
    return list(cases[k - 1 :: n])


def looks_like_scan(path: Path) -> bool:
    """Check by its name whether a file is a scan, not a mask, label, result or hidden file.

    Example:
        >>> [looks_like_scan(Path(n)) for n in ("a_t1.nii.gz", "a_brainmask.nii", "a_anomaly-mask.nii.gz", "a.txt")]
        [True, False, False, False]
    """
    return is_nifti(path) and not is_result(path) and not named_label(path)


def _single(path: Path, mask: str | Path | None, split: str | None) -> Case:
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is neither a NIfTI file (.nii, .nii.gz) nor a table (.csv, .tsv)")
    if split is not None:
        raise InputError(f"a single scan has no split; leave out split {split!r}, or give a table")
    case = _plain_case(path)
    return case if mask is None else replace(case, mask=Path(mask))


def _plain_case(path: Path) -> Case:
    stem = readable(stem_of(path))
    brain, label = _companion(path, BRAIN_SUFFIXES), _companion(path, LABEL_SUFFIXES) or _label_elsewhere(path)
    if brain and wrote_brain(brain.with_name(f"{stem_of(brain).removesuffix('_brainmask')}_anomaly.json"), brain):
        brain = None  # what infer found in an earlier run into this folder
    if brain:
        logger.info("%s: brain mask %s", path.name, brain.name)
    return Case(stem, path, brain, label, subject=stem, session=None, split=None, stem=stem)


def _companion(path: Path, suffixes: Iterable[str]) -> Path | None:
    """Find ``<stem>_<suffix>`` beside a scan, else the same with the last part of the stem (the contrast) replaced.

    Parts are joined by ``_`` or, as in BraTS, by ``-``.
    """
    stem = stem_of(path)
    bases = [(stem, "_"), (stem, "-"), *((stem.rpartition(mark)[0], mark) for mark in "_-" if mark in stem)]
    names = (f"{base}{mark}{suffix}{ending}" for base, mark in bases for suffix in suffixes for ending in SUFFIXES)
    return next((found for name in names if _present(found := path.with_name(name)) and found != path), None)


def _label_elsewhere(path: Path) -> Path | None:
    """Find the label of a scan in the sibling folder where nnU-Net and the Medical Segmentation Decathlon keep it."""
    stem, folder = stem_of(path), path.parent
    for images, labels in _LABEL_FOLDERS:
        if folder.name.lower().startswith(images):
            place = folder.with_name(f"{labels}{folder.name[len(images) :]}")
            for name in dict.fromkeys((stem, re.sub(r"_\d{4}$", "", stem))):
                for ending in SUFFIXES:
                    if _present(place / f"{name}{ending}"):
                        return place / f"{name}{ending}"
    return None


def _present(path: Path) -> bool:
    """Check whether a file is there; a link whose target is missing is, and fails when it is read."""
    try:
        return path.is_file() or path.is_symlink()
    except OSError:  # a name that the file system finds too long
        return False


def _is_bids(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file()


def _is_plain(folder: Path) -> bool:
    return not _is_bids(folder) and _table_in(folder) is None


def _table_in(folder: Path) -> Path | None:
    """Find the table of scans in a folder; tables of results do not count."""
    for name in ("cases.csv", "cases.tsv"):
        table = folder / name
        if table.is_file() and any(c == "image" or c.startswith("image_") for c in read_table(table).columns):
            return table
    return None


def _from_folder(
    folder: Path, channel: str | None, channels: Sequence[str], pattern: str | None, exclude: Sequence[Path]
) -> Search:
    if (table := _table_in(folder)) is not None:
        logger.info("%s: using its table %s", folder, table.name)
        return Search(tuple(_from_table(table, channel, channels)))
    found = walk(folder, exclude)
    paths, left_out = _scans_of(folder, found, pattern)
    if channel is not None:
        paths = [p for p in paths if re.search(rf"(^|[_-]){re.escape(channel)}w?$", stem_of(p), re.IGNORECASE)]
    cases = [_plain_case(path) for path in paths]
    used = {path for case in cases for path in (case.mask, case.label)}
    left_out = [item for item in left_out if item.path not in used]
    if not paths:
        raise InputError(_no_scans(folder, found, left_out, channel))
    if left_out:
        logger.warning("%s: not taken for scans: %s", folder, readable(describe_left_out(left_out, folder)))
    return Search(tuple(cases), tuple(left_out))


def _scans_of(folder: Path, found: Walk, pattern: str | None) -> tuple[list[Path], list[LeftOut]]:
    """Judge the files of a folder, or take those that a pattern fits."""
    if pattern is not None:
        files = [path for path in found.files if is_nifti(path)]
        fitting = [p for p in files if fnmatch(p.name, pattern) or fnmatch(p.relative_to(folder).as_posix(), pattern)]
        return fitting, list(found.left_out)
    judged = judge(found.files)
    for path in judged.despite_name:
        logger.warning("%s is taken for a scan: its name says mask or label, its voxels say scan", readable(str(path)))
    return list(judged.scans), [*found.left_out, *judged.left_out]


def _no_scans(folder: Path, found: Walk, left_out: Sequence[LeftOut], channel: str | None) -> str:
    wanted = "" if channel is None else f" of channel {channel!r} (names that end in _{channel})"
    others = other_formats(found.files)
    return (
        f"{folder} holds no scans{wanted}: no .nii or .nii.gz file other than masks, labels and results"
        + (f"; left out: {readable(describe_left_out(left_out, folder))}" if left_out else "")
        + (f"; {others} files must be converted to NIfTI first" if others else "")
    )


def _from_table(path: Path, channel: str | None, channels: Sequence[str]) -> list[Case]:
    columns, rows = read_table(path)
    wanted = [_image_column(columns, name, path) for name in channels or (channel,)]
    if not rows:
        raise InputError(f"table {path} names no scans: it has a header and no rows")
    cases = []
    for number, row in enumerate(rows, start=1):
        images = [path_cell(row, column, path.parent) for column in wanted]
        found = [image for image in images if image is not None]
        if len(found) < len(images):
            missing = wanted[images.index(None)]
            raise InputError(f"table {path}: row {number} has no {missing}; give its path or remove the row")
        cases.append(_table_case(row, found, path.parent))
    repeated = [str(image) for image, count in Counter(case.image for case in cases).items() if count > 1]
    if repeated:
        raise InputError(f"table {path} names {repeated[0]} more than once; keep one row a scan")
    same = [name for name, count in Counter(case.bids.scan for case in cases if case.bids).items() if count > 1]
    if same:
        raise InputError(f"table {path} gives two scans the BIDS name {same[0]}, so that their maps would be one file")
    return cases


def _image_column(columns: list[str], channel: str | None, path: Path) -> str:
    channels = [name for name in columns if name.startswith("image_")]
    shown = listed(columns)
    if channel is not None:
        if f"image_{channel.lower()}" in channels:
            return f"image_{channel.lower()}"
        raise InputError(f"table {path} has no column image_{channel.lower()}; its columns: {shown}")
    if "image" in columns:
        return "image"
    if channels:
        raise InputError(
            f"table {path} has no column image but {listed(channels)}; models take one channel: choose it with "
            f"--channel {channels[0].removeprefix('image_')} (channel= in Python), or train a model that sees several "
            "(data.channels)"
        )
    raise InputError(f"table {path} has no column image; its columns: {shown}")


def _table_case(row: Mapping[str, str], images: Sequence[Path], folder: Path) -> Case:
    stem = readable(stem_of(images[0]))
    return Case(
        id=stem,
        image=images[0],
        mask=path_cell(row, "mask", folder),
        label=path_cell(row, "label", folder),
        subject=given(row, "subject") or stem,
        session=given(row, "session"),
        split=given(row, "split"),
        stem=stem,
        bids=BidsName.parse(row["bids"]) if given(row, "bids") else None,
        others=tuple(images[1:]),
    )


def _from_bids(root: Path, channel: str | None, *, splits: bool) -> Search:
    suffixes = [s for s in BIDS_SUFFIXES if channel is None or s.lower() in (channel.lower(), f"{channel.lower()}w")]
    images, left_out = _bids_images(root)
    contrasts = Counter(_entities(path) for path in images)
    images = [path for path in images if stem_of(path).rpartition("_")[2] in suffixes]
    if not images:
        names = ", ".join(f"*_{suffix}.nii.gz" for suffix in suffixes or BIDS_SUFFIXES)
        raise InputError(f"BIDS data set {root} holds no scans: looked for sub-*/[ses-*/]anat/{names}")
    people = read_participants(root) if splits else {}
    known = {name: given(facts, "split") for name, facts in people.items()}
    finder = _Derivatives(root, images)
    cases = [_bids_case(path, root, known, finder, alone=contrasts[_entities(path)] == 1) for path in images]
    if left_out:
        logger.warning("%s: left out: %s", root, readable(describe_left_out(left_out, root)))
    return Search(tuple(cases), tuple(left_out))


def _bids_images(root: Path) -> tuple[list[Path], list[LeftOut]]:
    """List the anatomical scans of a data set. Phase, real and imaginary images and second files are skipped."""
    left_out = [
        LeftOut(folder, f"cannot be read: {reason}")
        for folder in sorted(root.glob("sub-*"))
        if (reason := _why_unreadable(folder))
    ]
    found = (path for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*") for path in root.glob(pattern))
    scans: dict[tuple[Path, str], Path] = {}
    for path in sorted(found):  # x.nii before x.nii.gz
        suffix = stem_of(path).rpartition("_")[2]
        part = re.search(r"_part-(phase|real|imag)_", path.name)
        if is_nifti(path) and not is_result(path) and suffix in BIDS_SUFFIXES and not part:
            key = path.parent, stem_of(path)
            if key in scans:
                left_out.append(LeftOut(scans[key], f"the same scan is there as {path.name}"))
            scans[key] = path
    return sorted(scans.values()), left_out


def _why_unreadable(folder: Path) -> str:
    try:
        with os.scandir(folder):
            return ""
    except NotADirectoryError:
        return ""
    except OSError as error:
        return error.strerror or str(error)


def _entities(path: Path) -> str:
    """Name up to the suffix; sub- and ses- are part of it, so that folders need not be."""
    return stem_of(path).rpartition("_")[0]


def _bids_case(path: Path, root: Path, splits: Mapping[str, str | None], finder: _Derivatives, *, alone: bool) -> Case:
    stem = stem_of(path)
    entities, _, suffix = stem.rpartition("_")
    folder = path.parent.relative_to(root).as_posix()
    parts = dict(part.split("-", 1) for part in entities.split("_") if "-" in part)
    subject = folder.split("/")[0]
    return Case(
        id=readable(stem),
        image=path,
        mask=finder.find(path, folder, is_brain_mask),
        label=finder.find(path, folder, is_lesion_label),
        subject=readable(subject),
        session=f"ses-{parts['ses']}" if "ses" in parts else None,
        split=splits.get(subject),
        stem=readable(stem),
        bids=BidsName(folder, entities, suffix, alone),
    )


class _Derivatives:
    """Masks and labels of a data set: beside the scan, in derivatives/masks, then in the other derivatives."""

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        others = sorted(p for p in root.glob("derivatives/*") if p.is_dir() and p.name != "masks")
        self.roots = [root, root / "derivatives" / "masks", *others]
        self.stems: dict[Path, list[str]] = {}
        for path in images:
            self.stems.setdefault(path.parent, []).append(stem_of(path))
        self.listed: dict[Path, list[Path]] = {}

    def find(self, scan: Path, folder: str, wanted: Callable[[str], bool]) -> Path | None:
        """Find the file of a kind that belongs to a scan; log a candidate that is not taken."""
        candidates = [path for root in self.roots for path in self._files(root / folder) if wanted(stem_of(path))]
        found, note = best_fit(stem_of(scan), candidates, self.stems[scan.parent])
        if note:
            logger.warning("%s is not paired: %s", scan.name, note)
        return found

    def _files(self, folder: Path) -> list[Path]:
        if folder not in self.listed:
            self.listed[folder] = sorted(path for path in folder.glob("*") if is_nifti(path))
        return self.listed[folder]


def _of_split(cases: list[Case], split: str, source: Path) -> list[Case]:
    known = sorted({case.split for case in cases if case.split is not None})
    if not known:
        raise InputError(f"{source} names no splits, so split {split!r} cannot be chosen; add a split column")
    if split not in known:
        raise InputError(f"{source} has no split {split!r}; choose one of {', '.join(known)}")
    return [case for case in cases if case.split == split]


def _folder(case: Case) -> Path:
    """Return the folder of a scan, without `..` but with its links."""
    return Path(os.path.normpath(case.image.parent.absolute()))


def _unique_ids(cases: list[Case]) -> list[Case]:
    """Put folders before stems that repeat, so that outputs never overwrite each other."""
    counts = Counter(case.stem for case in cases)
    repeated = [case for case in cases if counts[case.stem] > 1]
    if not repeated:
        return cases
    taken = {case.stem for case in cases if counts[case.stem] == 1}
    base = Path(commonpath([_folder(case) for case in repeated]))
    result = []
    for case in cases:
        if counts[case.stem] > 1:
            folders = _folder(case).relative_to(base).parts
            name = _free("_".join((*folders, case.stem)).lstrip("."), taken)  # no hidden files
            taken.add(name)
            result.append(replace(case, id=name))
        else:
            result.append(case)
    return result


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate
