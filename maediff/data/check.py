"""Whether the files of a case can be read, asked before hours are spent on others."""

from __future__ import annotations

from maediff.data.cases import Case
from maediff.errors import InputError, one_line
from maediff.volume import read_channel, read_mask, read_nifti


def fault(case: Case) -> str | None:
    """Read a case's channels and its brain mask; say what is wrong with them, in one line, or return None."""
    try:
        volume = read_nifti(case.image)
        for path in case.images[1:]:
            read_channel(path, volume)
        if case.mask is not None:
            read_mask(case.mask, volume, "brain mask")
    except (InputError, OSError) as error:
        return one_line(error)
    return None
