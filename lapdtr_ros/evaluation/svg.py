"""The few shapes that the charts of a report are made of, as SVG text without dependencies.

The page gives the colours: every shape has a class that the style sheet of the report fills, so
that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 960


class Drawing:
    """A growing SVG picture, `WIDTH` wide. One decimal is enough for print and small in a file."""

    def __init__(self, height: float, label: str) -> None:
        self._parts = [
            Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(
                WIDTH, height, label
            )
        ]

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, tip: str = '', rx: int = 3
    ) -> None:
        """A rectangle, never too thin to be seen, with a text shown under the pointer."""
        shape = Markup(
            '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}">'
        ).format(css, x, y, max(width, 0.5), max(height, 0.0), rx)
        self._parts.append(shape + _tip(tip) + Markup('</rect>'))

    def path(self, d: str, css: str, tip: str = '') -> None:
        """A path of SVG path commands."""
        shape = Markup('<path class="{}" d="{}">').format(css, d)
        self._parts.append(shape + _tip(tip) + Markup('</path>'))

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self.polyline([(x1, y1), (x2, y2)], css)

    def polyline(self, points: Iterable[tuple[float, float]], css: str) -> None:
        """A line through points."""
        self.path('M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points), css)

    def arrow(self, x: float, y1: float, y2: float, css: str) -> None:
        """A vertical arrow from ``y1`` to ``y2``."""
        back = y2 - 7 if y2 > y1 else y2 + 7
        self.line(x, y1, x, back, css)
        self.path(f'M{x - 4:.1f} {back:.1f}H{x + 4:.1f}L{x:.1f} {y2:.1f}Z', f'{css} head')

    def dot(self, x: float, y: float, radius: float, css: str, tip: str = '') -> None:
        """A circle."""
        shape = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">').format(
            css, x, y, radius
        )
        self._parts.append(shape + _tip(tip) + Markup('</circle>'))

    def cross(self, x: float, y: float, css: str, tip: str) -> None:
        """A small diagonal cross."""
        d = f'M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8'
        self.path(d, css, tip)

    def text(self, x: float, y: float, text: str, css: str, anchor: str = 'start') -> None:
        """Text on the baseline ``y``."""
        self._parts.append(
            Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
                css, x, y, anchor, text
            )
        )

    def render(self) -> Markup:
        """The finished picture."""
        return Markup('').join([*self._parts, Markup('</svg>')])


@dataclass(frozen=True)
class Scale:
    """A linear map from values (``low`` to ``high``) to pixels (``start`` to ``stop``)."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.stop - self.start)


@dataclass(frozen=True)
class Axes:
    """The two scales of a chart; the value axis grows upwards from the bottom."""

    x: Scale
    y: Scale

    @property
    def bottom(self) -> float:
        """Pixel row of the time axis."""
        return self.y.start

    @property
    def top(self) -> float:
        """Pixel row of the largest value."""
        return self.y.stop

    def draw_values(self, drawing: Drawing, name: str) -> None:
        """Grid lines and numbers of the value axis, with its name above."""
        for value in ticks(self.y.low, self.y.high, 5):
            y = self.y(value)
            drawing.line(self.x.start, y, self.x.stop, y, 'grid')
            drawing.text(self.x.start - 8, y + 4, f'{value:g}', 'tick', 'end')
        drawing.text(4, self.top - 30, name, 'label')

    def draw_time(self, drawing: Drawing) -> None:
        """Ticks of the time axis in seconds since the start of the run."""
        drawing.line(self.x.start, self.bottom, self.x.stop, self.bottom, 'axis')
        for value in ticks(self.x.low, self.x.high, 9):
            x = self.x(value)
            drawing.line(x, self.bottom, x, self.bottom + 4, 'axis')
            drawing.text(x, self.bottom + 17, f'{value:g}', 'tick', 'middle')
        middle = (self.x.start + self.x.stop) / 2
        drawing.text(middle, self.bottom + 34, 'time since the start [s]', 'label', 'middle')


def ticks(low: float, high: float, about: int) -> list[float]:
    """About that many round numbers (1, 2 or 5 times a power of ten) from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f'{index * step:.12g}') for index in range(first, last + 1)]


def roof(values: Sequence[float]) -> float:
    """Upper end of an axis that shows nearly all values and leaves rare outliers out.

    A single slow frame (the first one, say) would press all others to the ground otherwise.
    """
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return 1.0
    common = known[min(len(known) - 1, math.floor(len(known) * 0.98))]
    return max(min(known[-1], common * 1.6) * 1.12, 1e-9)


def shorten(text: str, length: int) -> str:
    """The text, cut with an ellipsis when longer."""
    return text if len(text) <= length else text[: length - 1] + '…'


def _tip(text: str) -> Markup:
    return Markup('<title>{}</title>').format(text) if text else Markup('')
