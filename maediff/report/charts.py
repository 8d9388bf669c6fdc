"""Small line and dot charts as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from maediff.typing import Array

_SIZE, _LEFT, _BOTTOM, _TOP = 230, 44, 36, 8  # pixels of the plot's square and its margins
_HEADROOM = 2.0
_LABELS, _ROW = 140, 40  # pixels of a strip chart


@dataclass(frozen=True)
class Group:
    """Dots of a strip chart that share a row.

    Attributes:
        name: Of the row.
        points: Label and value of each dot.
        style: CSS class: "healthy" or "scan".
    """

    name: str
    points: Sequence[tuple[str, float]]
    style: str


def unit_chart(x: Array, y: Array, labels: tuple[str, str], *, chance: tuple[float, float]) -> str:
    """Draw a curve in the unit square.

    Args:
        x: Values from 0 to 1.
        y: Values from 0 to 1.
        labels: Of the axes.
        chance: Heights of the chance line at x = 0 and x = 1.

    Returns:
        SVG; labels are escaped.
    """
    base = _TOP + _SIZE

    def at(across: float, up: float) -> str:
        return f"{_LEFT + _SIZE * across:.1f},{base - _SIZE * up:.1f}"

    grid = "".join(
        f'<path class="grid" d="M{at(v, 0)} L{at(v, 1)} M{at(0, v)} L{at(1, v)}"/>'
        f'<text x="{_LEFT + _SIZE * v:.0f}" y="{base + 14}" text-anchor="middle">{v:g}</text>'
        f'<text x="{_LEFT - 6}" y="{base - _SIZE * v + 4:.0f}" text-anchor="end">{v:g}</text>'
        for v in (0.0, 0.5, 1.0)
    )
    line = " ".join(at(float(a), float(b)) for a, b in zip(x, y, strict=True))
    chance_line = f'<path class="chance" d="M{at(0, chance[0])} L{at(1, chance[1])}"/>'
    return _plot(f'{grid}{chance_line}<polyline class="curve" points="{line}"/>', labels, _LEFT, _SIZE)


def strip_chart(groups: Sequence[Group], unit: str, width: int = 640) -> str:
    """Draw one row of dots per group on a shared axis that starts at zero.

    Args:
        groups: Rows, from the top.
        unit: Label of the axis.
        width: Of the chart, pixels.

    Returns:
        SVG; labels are escaped.
    """
    top = nice_top(max(value for group in groups for _, value in group.points))
    height = _ROW * len(groups)
    across = width - _LABELS - 20

    def at(value: float) -> float:
        return _LABELS + across * min(max(value, 0.0), top) / top

    parts = [
        f'<path class="grid" d="M{at(top * k / 4):.1f},0 V{height}"/><text x="{at(top * k / 4):.1f}" y="{height + 15}" '
        f'text-anchor="middle">{top * k / 4:.3g}</text>'
        for k in range(5)
    ]
    for row, group in enumerate(groups):
        middle = _ROW * row + _ROW / 2
        parts.append(f'<text class="row" x="0" y="{middle + 4:.0f}">{escape(group.name)} ({len(group.points)})</text>')
        parts += [
            f'<circle class="{group.style}" cx="{at(value):.1f}" cy="{middle + _jitter(index):.1f}" r="5">'
            f"<title>{escape(label)}: {value:.3f}</title></circle>"
            for index, (label, value) in enumerate(group.points)
        ]
    return (
        f'<svg class="chart strip" width="{width}" viewBox="0 0 {width} {height + 36}" role="img" '
        f'aria-label="{escape(unit)}">'
        f'{"".join(parts)}<text x="{_LABELS + across / 2:.0f}" y="{height + 32}" text-anchor="middle">{escape(unit)}'
        "</text></svg>"
    )


def line_chart(curves: Mapping[str, Sequence[tuple[float, float]]], labels: tuple[str, str], width: int = 420) -> str:
    """Draw curves on shared axes that start at zero; what lies above twice the last tenth's highest value is cut off.

    Args:
        curves: Points of each curve by its name, from left to right; at least one point in all.
        labels: Of the axes.
        width: Of the chart, pixels.

    Returns:
        SVG; labels are escaped.
    """
    left, base = _LEFT + 16, _TOP + _SIZE
    across = width - left - 10
    right = max(x for points in curves.values() for x, _ in points)
    ends = [y for points in curves.values() for _, y in points[-max(1, len(points) // 10) :]]
    top = nice_top(_HEADROOM * max(ends))

    def at(x: float, y: float) -> str:
        return f"{left + across * x / (right or 1):.1f},{base - _SIZE * min(max(y, 0.0), top) / top:.1f}"

    grid = "".join(
        f'<path class="grid" d="M{at(0, top * k / 4)} L{at(right, top * k / 4)}"/>'
        f'<text x="{left - 6}" y="{base - _SIZE * k / 4 + 4:.0f}" text-anchor="end">{top * k / 4:.3g}</text>'
        f'<text x="{left + across * k / 4:.0f}" y="{base + 14}" text-anchor="middle">{right * k / 4:.4g}</text>'
        for k in range(5)
    )
    drawn = []
    for number, (name, points) in enumerate(curves.items()):
        line = " ".join(at(*point) for point in points)
        height = _TOP + 14 * (number + 1)
        drawn.append(
            f'<polyline class="curve c{number}" points="{line}"/>'
            f'<text class="row c{number}" x="{width - 14}" y="{height}" text-anchor="end">{escape(name)}</text>'
        )
    return _plot(grid + "".join(drawn), labels, left, across)


def _plot(drawn: str, labels: tuple[str, str], left: int, across: int) -> str:
    """Put what is drawn into a picture with labelled axes; the axis along x starts at `left` and is `across` long."""
    width, base = left + across + 10, _TOP + _SIZE
    along, up = map(escape, labels)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {base + _BOTTOM}" width="{width}" role="img" '
        f'aria-label="{up} against {along}">{drawn}'
        f'<text x="{left + across / 2:.0f}" y="{base + 32}" text-anchor="middle">{along}</text>'
        f'<text transform="translate(12 {_TOP + _SIZE / 2:.0f}) rotate(-90)" text-anchor="middle">{up}</text></svg>'
    )


def nice_top(value: float) -> float:
    """Round the end of an axis up to 1, 2, 4, 6 or 8 times a power of ten.

    Example:
        >>> nice_top(0.83), nice_top(0.41), nice_top(0.0)
        (1.0, 0.6, 1.0)
    """
    if not value > 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(step for step in (1, 2, 4, 6, 8, 10) if step * unit >= value * (1 - 1e-9)) * unit:.3g}")


def _jitter(index: int) -> float:
    """Keep neighbours in a row apart, the same way each time."""
    return float((index * 5) % 13 - 6)
