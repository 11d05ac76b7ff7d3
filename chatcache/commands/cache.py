"""`chatcache cache`: what is remembered on disk. No model is loaded, no word is touched."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from chatcache import compose
from chatcache.backends.base import EngineStatus
from chatcache.cache.book.namespace import PRECISION, QUANTIZATION, is_approximate
from chatcache.cache.files.quantized import QuantizedUse
from chatcache.cache.files.quarantine import QuarantineUse
from chatcache.cache.inspect import CacheInspector, NamespaceUse
from chatcache.cache.retention import dead_namespaces, forget_lost_pins, remove_namespace
from chatcache.cache.views import SegmentRow, TierUse
from chatcache.chat.totals import Totals, given_answers, totals
from chatcache.checks import num_bytes
from chatcache.commands import ShellCommand, cache_by_name, cache_recompute
from chatcache.commands.cache_engines import engines_of, use_json, use_lines
from chatcache.commands.parser import Parser, settings_of
from chatcache.config import Settings
from chatcache.errors import StorageError
from chatcache.formatting import moment, one_line, percent, plural, size, table
from chatcache.frontend.accounts import time_words
from chatcache.frontend.shell_output import Narrator, print_json, print_line, print_result
from chatcache.machine import has_nvidia_gpu
from chatcache.os_failures import advice, reason

SHORT_ID = 12


@contextlib.contextmanager
def _inspector(arguments: Namespace) -> Iterator[tuple[Settings, CacheInspector]]:
    settings = settings_of(arguments)
    try:
        inspector = compose.open_inspector(settings)
        inspector.check_access()
        yield settings, inspector
    except OSError as error:
        raise StorageError(
            f"The cache in {settings.paths.cache_dir} cannot be used: {reason(error)}.",
            f"{advice(error)}, or choose another directory with --cache-dir.",
        ) from error


def stats(arguments: Namespace) -> int:
    with _inspector(arguments) as (settings, inspector):
        ram, disk = inspector.tiers()
        namespaces = inspector.namespaces()
        damaged = inspector.quarantine.use()
        quantized = inspector.quantized.use()
    vram = settings.config.cache.vram_budget if has_nvidia_gpu() else 0
    engines = engines_of(settings)
    sums, written_today = _totals(settings)
    outcomes = {name: sums.outcomes.get(name, 0) for name in ("hit", "partial", "miss", "off")}
    if arguments.json:
        print_json(
            {
                "tiers": {"ram": _tier_json(ram), "disk": _tier_json(disk), **_vram_json(vram)},
                "engines": [
                    {"model": status.model, "pid": status.pid, **use_json(status)}
                    for status in engines
                ],
                "namespaces": [_namespace_json(use) for use in namespaces],
                "quarantine": {"bytes": damaged.num_bytes, "segments": damaged.num_files},
                "quantized": {"bytes": quantized.num_bytes, "models": quantized.num_models},
                "hits": {
                    **outcomes,
                    "prompt_tokens": sums.prompt_tokens,
                    "cached_tokens": sums.cached_tokens,
                },
                "saved_ms_total": round(sums.saved_ms, 3),
                "bytes_written_today": written_today,
            }
        )
        return 0
    counts = ", ".join(f"{number:,} {name}" for name, number in outcomes.items())
    share = percent(sums.cached_tokens, sums.prompt_tokens)
    print_line(
        f"on disk        {size(disk.num_bytes)} of {size(disk.budget_bytes)}"
        f" in {plural(disk.num_segments, 'segment')}\n"
        f"in memory      up to {size(ram.budget_bytes)} while a model is loaded\n"
        f"answers        {counts}\n"
        f"reused         {sums.cached_tokens:,} of {sums.prompt_tokens:,}"
        f" prompt tokens ({share})\n"
        f"saved          {time_words(sums, sums.saved_ms) if sums.saved_ms else 'nothing yet'}\n"
        f"written today  {size(written_today)}"
    )
    for line in _more_lines(vram, engines, damaged, quantized):
        print_line(line)
    if namespaces:
        rows = [
            (use.namespace[:SHORT_ID], _title(use), f"{use.num_segments:,}", size(use.num_bytes))
            for use in namespaces
        ]
        header = ("NAMESPACE", "MODEL", "SEGMENTS", "SIZE")
        print_line("\n" + table(header, rows, "SEGMENTS SIZE"))
    return 0


def _more_lines(
    vram: int | str,
    engines: list[EngineStatus],
    damaged: QuarantineUse,
    quantized: QuantizedUse,
) -> Iterator[str]:
    """What not everybody has: a GPU, engines that run, damaged segments, quantised models."""
    if vram:
        room = size(vram) if isinstance(vram, int) else vram.replace("%", " % of what is free")
        yield f"on the GPU     up to {room} while a model is loaded"
    yield from use_lines(engines)
    if damaged.num_files:
        yield (
            f"set aside      {plural(damaged.num_files, 'damaged segment')},"
            f" {size(damaged.num_bytes)}; `chatcache cache gc` removes them"
        )
    if quantized.num_models:
        yield f"quantised      {plural(quantized.num_models, 'model')}, {size(quantized.num_bytes)}"


def _totals(settings: Settings) -> tuple[Totals, int]:
    """The sums over all answers, and what those of today wrote; nothing when there are no
    conversations yet."""
    if not settings.paths.database.exists():
        return Totals(), 0
    today = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    since_ms = int(today.timestamp() * 1000)
    store = compose.open_store(settings, may_be_read_only=True)
    try:
        answers = given_answers(store.database)
    finally:
        store.close()
    of_today = totals(answer for answer in answers if answer.created_ms >= since_ms)
    return totals(answers), of_today.bytes_written


def _tier_json(tier: TierUse) -> dict[str, int]:
    num_bytes, budget_bytes = tier.num_bytes, tier.budget_bytes
    return {"bytes": num_bytes, "budget_bytes": budget_bytes, "segments": tier.num_segments}


def _vram_json(budget: int | str) -> dict[str, Any]:
    """Nothing without a GPU; a percentage is of what nobody knows before a model is loaded."""
    if not budget:
        return {}
    is_share = isinstance(budget, str) and "%" in budget
    budget_bytes = None if is_share else num_bytes(budget, lambda: 0)
    return {"vram": {"bytes": 0, "budget_bytes": budget_bytes, "segments": 0, "budget": budget}}


def _namespace_json(use: NamespaceUse) -> dict[str, Any]:
    return {
        "namespace": use.namespace,
        "fields": dict(use.fields),
        "approximate": is_approximate(use.fields),
        "bytes": use.num_bytes,
        "segments": use.num_segments,
    }


def _title(use: NamespaceUse) -> str:
    """What a namespace is called by people."""
    names = [use.fields.get(key, "") for key in ("soft.name", QUANTIZATION, "dtype", "soft.device")]
    return " ".join([*filter(None, names), *_label(use.fields)]) or "unknown"


def _label(fields: Mapping[str, str]) -> list[str]:
    """The mark of segments that are not exact; [] for exact ones."""
    return [f"{fields[PRECISION]} (approximate)"] if is_approximate(fields) else []


def list_all(arguments: Namespace) -> int:
    with _inspector(arguments) as (_, inspector):
        rows = inspector.rows()
        fields = inspector.fields()
    if arguments.json:
        print_json({"segments": [_row_json(row, fields[row.namespace]) for row in rows]})
        return 0
    if not rows:
        Narrator().note("Nothing is remembered yet.")
        return 0
    now = time.time()
    lines = [
        (
            row.segment_id[:SHORT_ID],
            f"{row.start:,}",
            f"{row.stop:,}",
            f"{row.num_tokens:,}",
            size(row.num_bytes),
            moment(row.last_used, now),
            " ".join([row.namespace[:SHORT_ID], *_label(fields[row.namespace])]),
        )
        for row in rows
    ]
    header = ("ID", "FROM", "TO", "TOKENS", "SIZE", "USED", "NAMESPACE")
    print_line(table(header, lines, "FROM TO TOKENS SIZE"))
    return 0


def _row_json(row: SegmentRow, fields: Mapping[str, str]) -> dict[str, Any]:
    return {
        "segment_id": row.segment_id,
        "namespace": row.namespace,
        "parent_id": row.parent_id,
        "start": row.start,
        "stop": row.stop,
        "tokens": row.num_tokens,
        "bytes": row.num_bytes,
        "in_ram": row.in_ram,
        "on_disk": row.on_disk,
        "pinned": row.is_pinned,
        "last_used": row.last_used,
        "approximate": is_approximate(fields),
    }


def _configure_show(parser: Parser) -> None:
    parser.add_argument("segment", metavar="ID", help="the id of a segment, or its beginning")
    parser.add_json()


def show(arguments: Namespace) -> int:
    with _inspector(arguments) as (_, inspector):
        row = cache_by_name.find_row(inspector.rows(), arguments.segment)
        fields = inspector.fields()[row.namespace]
        found = inspector.examine(row)
        details = _row_json(row, fields) | {
            "path": str(inspector.path_of(row)),
            "created_at": found.created_at,
            "creator": found.creator,
            "tensors": found.num_tensors,
            "dtypes": ", ".join(found.dtypes),
            "checksums": found.problem or "sound",
        }
    pairs = [(name, str(value)) for name, value in details.items()]
    pairs += [(f"namespace {name}", value) for name, value in sorted(fields.items())]
    data = details | {"namespace_fields": dict(fields)}
    return print_result(data, table(("FIELD", "VALUE"), pairs), as_json=arguments.json)


def _configure_verify(parser: Parser) -> None:
    parser.description = "Compare the checksum of every segment. Exits with 5 when one is damaged."
    parser.add_argument("--fix", action="store_true", help="set damaged files aside")
    cache_recompute.configure(parser)
    parser.add_json()


def verify(arguments: Namespace) -> int:
    with _inspector(arguments) as (settings, inspector):
        report = inspector.verify(fix=arguments.fix)
        deep = cache_recompute.check(settings, inspector, arguments) if arguments.deep else None
        if deep is not None:
            report = cache_recompute.added_to(report, deep, settings, fix=arguments.fix)
    if arguments.json:
        damaged = [
            {"segment_id": segment_id, "problem": problem} for segment_id, problem in report.damaged
        ]
        print_json(
            {
                "checked": report.num_checked,
                "damaged": damaged,
                "fixed": report.num_fixed,
                "orphans": report.num_orphans,
                **({} if deep is None else {"deep": cache_recompute.as_json(deep)}),
            }
        )
    else:
        for segment_id, problem in report.damaged:
            print_line(f"{segment_id}  {problem}")
        parts = [f"{plural(report.num_checked, 'segment')} checked"]
        parts.append(f"{len(report.damaged):,} damaged")
        if report.num_orphans:
            parts.append(f"{report.num_orphans:,} unreachable")
        if arguments.fix:
            parts.append(f"{report.num_fixed:,} put aside or removed")
        print_line(", ".join(parts) + ".")
        for line in [] if deep is None else cache_recompute.lines(deep):
            print_line(one_line(line))
        if report.damaged and not arguments.fix:
            Narrator().note("`chatcache cache verify --fix` sets them aside; only speed is lost.")
    return 5 if report.damaged and not arguments.fix else 0


def collect_garbage(arguments: Namespace) -> int:
    with _inspector(arguments) as (_, inspector):
        dead = dead_namespaces(inspector)
        freed = [remove_namespace(inspector, use.namespace) for use in dead]
        removed = inspector.collect_garbage()
        forget_lost_pins(inspector)
    num_files = removed.num_files + sum(gone.num_files for gone in freed)
    num_bytes = removed.num_bytes + sum(gone.num_bytes for gone in freed)
    namespaces = [_namespace_json(use) for use in dead]
    data = {"removed": num_files, "bytes": num_bytes, "namespaces": namespaces}
    lines = [f"{_title(use)}: the model is gone; {size(use.num_bytes)} freed." for use in dead]
    lines.append(f"Removed {plural(num_files, 'file')}, {size(num_bytes)}.")
    return print_result(data, "\n".join(lines), as_json=arguments.json)


def clear(arguments: Namespace) -> int:
    with _inspector(arguments) as (settings, inspector):
        removed = inspector.clear()
        compose.forget_in_memory(settings.paths, is_all=True)
    data = {"removed": removed.num_files, "bytes": removed.num_bytes}
    text = f"Removed {plural(removed.num_files, 'file')}, {size(removed.num_bytes)}."
    return print_result(data, text, as_json=arguments.json)


def _keep(
    act: Callable[[cache_by_name.Target, Namespace], int], *, is_deleting: bool = False
) -> Callable[[Namespace], int]:
    def run(arguments: Namespace) -> int:
        with _inspector(arguments) as (settings, inspector):
            target = cache_by_name.find_target(settings, inspector, arguments.name)
            code = act(target, arguments)
            if is_deleting:
                compose.forget_in_memory(settings.paths)
            return code

    return run


COMMANDS = {
    "stats": ShellCommand("how much is kept, and what it has saved", Parser.add_json, stats),
    "list": ShellCommand("the segments, the last used first", Parser.add_json, list_all),
    "show": ShellCommand("one segment", _configure_show, show),
    "verify": ShellCommand("look for damaged segments", _configure_verify, verify),
    "pin": ShellCommand(
        "keep a session's segments whatever the budgets say",
        cache_by_name.configure,
        _keep(cache_by_name.pin),
    ),
    "unpin": ShellCommand("undo a pin", cache_by_name.configure, _keep(cache_by_name.unpin)),
    "spill": ShellCommand(
        "whether all of a session is on disk",
        cache_by_name.configure_spill,
        _keep(cache_by_name.spill),
    ),
    "drop": ShellCommand(
        "delete a session's segments from disk",
        cache_by_name.configure_drop,
        _keep(cache_by_name.drop, is_deleting=True),
    ),
    "gc": ShellCommand("remove what nothing can use any more", Parser.add_json, collect_garbage),
    "clear": ShellCommand("remove all segments; no word is lost", Parser.add_json, clear),
}
