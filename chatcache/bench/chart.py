"""Charts in plain text, 80 columns wide: bars on a logarithmic scale, and a line of small bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from chatcache.bench.report import WIDTH, milliseconds
from chatcache.bench.result import Point, decades

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_TOKENS, _NAME, _VALUE = 7, 20, 8


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
