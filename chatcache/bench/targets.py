"""What chatcache must show on a GPU, held against what was measured: bound, measured, ok or missed.

Of the rows and figures of one run; each bound is on the length of history that it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatcache.bench.report import CHATCACHE, TRANSFORMERS, BenchResult, BenchTarget, Row

_TITLE = 41


def targets(result: BenchResult) -> list[BenchTarget]:
    """In the order of a turn."""
    rows = result.rows
    cold, theirs = _ours(rows, "cold"), _median(rows, "cold", TRANSFORMERS)
    live, ram, step = _ours(rows, "live"), _ours(rows, "ram"), _ours(rows, "decode")
    per_second = result.limits.to_device
    copy = None if per_second is None else result.bytes_written / per_second
    least = None if copy is None or live is None else copy + live / 1.25
    figures = {figure.name: figure.value for figure in result.figures}
    limit = rows["decode"].limit if "decode" in rows else None
    target = BenchTarget
    return [
        target("cold", "cold, of transformers in one pass", 1.15, _over(cold, theirs), "ratio"),
        target("decode", "a token, transformers eager takes", 6.0,
               _over(_median(rows, "decode", TRANSFORMERS), step), "ratio", is_least=True),
        target("decode_limit", "a token, of the memory limit", 0.45,
               _over(limit, step), "ratio", is_least=True),
        target("ram", "from RAM, of the pinned copy, a turn", 1.25, _over(ram, least), "ratio"),
        target("switch", "switch between two forks on the card", 20.0,
               _ms(_ours(rows, "switch_forks")), "ms"),
        target("live", "16 tokens behind what is live: steps", 2.0, _over(live, step), "ratio"),
        target("spill", "slower decode while it is written", 3.0,
               figures.get("spill_cost"), "percent"),
        target("captures", "captured before a first token", 0.0,
               figures.get("first_captures"), "steps"),
        target("stop", "stop, while it reads", 500.0, _ms(_ours(rows, "stop_prefill")), "ms"),
        target("slowest", _slowest(rows)[0], 1.0, _slowest(rows)[1], "ratio", is_least=True),
    ]  # fmt: skip


def target_lines(found: Sequence[BenchTarget]) -> list[str]:
    """A table: what, its bound, what was measured, and the verdict."""
    lines = [f"{'It must show':<{_TITLE}}{'bound':>16}{'measured':>11}"]
    for target in found:
        bound = ("at least " if target.is_least else "") + _amount(target.bound, target.unit)
        measured = "-" if target.measured is None else _amount(target.measured, target.unit)
        verdict = {True: "ok", False: "missed", None: "-"}[target.is_met]
        lines.append(f"  {target.title:<{_TITLE - 2}}{bound:>16}{measured:>11}  {verdict}")
    return lines


def _slowest(rows: dict[str, Row]) -> tuple[str, float | None]:
    """The row that gains least on plain transformers, and how many times as long they take."""
    ratios = {
        row.name: ratio
        for row in rows.values()
        if row.against in rows
        and (ratio := _over(_median(rows, row.against, TRANSFORMERS), row.median(CHATCACHE)))
    }
    if not ratios:
        return "the row that gains least", None
    name = min(ratios, key=lambda name: ratios[name])
    return f"the row that gains least: {name}", ratios[name]


def _median(rows: dict[str, Row], name: str, contender: str) -> float | None:
    return rows[name].median(contender) if name in rows else None


def _ours(rows: dict[str, Row], name: str) -> float | None:
    return _median(rows, name, CHATCACHE)


def _over(seconds: float | None, others: float | None) -> float | None:
    return seconds / others if seconds and others else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _amount(value: float, unit: str) -> str:
    if unit == "ms":
        return f"{value:,.1f} ms"
    if unit == "percent":
        return f"{value:.1f} %"
    return f"{value:,.0f}" if unit == "steps" else f"{value:.2f} x"
