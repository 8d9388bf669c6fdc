"""The metrics of a cohort as a mapping, with conversion to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("mean", "ci_low", "ci_high", "n")


def chance_level(metrics: Mapping[str, Any], name: str) -> float | None:
    """Return the chance level: 0.5 for an AUROC, the share of lesion voxels for an AUPRC; None for other metrics.

    Args:
        metrics: Metrics by name, as in ``metrics.json``; those of earlier versions have no share of lesion voxels.
        name: Name of the metric, such as ``voxel.auprc``.

    Example:
        >>> found = {"voxel.lesion_share": {"mean": 0.02}}
        >>> [chance_level(found, name) for name in ("voxel.auroc", "voxel.auprc", "voxel.dice")]
        [0.5, 0.02, None]
    """
    group, _, metric = name.rpartition(".")
    if metric == "auroc":
        return 0.5
    if metric != "auprc":
        return None
    share: float | None = (metrics.get(f"{group}.lesion_share") or {}).get("mean")
    return share


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
        """Return the cohort's metrics as a table, one row per metric.

        Columns: mean, 95 % interval, number of scans, and the chance level if known.

        Example:
            >>> found = Metrics({"voxel.dice": {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9}, "cases": {}})
            >>> float(found.to_frame().loc["voxel.dice", "mean"])
            0.5
        """
        import pandas as pd

        rows = {name: item for name, item in self.items() if isinstance(item, Mapping) and "ci_low" in item}
        cells = [[*(row.get(key) for key in _COLUMNS), chance_level(self, name)] for name, row in rows.items()]
        frame = pd.DataFrame(cells, columns=[*_COLUMNS, "chance"])
        return frame.set_index(pd.Index(list(rows), name="metric"))

    def cases_to_frame(self) -> pd.DataFrame:
        """Return the metrics of each scan as a table, with the columns of ``metrics_per_case.csv``."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def _repr_html_(self) -> str:
        """Show the cohort's metrics in a notebook."""
        return str(self.to_frame().to_html(float_format="{:.3f}".format))
