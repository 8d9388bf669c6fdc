"""Which scans there are: a file, a folder, a table or a BIDS data set becomes a list of cases."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import Path

from maediff.data.bids import BidsName
from maediff.data.rows import path_cell, read_participants
from maediff.errors import ConfigError, InputError
from maediff.tables import given, listed, read_table
from maediff.volume import SUFFIXES, stem_of

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv")
BIDS_SUFFIXES = ("T1w", "T2w", "FLAIR")
BRAIN_SUFFIXES = ("brainmask", "brain_mask", "desc-brain_mask", "mask")
LABEL_SUFFIXES = ("label", "lesion", "tumour", "tumor", "seg", "dseg")
_NOT_A_SCAN = re.compile(
    r"(^|[_.-])(brain)?mask$|(^|[_-])(d?seg|probseg|labels?|lesions?|tumou?r|roi)$|anomaly|[_-]reconstruction|uncertainty",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Case:
    """One scan and what belongs to it.

    Attributes:
        id: Unique in the list: the stem, or folders and stem where stems repeat.
        image: The scan.
        mask: Its brain mask, or None.
        label: Its lesion mask, or None.
        subject: Whose scan it is; several scans may share a subject.
        session: Session name, or None.
        split: ``train``, ``val``, ``test`` or whatever the table says; None where it says nothing.
        stem: File name of the scan without ``.nii`` or ``.nii.gz``.
        bids: Parts of the BIDS name where the scan is of a BIDS data set (a table may say so in column ``bids``), else
            None.
        others: Further channels of the same grid, for models that see several; `image` is the first.
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
    """List the scans of a source.

    - A NIfTI file: one case. A brain mask beside it (``<stem>_brainmask``, ``<stem>_brain_mask``, ``<stem>_mask``,
      or the same with the last ``_part`` of the stem replaced) is used where ``mask`` is not given.
    - A table ``.csv`` or ``.tsv`` with columns ``image[,mask][,label][,subject][,session][,split]``, paths relative to
      the table; several channels as ``image_t1,image_t2,...``, of which ``channel`` chooses one.
    - A folder with ``dataset_description.json`` is a BIDS data set; one with a ``cases.csv`` or ``cases.tsv`` stands
      for that table; any other is searched for NIfTI files that are not masks, labels or results.

    Whether files of a cohort can be read shows when they are read, so that one bad scan does not stop the others.

    Args:
        source: File, table or folder.
        mask: Brain mask; for a single file only.
        split: Keep only this split (tables, and BIDS with a ``split`` column in ``participants.tsv``).
        channel: Contrast to choose, for example ``flair``, where the source has several.
        channels: Contrasts that belong together, for a model that sees several; the source is a table then.

    Returns:
        Cases in a fixed order, with unique ids.

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
        return [_single(source, mask, split)]
    if mask is not None:
        raise InputError(
            f"a brain mask can be given for a single scan, not for {source}; use a table with a mask column"
        )
    cases = _from_folder(source, channel, channels) if source.is_dir() else _from_table(source, channel, channels)
    return _unique_ids(cases if split is None else _of_split(cases, split, source))


def channels_of(source: str | Path) -> tuple[str, ...]:
    """Name the channels of a table with columns ``image_<channel>``, in their order; none where one is called image.

    Args:
        source: As for :func:`find_cases`.

    Raises:
        InputError: The table cannot be read.
    """
    source = Path(source).expanduser()
    tables = [source] if source.is_file() else [source / "cases.csv", source / "cases.tsv"]
    path = next((path for path in tables if path.is_file() and path.suffix.lower() in TABLES), None)
    if path is None or (source / "dataset_description.json").is_file():
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
    """Tell a scan from masks, labels, results and hidden files, by its name.

    Example:
        >>> [looks_like_scan(Path(n)) for n in ("a_t1.nii.gz", "a_brainmask.nii", "a_anomaly-mask.nii.gz", "a.txt")]
        [True, False, False, False]
    """
    nifti = path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")
    return nifti and not _NOT_A_SCAN.search(stem_of(path))


def _single(path: Path, mask: str | Path | None, split: str | None) -> Case:
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is neither a NIfTI file (.nii, .nii.gz) nor a table (.csv, .tsv)")
    if split is not None:
        raise InputError(f"a single scan has no split; leave out split {split!r}, or give a table")
    case = _plain_case(path)
    return case if mask is None else replace(case, mask=Path(mask))


def _plain_case(path: Path) -> Case:
    stem = stem_of(path)
    brain, label = _companion(path, BRAIN_SUFFIXES), _companion(path, LABEL_SUFFIXES)
    if brain:
        logger.info("%s: brain mask %s", path.name, brain.name)
    return Case(stem, path, brain, label, subject=stem, session=None, split=None, stem=stem)


def _companion(path: Path, suffixes: Iterable[str]) -> Path | None:
    """Find ``<stem>_<suffix>`` beside a scan, else the same with the last part of the stem (the contrast) replaced."""
    stem = stem_of(path)
    bases = [stem, *([stem.rpartition("_")[0]] if "_" in stem else [])]
    for base in bases:
        for suffix in suffixes:
            for ending in SUFFIXES:
                candidate = path.with_name(f"{base}_{suffix}{ending}")
                with suppress(OSError):  # a name that the file system finds too long
                    if candidate.is_file():
                        return candidate
    return None


def _from_folder(folder: Path, channel: str | None, channels: Sequence[str]) -> list[Case]:
    if (folder / "dataset_description.json").is_file():
        return _from_bids(folder, channel)
    for name in ("cases.csv", "cases.tsv"):
        table = folder / name
        if table.is_file() and any(c == "image" or c.startswith("image_") for c in read_table(table).columns):
            logger.info("%s: using its table %s", folder, name)
            return _from_table(table, channel, channels)
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and looks_like_scan(p)]
    if channel is not None:
        paths = [p for p in paths if re.search(rf"(^|[_-]){re.escape(channel)}w?$", stem_of(p), re.IGNORECASE)]
    if not paths:
        wanted = "" if channel is None else f" of channel {channel!r} (names that end in _{channel})"
        raise InputError(
            f"{folder} holds no scans{wanted}: no .nii or .nii.gz file other than masks, labels and results"
        )
    return [_plain_case(path) for path in paths]


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
            f"table {path} has no column image but {listed(channels)}; models take one channel: "
            f"choose it, for example channel {channels[0].removeprefix('image_')!r}, or train one that sees several "
            "(data.channels)"
        )
    raise InputError(f"table {path} has no column image; its columns: {shown}")


def _table_case(row: Mapping[str, str], images: Sequence[Path], folder: Path) -> Case:
    stem = stem_of(images[0])
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


def _from_bids(root: Path, channel: str | None) -> list[Case]:
    suffixes = [s for s in BIDS_SUFFIXES if channel is None or s.lower() in (channel.lower(), f"{channel.lower()}w")]
    images = _bids_images(root)
    contrasts = Counter(_entities(path) for path in images)
    images = [path for path in images if stem_of(path).rpartition("_")[2] in suffixes]
    if not images:
        names = ", ".join(f"*_{suffix}.nii.gz" for suffix in suffixes or BIDS_SUFFIXES)
        raise InputError(f"BIDS data set {root} holds no scans: looked for sub-*/[ses-*/]anat/{names}")
    people = read_participants(root)
    splits = {name: given(facts, "split") for name, facts in people.items()}
    find = _derivative_finder(root)
    return [_bids_case(path, root, splits, find, alone=contrasts[_entities(path)] == 1) for path in images]


def _bids_images(root: Path) -> list[Path]:
    """List the anatomical scans of a data set; phase, real and imaginary parts are none."""
    found = (path for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*") for path in root.glob(pattern))
    return sorted(
        path
        for path in found
        if looks_like_scan(path)
        and stem_of(path).rpartition("_")[2] in BIDS_SUFFIXES
        and not re.search(r"_part-(phase|real|imag)_", path.name)
    )


def _entities(path: Path) -> str:
    """Name up to the suffix; sub- and ses- are part of it, so that folders need not be."""
    return stem_of(path).rpartition("_")[0]


Finder = Callable[[str, str, str], "Path | None"]


def _bids_case(path: Path, root: Path, splits: Mapping[str, str | None], find: Finder, *, alone: bool) -> Case:
    stem = stem_of(path)
    entities, _, suffix = stem.rpartition("_")
    folder = path.parent.relative_to(root).as_posix()
    parts = dict(part.split("-", 1) for part in entities.split("_") if "-" in part)
    subject = folder.split("/")[0]
    return Case(
        id=stem,
        image=path,
        mask=find(folder, entities, "desc-brain_mask"),
        label=find(folder, entities, "label-lesion_mask"),
        subject=subject,
        session=f"ses-{parts['ses']}" if "ses" in parts else None,
        split=splits.get(subject),
        stem=stem,
        bids=BidsName(folder, entities, suffix, alone),
    )


def _derivative_finder(root: Path) -> Finder:
    """Look beside the scan, in derivatives/masks, then in the other derivatives; full entities before the subject's."""
    derivatives = sorted(p for p in root.glob("derivatives/*") if p.is_dir() and p.name != "masks")
    roots = [root, root / "derivatives" / "masks", *derivatives]

    def find(folder: str, entities: str, name: str) -> Path | None:
        short = "_".join(part for part in entities.split("_") if part.startswith(("sub-", "ses-")))
        for base in dict.fromkeys((entities, short)):
            for place in roots:
                for ending in SUFFIXES:
                    candidate = place / folder / f"{base}_{name}{ending}"
                    if candidate.is_file():
                        return candidate
        return None

    return find


def _of_split(cases: list[Case], split: str, source: Path) -> list[Case]:
    known = sorted({case.split for case in cases if case.split is not None})
    if not known:
        raise InputError(f"{source} names no splits, so split {split!r} cannot be chosen; add a split column")
    if split not in known:
        raise InputError(f"{source} has no split {split!r}; choose one of {', '.join(known)}")
    return [case for case in cases if case.split == split]


def _unique_ids(cases: list[Case]) -> list[Case]:
    """Put folders before stems that repeat, so that outputs never overwrite each other."""
    counts = Counter(case.stem for case in cases)
    repeated = [case for case in cases if counts[case.stem] > 1]
    if not repeated:
        return cases
    taken = {case.stem for case in cases if counts[case.stem] == 1}
    base = Path(commonpath([case.image.absolute().parent for case in repeated]))
    result = []
    for case in cases:
        if counts[case.stem] > 1:
            folders = case.image.absolute().parent.relative_to(base).parts
            name = _free("_".join((*folders, case.stem)), taken)
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
