"""Line charts with error bars as inline SVG, whose colours are the page's own."""

import math
from dataclasses import dataclass, field
from html import escape

W, H = 480, 320  # of the view box: its letters stay readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 46
DECADES = 1e-6  # what is smaller than that much of the largest is nothing beside it
MARKS = ("circle", "square", "triangle", "diamond")


@dataclass
class Series:
    """Points with errors; error bars span one standard error each side."""

    name: str
    x: list[float]
    y: list[float]
    error: list[float] | None = None
    dashed: bool = False
    joined: bool = True


@dataclass
class Chart:
    """What to draw.  ticks: (place, text) of the x axis where it is no plain number; level: a line at what should be."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    ticks: list[tuple[float, str]] | None = None
    log_y: bool = False
    log_x: bool = False
    level: float | None = None
    limits: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def _finite(v: float | None) -> bool:
    return v is not None and math.isfinite(v)


class _Axis:
    """From values to places."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float):
        self.log, self.start, self.end = log, start, end
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        pad = 0.04 * (high - low) or 0.5
        self.low, self.high = low - pad, high + pad

    def __call__(self, v: float) -> float:
        v = math.log10(v) if self.log else v
        return self.start + (v - self.low) / (self.high - self.low) * (self.end - self.start)

    def inside(self, v: float) -> bool:
        if self.log and v <= 0:
            return False
        v = math.log10(v) if self.log else v
        return self.low <= v <= self.high

    def clip(self, v: float) -> float:
        """Into the axis; what has no logarithm to its low end."""
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        return min(max(v, low), high)

    def ticks(self) -> list[tuple[float, str]]:
        if self.log:
            a, b = math.ceil(self.low), math.floor(self.high)
            step = max(1, round((b - a) / 5))
            if b - a >= 1:
                return [(10.0**k, _power(k)) for k in range(a, b + 1, step)]
            marks = [m * 10.0**k for k in range(a - 1, b + 2) for m in (1, 2, 5)]
            return [(m, f"{m:g}") for m in marks if self.inside(m)]
        raw = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(k * step, f"{k * step:.10g}") for k in range(first, last + 1)]


def _power(k: int) -> str:
    if -3 <= k <= 3:
        return f"{10.0**k:g}"
    return f"1e{k}"


def _range(values: list[float], log: bool) -> tuple[float, float]:
    values = [v for v in values if _finite(v) and (v > 0 or not log)]
    if not values:
        return (1e-3, 1.0) if log else (0.0, 1.0)
    return max(min(values), DECADES * max(values)) if log else min(values), max(values)


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` element."""
    xs = [v for s in chart.series for v in s.x]
    ys = [v for s in chart.series for v in s.y]
    for s in chart.series:
        if s.error is not None and not chart.log_y:
            ys += [a + b * sign for a, b in zip(s.y, s.error, strict=True) if _finite(b) for sign in (-1, 1)]
    if chart.level is not None:
        ys.append(chart.level)
    x_axis = _Axis(*_range(xs, chart.log_x), chart.log_x, LEFT, W - RIGHT)
    y_axis = _Axis(*(chart.limits or _range(ys, chart.log_y)), chart.log_y, H - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{escape(chart.title)}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for v, text in y_axis.ticks():
        y = y_axis(v)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for v, text in chart.ticks if chart.ticks is not None else x_axis.ticks():
        x = x_axis(v)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{H - BOTTOM}" y2="{H - BOTTOM + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{H - BOTTOM + 19}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{W - RIGHT}" y1="{H - BOTTOM}" y2="{H - BOTTOM}"/>')
    middle_x = (LEFT + W - RIGHT) / 2
    parts.append(f'<text x="{middle_x}" y="{H - 8}" text-anchor="middle">{escape(chart.x_label)}</text>')
    parts.append(f'<text x="4" y="18">{escape(chart.y_label)}</text>')
    if chart.level is not None and y_axis.inside(chart.level):
        y = y_axis(chart.level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{W - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for i, s in enumerate(chart.series):
        parts.append(_series(s, i, x_axis, y_axis))
    return "".join([*parts, "</svg>"])


def _series(s: Series, i: int, x_axis: _Axis, y_axis: _Axis) -> str:
    parts, places = [f'<g class="s{i % 6}">'], []
    for j, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
        if not (_finite(x) and _finite(y)):
            continue
        px, py = x_axis(x), y_axis(y_axis.clip(y))
        places.append((px, py))
        error = s.error[j] if s.error is not None else None
        if _finite(error) and error > 0:
            top, bottom = y_axis(y_axis.clip(y + error)), y_axis(y_axis.clip(y - error))
            parts.append(f'<line class="error" x1="{px:.1f}" x2="{px:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        if not s.dashed and y_axis.inside(y):
            parts.append(mark(i, px, py, f"{s.name}: {y:.4g}" + (f" ± {error:.2g}" if _finite(error) else "")))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    if s.joined:
        parts.insert(1, f'<polyline class="line{" dashed" if s.dashed else ""}" points="{path}"/>')
    return "".join([*parts, "</g>"])


def mark(i: int, x: float, y: float, tip: str = "") -> str:
    """The mark of series i: its form tells it apart where its colour does not."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    kind = MARKS[i % len(MARKS)]
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'
    if kind == "square":
        return f'<rect class="mark" x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4">{title}</rect>'
    corners = [(0, -4.4), (4, 3), (-4, 3)] if kind == "triangle" else [(0, -4.6), (4.2, 0), (0, 4.6), (-4.2, 0)]
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon class="mark" points="{points}">{title}</polygon>'
