"""Grouped bars as inline SVG. Colours are classes, so that a page decides on light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .rows import amount

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 12, 40
_NUM_TICKS = 4


def draw_bars(
    labels: Sequence[str], series: Mapping[str, Sequence[float | None]], *, x_title: str, title: str
) -> str:
    """One group of bars for each label, one bar in it for each series.

    Args:
        series: Values by name, one for each label; ``None`` leaves a gap.
        title: For those who cannot see it.
    """
    step = tick_step(max(value or 0.0 for values in series.values() for value in values))
    top = step * _NUM_TICKS
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
    ]
    for tick in range(_NUM_TICKS + 1):
        y = _TOP + plot_height * (1 - tick / _NUM_TICKS)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        text = f"{tick * step:,.10g}"
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>')
    group = plot_width / len(labels)
    width = min(36.0, group * 0.8 / len(series))
    for index, label in enumerate(labels):
        middle = _LEFT + group * (index + 0.5)
        y = _HEIGHT - _BOTTOM + 16
        parts.append(f'<text x="{middle:.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>')
        for number, (name, values) in enumerate(series.items()):
            value = values[index]
            if value is None:
                continue
            height = plot_height * value / top
            x = middle + width * (number - len(series) / 2)
            parts.append(
                f'<rect class="s{number}" x="{x + 1:.1f}" y="{_TOP + plot_height - height:.1f}" '
                f'width="{width - 2:.1f}" height="{height:.1f}">'
                f"<title>{escape(label)}, {escape(name)}: {amount(value)}</title></rect>"
            )
    middle = _LEFT + plot_width / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text></svg>'
    )
    return "".join(parts)


def tick_step(most: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, so that four of them reach `most`."""
    wanted = max(most, 1e-9) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= wanted * 0.999)
