"""The ledger: what the cache did for a chat and for all, and what a hosted model would bill.

Owns how these accounts are drawn, as columns and as sentences. The sums are those that
`cache stats` and `/stats` show too; they equal the figures that `ask --json` printed of each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chatcache.chat.bill import Bill
from chatcache.chat.totals import Totals
from chatcache.formatting import duration, one_line, plural, shorten, size
from chatcache.formatting import width as cells_of
from chatcache.frontend.accounts import Account, LedgerFacts, shared_words, time_words
from chatcache.frontend.lens.page import Line, Mark, Marked, Page, flow, line
from chatcache.frontend.servers import money

TITLE = "Ledger"
NAMES = 34  # cells for what a line is called
DIGITS = 3  # bills that are to be compared
SERVER_ROWS = {
    "prompt_tokens": "prompt tokens",
    "cached_tokens": "cached there",
    "completion_tokens": "answer tokens",
}


def page(facts: LedgerFacts, width: int) -> Page:
    """The accounts side by side, at most `width` cells wide."""
    accounts = [account for account in (facts.chat, facts.everything) if account is not None]
    heads = ["this chat", "all chats"][-len(accounts) :]
    return Page(
        title=TITLE,
        lines=tuple(_lines(facts, accounts, heads, width)),
        sentences=tuple(_sentences(facts)),
        data=_data(facts),
        keys="",
    )


# The columns

_Cell = Callable[[Account], str]


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the accounts: what it is called, how it is marked, and its cell in each column."""

    name: str
    cell: _Cell
    mark: Mark = ""


def _count(read: Callable[[Totals], int]) -> _Cell:
    return lambda account: f"{read(account.totals):,}"


def _saving(read: Callable[[Totals], float]) -> _Cell:
    def cell(account: Account) -> str:
        sums = account.totals
        return time_words(sums, read(sums)) if sums.saved_ms else "0 s"

    return cell


_READ: tuple[_Row, ...] = (
    _Row("answers", _count(lambda sums: sums.num_answers)),
    _Row("prompt tokens", _count(lambda sums: sums.prompt_tokens), "strong"),
    _Row("  R reused from RAM", _count(lambda sums: sums.ram_tokens), "ram"),
    _Row("  D reused from disk", _count(lambda sums: sums.disk_tokens), "disk"),
    _Row("  C computed", _count(lambda sums: sums.computed_tokens), "computed"),
    _Row("W answer tokens", _count(lambda sums: sums.completion_tokens), "written"),
)
_TIME: tuple[_Row, ...] = (
    _Row("prefill avoided", _saving(lambda sums: sums.saved_ms + sums.restore_ms)),
    _Row("  less restoring", lambda account: _spent(account.totals.restore_ms)),
    _Row("time saved", _saving(lambda sums: sums.saved_ms), "strong"),
    _Row("bytes written, read", lambda account: _bytes(account.totals)),
)


def _bytes(sums: Totals) -> str:
    return f"{size(sums.bytes_written)}, {size(sums.bytes_read)}"


def _spent(milliseconds: float) -> str:
    return duration(milliseconds) if milliseconds else "0 s"


def _lines(
    facts: LedgerFacts, accounts: Sequence[Account], heads: Sequence[str], width: int
) -> Iterable[Line]:
    title = f"{TITLE}  {shorten(one_line(facts.session), 40)}".rstrip()
    yield from _table([_Row(title, lambda _: "", "title"), *_READ, *_TIME], accounts, width, heads)
    if any(account.totals.servers.num_answers for account in accounts):
        yield ()
        yield from _table(_server_rows(), accounts, width)
    yield ()
    yield from _table(_bill_rows(facts.everything.bill), accounts, width)
    for note in _notes(facts):
        yield from _wrapped(note, width)


def _server_rows() -> list[_Row]:
    def told(name: str) -> _Cell:
        return lambda account: _told(account.totals, name)

    rows = [_Row("AT SERVERS: answers", _count(lambda sums: sums.servers.num_answers), "title")]
    return rows + [_Row(f"  {words}", told(name)) for name, words in SERVER_ROWS.items()]


def _told(sums: Totals, name: str) -> str:
    """A sum of what servers told; who did not tell is counted."""
    servers = sums.servers
    untold = servers.num_untold.get(name, 0)
    if untold and untold == servers.num_answers:
        return "unknown"
    number: int = getattr(servers, name)
    return f"{number:,}" + (f" + {untold:,} unknown" if untold else "")


def _bill_rows(shown: Bill) -> list[_Row]:
    prices = shown.prices
    other = next(ttl for ttl in shown.totals if ttl != prices.ttl)

    def price(read: Callable[[Bill], float]) -> _Cell:
        return lambda account: money(read(account.bill), prices.currency, DIGITS)

    def tokens(name: str) -> _Cell:
        return lambda account: f"{getattr(account.bill.tokens, name):,}"

    write, cached = prices.write_multiplier(prices.ttl), prices.cached_input_multiplier
    fresh = [_Row("  input of turns without the cache", tokens("fresh"))]
    fresh = fresh if shown.tokens.fresh else []
    rows = [
        _Row("AS A HOSTED MODEL WOULD BILL IT", lambda _: "", "title"),
        _Row(f"  cached input, {cached:g} x", tokens("cached")),
        _Row(f"  cache writes, {write:g} x for {prices.ttl}", tokens("written")),
        *fresh,
        _Row("  output", tokens("output")),
        _Row("bill", price(lambda found: found.total), "strong"),
        _Row("  without any cache", price(lambda found: found.uncached)),
        _Row(f"  with writes for {other}", price(lambda found: found.totals[other])),
    ]
    if shown.own:
        rows.append(_Row("servers, by their own prices", lambda account: _own(account.bill)))
    if shown.num_unknown:
        rows.append(_Row("answers with unknown cost", lambda a: f"{a.bill.num_unknown:,}"))
    return rows


def _own(found: Bill) -> str:
    return " + ".join(money(price.total or 0.0, price.currency) for price in found.own) or "0"


def _table(
    rows: Sequence[_Row], accounts: Sequence[Account], width: int, heads: Sequence[str] = ()
) -> Iterable[Line]:
    """Names to the left, and a right-aligned column for each account."""
    room = min(22, max(12, (width - NAMES) // len(accounts)))
    names = max(8, min(NAMES, width - room * len(accounts)))
    for number, row in enumerate(rows):
        cells = list(heads) if number == 0 and heads else [row.cell(found) for found in accounts]
        text = "".join(f"{cell:>{room}}" for cell in cells)
        indent = row.name[: len(row.name) - len(row.name.lstrip())]
        is_alone = not text.strip()
        name = indent + shorten(row.name.strip(), (width if is_alone else names) - len(indent))
        if is_alone:
            yield line(Marked(name, row.mark))
        else:
            yield line(Marked(name + " " * (names - cells_of(name)), row.mark), text)


def _wrapped(text: str, width: int) -> Iterable[Line]:
    return (line(Marked(part, "muted")) for part in flow(text, width))


def _notes(facts: LedgerFacts) -> Iterable[str]:
    """What the columns do not say."""
    prices = facts.everything.bill.prices
    yield (
        f"Prices: {money(prices.input, prices.currency)} in,"
        f" {money(prices.output, prices.currency)} out, per million tokens"
        " ([billing] in config.toml)."
    )
    if facts.num_shared:
        yield shared_words(facts)


# Sentences


def _sentences(facts: LedgerFacts) -> Iterable[str]:
    if facts.chat is not None:
        yield from _account_sentences("This chat", facts.chat)
        if facts.num_shared:
            yield shared_words(facts)
    yield from _account_sentences("All chats together", facts.everything)


def _account_sentences(who: str, shown: Account) -> Iterable[str]:
    sums = shown.totals
    yield (
        f"{who}: {plural(sums.num_answers, 'answer')} of models of this machine, with"
        f" {plural(sums.prompt_tokens, 'prompt token')}: {sums.ram_tokens:,} reused from RAM,"
        f" {sums.disk_tokens:,} reused from disk, {sums.computed_tokens:,} computed;"
        f" {plural(sums.completion_tokens, 'answer token')} written."
    )
    yield (
        f"Time saved: {time_words(sums, sums.saved_ms)}; restoring took"
        f" {_spent(sums.restore_ms)} and is taken off it."
        f" {size(sums.bytes_written)} written to disk, {size(sums.bytes_read)} read."
    )
    if sums.servers.num_answers:
        told = ", ".join(f"{_told(sums, name)} {words}" for name, words in SERVER_ROWS.items())
        yield f"{plural(sums.servers.num_answers, 'answer')} of servers: {told}."
    yield f"{_bill_words(shown.bill)}."


def _bill_words(found: Bill) -> str:
    currency = found.prices.currency
    total, uncached = (money(amount, currency, DIGITS) for amount in (found.total, found.uncached))
    words = f"A hosted model would bill {total}, and without a cache {uncached}"
    if found.own:
        words += f"; servers with their own prices cost {_own(found)}"
    if found.num_unknown:
        words += f"; what {plural(found.num_unknown, 'answer')} cost is unknown"
    return words


# For programs


def _data(facts: LedgerFacts) -> dict[str, Any]:
    return {
        "session_id": facts.session_id,
        "session": facts.session or None,
        "shared_turns": facts.num_shared,
        "chat": None if facts.chat is None else _account_data(facts.chat),
        "all": _account_data(facts.everything),
        "prices": asdict(facts.everything.bill.prices),
    }


def _account_data(shown: Account) -> dict[str, Any]:
    sums, found = shown.totals, shown.bill
    return {
        "answers": sums.num_answers,
        "prompt_tokens": sums.prompt_tokens,
        "cached_tokens": sums.cached_tokens,
        "cached_ram_tokens": sums.ram_tokens,
        "cached_disk_tokens": sums.disk_tokens,
        "computed_tokens": sums.computed_tokens,
        "completion_tokens": sums.completion_tokens,
        "saved_ms": round(sums.saved_ms, 3),
        "is_estimate_measured": sums.is_measured,
        "restore_ms": round(sums.restore_ms, 3),
        "bytes_written": sums.bytes_written,
        "bytes_read": sums.bytes_read,
        "servers": _servers_data(sums),
        "bill": {
            "currency": found.prices.currency,
            "total": round(found.total, 10),
            "without_cache": round(found.uncached, 10),
            "by_ttl": {ttl: round(total, 10) for ttl, total in found.totals.items()},
            "tokens": asdict(found.tokens),
            "answers": found.num_answers,
            "own_prices": [asdict(price) for price in found.own],
            "unknown_answers": found.num_unknown,
        },
    }


def _servers_data(sums: Totals) -> dict[str, Any]:
    """What servers told; null where none of them did."""
    servers = sums.servers
    data: dict[str, Any] = {"answers": servers.num_answers}
    for name in SERVER_ROWS:
        is_told = servers.num_untold.get(name, 0) < servers.num_answers
        data[name] = getattr(servers, name) if is_told else None
    return data | {"untold": dict(servers.num_untold)}
