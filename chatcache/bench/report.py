"""The result as a table for people and as JSON for scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from chatcache.bench.rows import BenchResult, Row

_CONTENDERS = ("transformers", "chatcache")


def as_json(result: BenchResult) -> dict[str, Any]:
    """Milliseconds; `ratio` is transformers over chatcache, `of_limit` chatcache over the limit."""
    return {
        "conditions": result.conditions,
        "limits": {f"{name}_per_second": rate for name, rate in asdict(result.limits).items()},
        "bytes_written": result.bytes_written,
        "rows": {name: _row_json(row, result) for name, row in result.rows.items()},
    }


def as_table(result: BenchResult) -> str:
    """Medians with their extremes, the ratio, and what bounds each row."""
    lines = [_conditions_line(result), ""]
    header = ("row", "transformers", "chatcache", "ratio", "limit", "bound by")
    table = [header, *(_row_cells(row, result) for row in result.rows.values())]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(header))]
    for cells in table:
        padded = [
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines += ["", _limits_line(result)]
    return "\n".join(lines)


def _ratio(row: Row, result: BenchResult) -> float | None:
    theirs = result.rows[row.against].median("transformers") if row.against else None
    ours = row.median("chatcache")
    return theirs / ours if theirs and ours else None


def _row_json(row: Row, result: BenchResult) -> dict[str, Any]:
    ours = row.median("chatcache")
    figures: dict[str, Any] = {
        contender: {
            "median_ms": 1000 * (row.median(contender) or 0.0),
            "min_ms": 1000 * min(values),
            "max_ms": 1000 * max(values),
        }
        for contender, values in row.samples.items()
    }
    figures["limit_ms"] = None if row.limit is None else 1000 * row.limit
    figures["of_limit"] = ours / row.limit if ours and row.limit else None
    figures["ratio"] = _ratio(row, result)
    figures["bound_by"] = row.bound_by
    return figures


def _row_cells(row: Row, result: BenchResult) -> tuple[str, ...]:
    ratio = _ratio(row, result)
    return (
        row.title,
        *(_spread(row.samples.get(contender)) for contender in _CONTENDERS),
        "" if ratio is None else f"{ratio:,.1f} x",
        "" if row.limit is None else _milliseconds(row.limit),
        row.bound_by,
    )


def _spread(values: list[float] | None) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    middle = _milliseconds(ordered[len(ordered) // 2])
    if len(ordered) == 1:
        return middle
    return f"{middle} ({_milliseconds(ordered[0])} to {_milliseconds(ordered[-1])})"


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def _conditions_line(result: BenchResult) -> str:
    known = result.conditions
    return (
        f"{known['model']} ({known['parameters']:,} parameters, {known['dtype']}) on "
        f"{known['cpu']}, {known['threads']} threads; history {known['tokens']:,} tokens, message "
        f"{known['message_tokens']}; medians of {known['runs']}; torch {known['torch']}, "
        f"transformers {known['transformers']}"
    )


def _limits_line(result: BenchResult) -> str:
    limits = result.limits
    return (
        f"machine: memory read {limits.memory_read / 1e9:.1f} GB/s, copy "
        f"{limits.memory_copy / 1e9:.1f} GB/s, disk read {limits.disk_read / 1e9:.2f} GB/s, "
        f"matmul {limits.matmul / 1e12:.2f} Tflop/s; {result.bytes_written / 1e6:,.1f} MB kept"
    )
