"""Charts in plain text, 80 columns wide: bars on a logarithmic scale, and a line of small bars; and
the time to the first token as an SVG picture, readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from chatcache.bench.report import WIDTH, Point, decades, milliseconds

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_TOKENS, _NAME, _VALUE = 7, 20, 8

# of the picture
_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 214, 56, 46
_LABEL_GAP = 17.0
# Colour by contender, dashes by what is measured: both can be told apart without colour.
_COLOURS = {"transformers": "#8b949e", "llama.cpp": "#d9822b", "chatcache": "#2f81f7"}
_DASHES = {"cold": "", "from disk": "7 4", "from RAM": "2 4"}
_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #6e7781; }
  .title { font-size: 15px; font-weight: 600; fill: #6e7781; }
  .grid { stroke: #8b949e; stroke-opacity: 0.25; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9da7b3; } .title { fill: #e6edf3; }
  }
"""


def first_token_chart(points: Sequence[Point]) -> str:
    """A group of bars per length of the history; a step to the right is ten times as long."""
    if not points:
        return ""
    low, high = decades(points)
    cells = WIDTH - _TOKENS - _NAME - _VALUE - 4
    lines = ["Time to the first token, by tokens of history (each mark: ten times as long)", ""]
    lines.append(" " * (_TOKENS + _NAME + 2) + _scale(low, high, cells))
    for point in points:
        label = f"{point.tokens:,}".rjust(_TOKENS)
        for name, at in point.seconds.items():
            filled = _bar(math.log(at / low) / math.log(high / low), cells)
            lines.append(f"{label} {name:<{_NAME}} {filled:<{cells}} {milliseconds(at):>{_VALUE}}")
            label = " " * _TOKENS
        lines.append("")
    return "\n".join(lines).rstrip()


def strip_chart(
    title: str, values: Sequence[float], words: Callable[[float], str], columns: int = 60
) -> str:
    """How a value went over time: medians of equal runs of it as small bars from zero up."""
    if not values:
        return ""
    groups = [_group(values, column, columns) for column in range(min(columns, len(values)))]
    medians = [sorted(group)[len(group) // 2] for group in groups]
    top = max(medians) or 1.0
    bars = "".join(_HEIGHTS[min(7, int(8 * value / top))] for value in medians)
    return (
        f"{title}\n  {bars}\n"
        f"  first {words(medians[0])}, last {words(medians[-1])}, most {words(max(values))}"
    )


def _group(values: Sequence[float], column: int, columns: int) -> Sequence[float]:
    count = min(columns, len(values))
    return values[len(values) * column // count : len(values) * (column + 1) // count]


def _scale(low: float, high: float, cells: int) -> str:
    decades = round(math.log10(high / low))
    line = [" "] * (cells + 8)
    for decade in range(decades + 1):
        at = decade * cells // decades
        words = round_time(low * 10**decade)
        line[at : at + len(words) + 1] = f"│{words}"
    return "".join(line).rstrip()


def round_time(seconds: float) -> str:
    """The label of a power of ten: `10 ms`, `1 s`."""
    return f"{seconds:g} s" if seconds >= 0.9995 else f"{1000 * seconds:g} ms"


def _bar(share: float, cells: int) -> str:
    eighths = max(1, round(8 * cells * share))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def first_token_svg(points: Sequence[Point], caption: str) -> str:
    """A picture of at least one point. Both axes are logarithmic."""
    frame = _Frame([point.tokens for point in points], *decades(points))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
            f"<title>{escape(caption)}</title>",
            f"<style>{_STYLE}</style>",
            _text(_LEFT, 22, "Time to the first token, by tokens of history", name="title"),
            _text(_LEFT, 41, caption),
            *_grid(frame, points),
            *_lines(frame, points),
            "</svg>",
            "",
        ]
    )


class _Frame:
    """Where a number of tokens and a time lie in the picture."""

    def __init__(self, tokens: Sequence[int], low: float, high: float):
        self.low, self.high = low, high
        self._first = math.log(min(tokens))
        self._span = math.log(max(tokens)) - self._first

    def x(self, tokens: int) -> float:
        share = (math.log(tokens) - self._first) / self._span if self._span else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, seconds: float) -> float:
        share = math.log(seconds / self.low) / math.log(self.high / self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid(frame: _Frame, points: Sequence[Point]) -> list[str]:
    parts = []
    for decade in range(round(math.log10(frame.high / frame.low)) + 1):
        seconds = frame.low * 10**decade
        y = frame.y(seconds)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, round_time(seconds), anchor="end"))
    parts += [
        _text(frame.x(point.tokens), _HEIGHT - _BOTTOM + 22, f"{point.tokens:,}", anchor="middle")
        for point in points
    ]
    return parts


def _lines(frame: _Frame, points: Sequence[Point]) -> list[str]:
    names = list(dict.fromkeys(name for point in points for name in point.seconds))
    ends = {name: _last(points, name) for name in names}
    heights = _spread_out({name: frame.y(at) for name, (_, at) in ends.items()})
    parts = []
    for name in names:
        contender, _, kind = name.partition(", ")
        colour, dashes = _COLOURS.get(contender, "#8b949e"), _DASHES.get(kind, "")
        there = [point for point in points if name in point.seconds]
        corners = [(frame.x(point.tokens), frame.y(point.seconds[name])) for point in there]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-linejoin="round" stroke-dasharray="{dashes or "none"}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in corners]
        tokens, at = ends[name]
        label = f"{name}: {milliseconds(at)}"
        parts.append(_text(frame.x(tokens) + 10, heights[name] + 4, label, colour=colour))
    return parts


def _last(points: Sequence[Point], name: str) -> tuple[int, float]:
    point = max((point for point in points if name in point.seconds), key=lambda p: p.tokens)
    return point.tokens, point.seconds[name]


def _spread_out(heights: dict[str, float]) -> dict[str, float]:
    """Move labels down where they would lie on each other, then all up if they left the frame."""
    placed: dict[str, float] = {}
    lowest = -math.inf
    for name, y in sorted(heights.items(), key=lambda item: item[1]):
        lowest = placed[name] = max(y, lowest + _LABEL_GAP)
    excess = max(0.0, lowest - (_HEIGHT - _BOTTOM))
    return {name: y - excess for name, y in placed.items()}


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", name: str = "", colour: str = ""
) -> str:
    kind = f' class="{name}"' if name else ""
    style = f' style="fill:{colour}"' if colour else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}{style}>{escape(words)}</text>'
    )
