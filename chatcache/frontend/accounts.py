"""What the cache did for a chat and for all of them: the facts of the ledger, and `/stats`.

Owns what belongs to the account of a chat, and the words that several texts share. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatcache.chat.bill import Bill, PriceList, bill
from chatcache.chat.totals import GivenAnswer, Totals, given_answers, totals
from chatcache.formatting import duration, percent, plural
from chatcache.frontend import servers

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary


@dataclass(frozen=True, slots=True)
class Account:
    """The sums over some answers, and their bill."""

    totals: Totals
    bill: Bill


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """`chat` is None where no chat is open. `num_shared` turns of its path were answered in the
    chat that it was forked from, and are counted there."""

    everything: Account
    chat: Account | None = None
    session: str = ""
    session_id: str | None = None
    num_shared: int = 0


def account(answers: Iterable[GivenAnswer], prices: PriceList) -> Account:
    answers = list(answers)
    return Account(totals(answers), bill(answers, prices))


def gather(service: ChatService, session: SessionSummary | None, prices: PriceList) -> LedgerFacts:
    """The facts of the conversations that are kept. Asks no model."""
    answers = given_answers(service.store.database)
    everything = account(answers, prices)
    if session is None:
        return LedgerFacts(everything)
    session_id = session.session_id
    own = [answer for answer in answers if answer.session_id == session_id]
    elsewhere = {answer.created_ms for answer in answers if answer.session_id != session_id}
    path = service.store.nodes.path(service.store.sessions.tip(session_id))
    shared = [
        stored
        for stored in path
        if stored.node.role == "assistant" and stored.node.message.created_ms in elsewhere
    ]
    return LedgerFacts(everything, account(own, prices), session.name, session_id, len(shared))


def stats(facts: LedgerFacts) -> str:
    """What the cache did for a chat, in a few lines: and what of it is counted elsewhere."""
    found = facts.chat or facts.everything
    sums, told = found.totals, found.totals.servers
    num_answers = sums.num_answers + told.num_answers
    shared = [shared_words(facts)] if facts.num_shared else []
    if not num_answers:
        return shared[0] if shared else "Nothing has been answered yet."
    produced = sums.completion_tokens + told.completion_tokens
    lines = [f"{plural(num_answers, 'answer')}, {produced:,} tokens written"]
    if sums.num_answers:
        share = percent(sums.cached_tokens, sums.prompt_tokens)
        saved = f"{time_words(sums, sums.saved_ms)} of prefill saved"
        lines += [
            f"{sums.prompt_tokens:,} prompt tokens, {sums.cached_tokens:,} of them reused"
            f" ({share})",
            saved if sums.saved_ms > 0 else "no prefill saved yet",
        ]
    if told.prompt_tokens:
        is_told = told.num_untold.get("cached_tokens", 0) < told.num_answers
        there = f", {told.cached_tokens:,} of them cached there" if is_told else ""
        lines.append(f"{told.prompt_tokens:,} prompt tokens at servers{there}")
    lines += [
        f"{servers.price_words(price)} by the prices of the profile" for price in found.bill.own
    ]
    return "\n  ".join(lines + shared)


def time_words(sums: Totals, milliseconds: float) -> str:
    """A time that rests on the cold rate: `12.4 s`, with `est.` until that is measured."""
    if not milliseconds:
        return "0 s"
    return duration(milliseconds) + ("" if sums.is_measured else " est.")


def shared_words(facts: LedgerFacts) -> str:
    """What of a chat is counted elsewhere."""
    is_one = facts.num_shared == 1
    return (
        f"{plural(facts.num_shared, 'turn')} of this chat {'was' if is_one else 'were'} answered"
        f" before it was forked, and {'is' if is_one else 'are'} counted there."
    )
