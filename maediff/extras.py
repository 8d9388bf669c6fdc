"""How to install what only some features need: the one place that decides what messages tell people to run."""

from __future__ import annotations

import re
from importlib import metadata

_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of an extra.

    MAEDiff itself is installed from a checkout, so the packages are named one by one: this works with any index.

    Args:
        extra: Name of an extra of ``pyproject.toml``.

    Example:
        >>> install_hint("prep")
        "pip install 'SimpleITK>=2.3'"
    """
    try:
        requirements = metadata.requires("maediff") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        requirements = []
    named = []
    for requirement in requirements:
        package, _, marker = requirement.partition(";")
        found = _EXTRA.search(marker)
        if found and found[1] == extra:
            named.append(f"'{package.strip()}'")
    packages = " ".join(named) or f"'.[{extra}]' in MAEDiff's checkout"
    return f"pip install {packages}"
