"""Bars as SVG, without a library: a picture of who needed how long."""

from collections.abc import Sequence
from html import escape
from typing import Final

_ROW: Final = 22
_LABEL: Final = 150
_WIDTH: Final = 560
_OURS: Final = "#0b6e4f"
_OTHER: Final = "#8a8f98"


def bars(title: str, values: Sequence[tuple[str, float]], *, unit: str, ours: str) -> str:
    """Horizontal bars, one a row, ours in colour. Shorter is better."""
    most = max((value for _, value in values), default=0) or 1
    height = _ROW * (len(values) + 1) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _WIDTH}" height="{height}" role="img" '
        f'font-family="sans-serif" font-size="13"><title>{escape(title)}</title>',
        f'<text x="0" y="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(values, 1):
        y = number * _ROW
        long = max(1.0, (_WIDTH - 110) * value / most)
        colour = _OURS if name == ours else _OTHER
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LABEL}" y="{y + 3}" width="{long:.1f}" height="{_ROW - 6}" fill="{colour}"/>')
        parts.append(f'<text x="{_LABEL + long + 6:.1f}" y="{y + 15}">{escape(f"{value:,.2f} {unit}")}</text>')
    return "".join([*parts, "</svg>"])
