"""Charts as geometry: scales, ticks and path data. The templates in templates/report print them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Map = Callable[[float], float]

LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 34.0


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """`style` is a CSS class; `dots` are (x, y, tooltip) in pixels."""

    label: str
    style: str
    path: str
    area: str = ""
    dots: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word beside it."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """`dots` are single values over it. All in pixels."""

    x: float
    y: float
    width: float
    height: float
    style: str
    tooltip: str
    text: str = ""
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    width: float
    height: float
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    marks: tuple[Mark, ...] = ()
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM
    key_left: bool = False


@dataclass(frozen=True)
class Series:
    label: str
    style: str
    points: Sequence[Point]
    filled: bool = False
    dotted: bool = False
    tooltips: Sequence[str] = field(default_factory=tuple)


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
    percent: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[float] | None = None,
    key_left: bool = False,
    width: float = 420.0,
    height: float = 240.0,
) -> Chart:
    """Lines over common axes; values that a logarithmic axis cannot show are left out."""
    kept = [_visible(s, log_x, log_y) for s in series]
    xs = [x for s in kept for x, _ in s.points] or [1.0]
    ys = [y for s in kept for _, y in s.points] or [1.0]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    high = high * 1.05 if from_zero else high
    to_x = _scale(min(xs), max(xs), LEFT, width - RIGHT, log_x)
    to_y = _scale(low, high, height - BOTTOM, TOP, log_y)
    base = height - BOTTOM
    lines = tuple(
        Line(
            s.label,
            s.style,
            _path([(to_x(x), to_y(y)) for x, y in s.points]),
            _area([(to_x(x), to_y(y)) for x, y in s.points], base) if s.filled else "",
            _dots(s, to_x, to_y),
        )
        for s in kept
    )
    chosen = ticks(min(xs), max(xs), log_x) if x_ticks is None else x_ticks
    text = percent_text if percent else number_text
    return Chart(
        width,
        height,
        x_label,
        y_label,
        tuple(Tick(to_x(v), number_text(v)) for v in chosen),
        tuple(Tick(to_y(v), text(v)) for v in ticks(low, high, log_y)),
        lines,
        marks=tuple(Mark(to_x(at), text) for at, text in marks if min(xs) <= at <= max(xs)),
        key_left=key_left,
    )


def column_chart(
    values: Sequence[float],
    styles: Sequence[str],
    tooltips: Sequence[str],
    y_label: str,
    *,
    percent: bool = False,
    width: float = 900.0,
    height: float = 220.0,
) -> Chart:
    """A column per value, side by side."""
    high = max(values, default=1.0) * 1.05 or 1.0
    to_y = _scale(0.0, high, height - TOP, TOP, False)
    step = (width - LEFT - RIGHT) / max(len(values), 1)
    bars = tuple(
        Bar(
            LEFT + i * step + step * 0.1,
            to_y(v),
            step * 0.8,
            max(height - TOP - to_y(v), 0.5),
            style,
            tip,
        )
        for i, (v, style, tip) in enumerate(zip(values, styles, tooltips, strict=True))
    )
    text = percent_text if percent else number_text
    marks = tuple(Tick(to_y(v), text(v)) for v in ticks(0.0, high, False))
    return Chart(width, height, "", y_label, (), marks, bars=bars, bottom=TOP)


def row_chart(
    values: Sequence[float],
    texts: Sequence[str],
    styles: Sequence[str],
    points: Sequence[Sequence[float]],
    *,
    width: float = 900.0,
    row: float = 30.0,
    left: float = 170.0,
) -> Chart:
    """Horizontal bars with their name at the left and a dot for each single value."""
    high = max([*values, *(p for ps in points for p in ps)], default=1.0) or 1.0
    to_x = _scale(0.0, high, left, width - 64.0, False)
    bars = tuple(
        Bar(
            left,
            TOP + i * row + 6,
            max(to_x(v) - left, 0.5),
            row - 12,
            style,
            f"{text}: {percent_text(v)}",
            text,
            tuple(to_x(p) for p in single),
        )
        for i, (v, text, style, single) in enumerate(
            zip(values, texts, styles, points, strict=True)
        )
    )
    return Chart(width, TOP * 2 + row * len(values), "", "", bars=bars, left=left)


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values inside [low, high]: four to six of them, or powers of ten."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, (last - first) // 5)
        found = [10.0**e for e in range(first, last + 1, every) if low <= 10.0**e <= high * 1.0001]
        if len(found) >= 2:
            return found
        return [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)
                if low <= m * 10.0**e <= high]  # fmt: skip
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 5)
    count = math.floor(high / step + 1e-9)
    return [i * step for i in range(math.ceil(low / step - 1e-9), count + 1)]


def number_text(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def percent_text(value: float) -> str:
    return f"{100 * value:.3g} %"


def _visible(series: Series, log_x: bool, log_y: bool) -> Series:
    shown = [(x, y) for x, y in series.points if (x > 0 or not log_x) and (y > 0 or not log_y)]
    return Series(series.label, series.style, shown, series.filled, series.dotted, series.tooltips)


def _scale(low: float, high: float, begin: float, end: float, log: bool) -> Map:
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        position = math.log10(value) if log else value
        return round(begin + (end - begin) * (position - low) / span, 2)

    return place


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _area(points: Sequence[Point], base: float) -> str:
    if not points:
        return ""
    return f"{_path(points)}L{points[-1][0]:.1f} {base:.1f}L{points[0][0]:.1f} {base:.1f}Z"


def _dots(series: Series, to_x: Map, to_y: Map) -> tuple[tuple[float, float, str], ...]:
    if not series.dotted:
        return ()
    tips = series.tooltips or [""] * len(series.points)
    return tuple((to_x(x), to_y(y), tip) for (x, y), tip in zip(series.points, tips, strict=True))
