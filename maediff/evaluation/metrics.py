"""The metrics of a cohort as a mapping that also comes as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("mean", "ci_low", "ci_high", "n")


class Metrics(dict[str, Any]):
    """The content of ``metrics.json``.

    Args:
        content: Metrics by name, each with ``mean``, ``ci_low``, ``ci_high`` and ``n``, and further facts.
        rows: Rows of ``metrics_per_case.csv``.
    """

    def __init__(self, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(content)
        self._rows = [dict(row) for row in rows]

    def to_frame(self) -> pd.DataFrame:
        """Return the cohort's metrics as a table: one row per metric, with mean, 95 % interval and number of scans.

        Example:
            >>> found = Metrics({"voxel.dice": {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9}, "cases": {}})
            >>> float(found.to_frame().loc["voxel.dice", "mean"])
            0.5
        """
        import pandas as pd

        rows = {name: item for name, item in self.items() if isinstance(item, Mapping) and "ci_low" in item}
        frame = pd.DataFrame([[row.get(name) for name in _COLUMNS] for row in rows.values()], columns=list(_COLUMNS))
        return frame.set_index(pd.Index(list(rows), name="metric"))

    def cases_to_frame(self) -> pd.DataFrame:
        """Return the metrics of each scan as a table, with the columns of ``metrics_per_case.csv``."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def _repr_html_(self) -> str:
        """Show the cohort's metrics in a notebook."""
        return str(self.to_frame().to_html(float_format="{:.3f}".format))
