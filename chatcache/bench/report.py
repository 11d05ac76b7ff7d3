"""What a run of the bench comes to: rows of times per contender, and single figures.

As a table for people, 80 columns wide, and as JSON for scripts.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from chatcache.bench.limits import Limits
from chatcache.formatting import plural, size

WIDTH = 80
Say = Callable[[str], None]  # gets a line of progress
_TITLE = 29
_RATIO, _LIMIT = 8, 9
_FIGURE_TITLE = 24

Group = Literal[
    "first token",
    "next token",
    "loading",
    "keeping",
    "sharing",
    "prefix",
    "command",
    "engine",
    "program",
]
GROUPS: dict[Group, str] = {
    "first token": "Time to the first token",
    "next token": "One token of the answer",
    "loading": "Loading, page cache warm",
    "keeping": "Keeping what was read",
    "sharing": "Forks and switches",
    "prefix": "A short prefix, cold disk",
    "command": "From the command to the first word",
    "engine": "An engine, on this model",
    "program": "The program, on this model",
}
TRANSFORMERS, LLAMA_CPP, CHATCACHE = "transformers", "llama.cpp", "chatcache"
COMPILED = "compiled"  # transformers with a static cache and a compiled step
# What a short prefix is compared with: itself, by three ways.
FROM_DISK, COMPUTED, CHOSEN = "from disk", "computed", "as a chat"
COLUMNS = (TRANSFORMERS, COMPILED, LLAMA_CPP, CHATCACHE, FROM_DISK, COMPUTED, CHOSEN)


def p99(values: Sequence[float]) -> float | None:
    """What at most one value in a hundred exceeds; None without values."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else None


@dataclass(slots=True)
class Row:
    """One line of the table: seconds per contender, and the seconds that physics asks for.

    `against` names the row whose transformers figure this row's ratio is taken with. `is_p99`:
    what counts is not the median but what only one in a hundred exceeds.
    """

    name: str
    title: str
    group: Group
    bound_by: str = ""
    against: str = ""
    is_p99: bool = False
    samples: dict[str, list[float]] = field(default_factory=dict)
    limit: float | None = None

    def add(self, contender: str, seconds: float) -> None:
        self.samples.setdefault(contender, []).append(seconds)

    @property
    def num_samples(self) -> int:
        return max((len(values) for values in self.samples.values()), default=0)

    def median(self, contender: str) -> float | None:
        values = self.samples.get(contender)
        return statistics.median(values) if values else None

    def p99(self, contender: str) -> float | None:
        return p99(self.samples.get(contender, []))

    def shown(self, contender: str) -> float | None:
        return self.p99(contender) if self.is_p99 else self.median(contender)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number that is no time. `bound` is what it should not exceed."""

    name: str
    title: str
    value: float
    unit: Literal["bytes", "tokens", "steps", "percent", "ratio"]
    bound: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds to the first token behind a history of `tokens`, by line of the chart."""

    tokens: int
    seconds: dict[str, float]


def decades(points: Sequence[Point]) -> tuple[float, float]:
    """The powers of ten of seconds that the times of a chart lie between."""
    times = [at for point in points for at in point.seconds.values()]
    return (
        10.0 ** math.floor(math.log10(min(times))),
        10.0 ** math.ceil(math.log10(max(times) * 1.0001)),
    )


@dataclass(frozen=True, slots=True)
class BenchTarget:
    """What a GPU must show. `measured` is at most `bound`, or at least (`is_least`); None: there is
    nothing to tell it from."""

    name: str
    title: str
    bound: float
    measured: float | None
    unit: Literal["ms", "percent", "ratio", "steps"]
    is_least: bool = False

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.is_least else self.measured <= self.bound


@dataclass(slots=True)
class BenchResult:
    conditions: dict[str, Any]
    limits: Limits
    rows: dict[str, Row]
    bytes_written: int
    figures: list[Figure] = field(default_factory=list)
    curve: Sequence[Point] = ()
    left_out: list[str] = field(default_factory=list)
    targets: Sequence[BenchTarget] = ()


def as_json(result: BenchResult) -> dict[str, Any]:
    """Milliseconds; `ratio` is transformers over chatcache (`ratio_llama_cpp` that of the other),
    `of_limit` chatcache over the limit."""
    return {
        "conditions": result.conditions,
        "limits": {
            f"{name}_per_second": rate
            for name, rate in asdict(result.limits).items()
            if rate is not None
        },
        "bytes_written": result.bytes_written,
        "rows": {name: _row_json(row, result) for name, row in result.rows.items()},
        "figures": {figure.name: _figure_json(figure) for figure in result.figures},
        "curve": [
            {"tokens": point.tokens, "ms": {key: 1000 * at for key, at in point.seconds.items()}}
            for point in result.curve
        ],
        "left_out": result.left_out,
        "targets": [asdict(target) | {"is_met": target.is_met} for target in result.targets],
    }


def as_table(result: BenchResult) -> str:
    """Medians with the least and the most below them, and what bounds each row."""
    lines = [*_conditions(result), ""]
    for group, heading in GROUPS.items():
        rows = [row for row in result.rows.values() if row.group == group and row.samples]
        if rows:
            lines += [*_group_lines(heading, rows, result), ""]
    if result.figures:
        lines.append("Bytes, tokens and shares")
        lines += [line for figure in result.figures for line in _figure_lines(figure)]
        lines.append("")
    lines += textwrap.wrap(_limits_line(result), WIDTH)
    for reason in result.left_out:
        lines += textwrap.wrap(reason, WIDTH)
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """Three figures or so: `8.90 s`, `104 ms`, `7.3 ms`."""
    return f"{_number(seconds, _is_long(seconds))} {'s' if _is_long(seconds) else 'ms'}"


def _is_long(seconds: float) -> bool:
    return seconds >= 0.9995


def _number(seconds: float, is_long: bool) -> str:
    value = seconds if is_long else 1000 * seconds
    digits = 0 if value >= 99.5 else 1 if value >= 9.95 or not is_long else 2
    return f"{value:,.{digits}f}"


# rows


def _group_lines(heading: str, rows: Sequence[Row], result: BenchResult) -> list[str]:
    """A heading with the columns that the rows need, and two lines per row."""
    names = [name for name in COLUMNS if any(name in row.samples for row in rows)]
    ratios = [_ratio(row, result) for row in rows]
    has_ratio = any(ratio is not None for ratio in ratios)
    has_limit = any(row.limit is not None for row in rows)
    titles = "".join(name.rjust(_width(name)) for name in names)
    titles += f"{'ratio':>{_RATIO}}" * has_ratio + f"{'limit':>{_LIMIT}}" * has_limit
    lines = [f"{heading:<{_TITLE}}{titles}"]
    for row, ratio in zip(rows, ratios, strict=True):
        lines += _row_lines(row, names, ratio, has_ratio=has_ratio)
    return lines


def _row_lines(
    row: Row, names: Sequence[str], ratio: float | None, *, has_ratio: bool
) -> list[str]:
    cells, spreads = "", ""
    for name in names:
        middle = row.shown(name)
        cells += ("-" if middle is None else milliseconds(middle)).rjust(_width(name))
        spreads += _spread(row.samples.get(name), middle).rjust(_width(name))
    if has_ratio:
        shown = "" if ratio is None else f"{ratio:,.{1 if ratio < 99.5 else 0}f} x"
        cells += f"{shown:>{_RATIO}}"
    limit = "" if row.limit is None else milliseconds(row.limit)
    note = row.bound_by
    if row.is_p99:
        note = (
            f"{plural(row.num_samples, 'key')}, median {milliseconds(row.median(CHATCACHE) or 0.0)}"
        )
    return [
        f"  {row.title:<{_TITLE - 2}}{cells}{limit:>{_LIMIT}}".rstrip(),
        f"    {note:<{_TITLE - 4}}{spreads}".rstrip(),
    ]


def _width(name: str) -> int:
    return 13 if name == TRANSFORMERS else 10


def _spread(values: list[float] | None, middle: float | None) -> str:
    """The least and the most, in the unit of the median above them."""
    if not values or middle is None or len(values) < 2:
        return ""
    is_long = _is_long(middle)
    return f"{_number(min(values), is_long)}–{_number(max(values), is_long)}"


def _ratio(row: Row, result: BenchResult) -> float | None:
    """Theirs over ours, for the contender that the conditions name."""
    if result.conditions["ratio_of"] == LLAMA_CPP:
        return _times(row.median(LLAMA_CPP), row)
    return _of_transformers(row, result)


def _of_transformers(row: Row, result: BenchResult) -> float | None:
    return _times(result.rows[row.against].median(TRANSFORMERS) if row.against else None, row)


def _times(theirs: float | None, row: Row) -> float | None:
    ours = row.median(CHATCACHE)
    return theirs / ours if theirs and ours else None


def _row_json(row: Row, result: BenchResult) -> dict[str, Any]:
    ours = row.median(CHATCACHE)
    figures: dict[str, Any] = {
        contender: {
            "median_ms": 1000 * (row.median(contender) or 0.0),
            "min_ms": 1000 * min(values),
            "max_ms": 1000 * max(values),
            "p99_ms": 1000 * (row.p99(contender) or 0.0),
            "samples": len(values),
        }
        for contender, values in row.samples.items()
    }
    figures["limit_ms"] = None if row.limit is None else 1000 * row.limit
    figures["of_limit"] = ours / row.limit if ours and row.limit else None
    figures["ratio"] = _of_transformers(row, result)
    figures["ratio_llama_cpp"] = _times(row.median(LLAMA_CPP), row)
    figures["bound_by"] = row.bound_by
    return figures


# figures


def _figure_json(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "unit": figure.unit, "bound": figure.bound, "note": figure.note}


def _figure_lines(figure: Figure) -> list[str]:
    bound = "" if figure.bound is None else f"at most {_amount(figure.bound, figure.unit)}"
    line = f"  {figure.title:<{_FIGURE_TITLE}}{_amount(figure.value, figure.unit):>12}  "
    rest = f"{bound:<17} {figure.note}".rstrip()
    if len(line) + len(rest) <= WIDTH:
        return [(line + rest).rstrip()]
    return [f"{line}{bound}".rstrip(), f"    {figure.note}"]


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(round(value))
    if unit == "percent":
        return f"{value:.1f} %"
    return f"{value:.2f} x" if unit == "ratio" else f"{value:,.0f}"


# conditions


def _conditions(result: BenchResult) -> list[str]:
    known = result.conditions
    kinds = ", ".join(f"{kind} {size(num_bytes)}" for kind, num_bytes in known["weights"].items())
    versions = f"torch {known['torch']}, transformers {known['transformers']}"
    if known["llama_cpp"]:
        versions += f", llama.cpp by llama-cpp-python {known['llama_cpp']}"
    lines = [
        f"{known['model']}: {known['parameters']:,} parameters, {kinds}; computed in "
        f"{known['dtype']} by {known['kernels']}",
        *([known["gpu"]] if known.get("gpu") else []),
        f"{known['cpu']}, {plural(known['threads'], 'thread')}, torch for {known['capability']}",
        f"history {known['tokens']:,} tokens, message {known['message_tokens']}; "
        f"medians of {known['runs']}, least–most below; ratio: of {known['ratio_of']}",
        versions,
        *(f"{name} runs {words}" for name, words in known["contenders"].items()),
    ]
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]


def _limits_line(result: BenchResult) -> str:
    limits = result.limits
    bus = ""
    if limits.to_device is not None and limits.to_host is not None:
        bus = (
            f"to the GPU {limits.to_device / 1e9:.1f} GB/s, back {limits.to_host / 1e9:.1f} GB/s, "
        )
    return (
        f"This machine: memory read {limits.memory_read / 1e9:.1f} GB/s, copy "
        f"{limits.memory_copy / 1e9:.1f} GB/s, {bus}disk read {limits.disk_read / 1e9:.2f} GB/s, "
        f"matrices {limits.matmul / 1e12:.2f} Tflop/s. K and V of the history: "
        f"{size(result.bytes_written)}."
    )
