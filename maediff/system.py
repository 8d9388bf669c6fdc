"""What this machine has."""

from __future__ import annotations

import os
from contextlib import suppress

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python's getpass looks


def memory_bytes() -> int | None:
    """Return the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def name_user() -> None:
    """Give a user id that the system has no name for the name ``uid<number>``, in the environment of this process.

    MONAI and PyTorch ask for the user's name when they are imported, and ``docker run --user`` or a cluster node may
    know none.
    """
    if any(os.environ.get(name) for name in _NAMES) or not hasattr(os, "getuid"):
        return
    with suppress(ImportError, KeyError):
        import pwd

        pwd.getpwuid(os.getuid())
        return
    os.environ["LOGNAME"] = f"uid{os.getuid()}"
