"""Groups of scans by a column of the reference or of ``participants.tsv``: sex, site, or ranges of age."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from maediff.errors import ConfigError, InputError
from maediff.tables import given

MAX_GROUPS = 20
MISSING = "n/a"
T = TypeVar("T")


@dataclass(frozen=True)
class Stratum:
    """A grouping of scans.

    Attributes:
        column: Name of the column, in lower case.
        edges: Lower limits of ranges, ascending; empty if each value is a group.
    """

    column: str
    edges: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Stratum:
        """Read ``column`` or ``column:edge,edge``.

        Raises:
            ConfigError: No column, or edges that are not ascending numbers.

        Example:
            >>> Stratum.parse("age:40,60")
            Stratum(column='age', edges=(40.0, 60.0))
        """
        column, colon, rest = text.strip().lower().partition(":")
        try:
            edges = tuple(float(part) for part in rest.split(",")) if colon else ()
        except ValueError:
            edges = (math.nan,)
        rising = all(first < second for first, second in pairwise(edges))
        if not column or not rising or not all(map(math.isfinite, edges)):
            raise ConfigError(f"stratum {text!r} is not usable; write COLUMN, or COLUMN:EDGE,EDGE with rising numbers")
        return cls(column, edges)

    def group(self, value: str | None) -> str:
        """Name the group of a value.

        Raises:
            InputError: The groups are ranges and the value is not a number.

        Example:
            >>> [Stratum("age", (40.0, 60.0)).group(value) for value in ("39.5", "40", "71", "n/a")]
            ['< 40', '40 to < 60', '>= 60', 'n/a']
        """
        if value is None or given({self.column: value}, self.column) is None:
            return MISSING
        if not self.edges:
            return value
        try:
            index = bisect.bisect_right(self.edges, float(value))
        except ValueError as error:
            raise InputError(
                f"column {self.column} holds {value!r}, which is no number; leave the edges out"
            ) from error
        names = [f"{edge:g}" for edge in self.edges]
        if index == 0:
            return f"< {names[0]}"
        return f">= {names[-1]}" if index == len(names) else f"{names[index - 1]} to < {names[index]}"

    def split(self, items: Sequence[tuple[T, Mapping[str, str]]]) -> dict[str, list[T]]:
        """Split items by their cells.

        Args:
            items: Items with their cells by column.

        Returns:
            Items by group: ranges in ascending order or values in alphabetical order, unknown values last.

        Raises:
            InputError: No item has the column, or there are more than :data:`MAX_GROUPS` groups.
        """
        if not any(self.column in facts for _, facts in items):
            known = sorted({name for _, facts in items for name in facts})
            raise InputError(
                f"neither the reference nor participants.tsv has a column {self.column}; they have "
                f"{', '.join(known) or 'none'}"
            )
        groups: dict[str, list[T]] = (
            {self.group(str(edge)): [] for edge in (-math.inf, *self.edges)} if self.edges else {}
        )
        for item, facts in items:
            groups.setdefault(self.group(facts.get(self.column)), []).append(item)
        if len(groups) > MAX_GROUPS:
            raise InputError(
                f"column {self.column} has {len(groups)} values, at most {MAX_GROUPS} make groups; give ranges, "
                f"such as {self.column}:40,60"
            )
        names = [name for name in groups if groups[name]]
        order = names if self.edges else sorted(names)
        return {name: groups[name] for name in sorted(order, key=lambda name: name == MISSING)}
