"""The ledger: every answer counts once, for the chat it was given in; what nobody told is unknown;
and what a hosted model would bill for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chatcache import formatting
from chatcache.backends.usage import CacheReport, Figures, Timings, TurnPrice, Usage
from chatcache.chat.bill import PriceList, amount, bill
from chatcache.chat.figures import as_objects, figures_of
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.totals import GivenAnswer, Totals, given_answers, totals
from chatcache.frontend import accounts
from chatcache.frontend.accounts import LedgerFacts, account
from chatcache.frontend.lens import ledger
from chatcache.frontend.lens.page import Page
from chatcache.remotes import Prices, RemoteProfile
from chatcache.sections import BillingSection
from tests.fakes import FakeBackend
from tests.unit.test_service import answer

PRICES = BillingSection(input=2.0, output=8.0)
MINUTE = 60_000


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ChatService]:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    with ChatService(SessionStore(tmp_path / "c.sqlite3"), backend) as service:
        yield service


def usage_sums(reports: list[Figures]) -> tuple[int, int, int, int, float, int]:
    """What `ask --json` printed of some turns, added up."""
    objects = [as_objects(figures) for figures in reports]
    details = [found["usage"]["prompt_tokens_details"] for found in objects]
    return (
        sum(found["usage"]["prompt_tokens"] for found in objects),
        sum(detail["cached_ram_tokens"] for detail in details),
        sum(detail["cached_disk_tokens"] for detail in details),
        sum(found["usage"]["completion_tokens"] for found in objects),
        round(sum(found["cache"]["saved_ms"] or 0.0 for found in objects), 3),
        sum(found["cache"]["bytes_written"] for found in objects),
    )


def account_sums(sums: Totals) -> tuple[int, int, int, int, float, int]:
    return (
        sums.prompt_tokens,
        sums.ram_tokens,
        sums.disk_tokens,
        sums.completion_tokens,
        round(sums.saved_ms, 3),
        sums.bytes_written,
    )


def test_every_answer_counts_once_for_the_chat_that_it_was_given_in(service: ChatService) -> None:
    first = service.create_session("first", "Be brief.").session_id
    told = [figures_of(answer(service.send(first, text)).result) for text in ("one", "two words")]
    told.append(figures_of(answer(service.regenerate(first)).result))
    fork = service.fork(first, at_turn=1, name="fork").session_id
    in_fork = [figures_of(answer(service.send(fork, "another way")).result)]
    service.set_system(fork, "Be long.")  # a copy of the path: nothing was answered
    in_fork.append(figures_of(answer(service.send(fork, "and on")).result))
    service.set_system(first, "Be kind.")
    told.append(figures_of(answer(service.send(first, "three")).result))
    answers = given_answers(service.store.database)
    by_chat = {
        chat: totals(given for given in answers if given.session_id == chat)
        for chat in (first, fork)
    }
    assert account_sums(by_chat[first]) == usage_sums(told)
    assert account_sums(by_chat[fork]) == usage_sums(in_fork)
    assert account_sums(totals(answers)) == usage_sums(told + in_fork)
    facts = accounts.gather(service, service.find_session("fork"), PriceList())
    assert facts.num_shared == 1
    assert "1 turn of this chat was answered before it was forked" in accounts.stats(facts)


def test_what_becomes_of_a_chat_that_others_share_changes_no_sum(service: ChatService) -> None:
    first = service.create_session("first").session_id
    for text in ("one", "two"):
        answer(service.send(first, text))
    answer(service.edit(first, 2, "other"))  # "two" is now a chat of its own
    service.fork(first, name="fork")
    answers = given_answers(service.store.database)
    owners = {given.session_id for given in answers}
    assert owners == {first, service.find_session("first (before edit)").session_id}
    service.delete(first)
    left = given_answers(service.store.database)
    assert all(given.session_id is not None for given in left)
    assert totals(left) == totals(answers)


def test_a_fork_that_has_said_nothing_says_where_its_turns_are_counted(
    service: ChatService,
) -> None:
    first = service.create_session("first").session_id
    answer(service.send(first, "one"))
    answer(service.send(first, "two"))
    service.fork(first, name="fork")
    facts = accounts.gather(service, service.find_session("fork"), PriceList())
    assert accounts.stats(facts).startswith("2 turns of this chat were answered before")


def given(
    prompt: int | None,
    cached: int | None,
    output: int | None = 100,
    *,
    minutes: float = 0.0,
    model: str = "builtin",
    is_local: bool = True,
    reason: str = "new_user_turn",
    price: TurnPrice | None = None,
    is_measured: bool = True,
) -> GivenAnswer:
    """An answer that came so many minutes after the one before it."""
    usage = (
        Usage(prompt, output, cached, 0)
        if is_local
        else Usage(prompt, output, None, None, server_cached_tokens=cached)
    )
    report = CacheReport(
        "hit",
        reason,
        cached,
        "",
        saved_ms=10.0,
        is_estimate_measured=is_measured,  # type: ignore[arg-type]
    )
    timings = Timings(2.0, 1.0, 3.0, 1.0, 1.0, 1.0)
    now = 1_763_700_000_000
    before = now - int(minutes * MINUTE)
    figures = Figures(usage, timings, report, price)
    return GivenAnswer("s_1", model, now, is_local, figures, before)


def test_reused_tokens_are_cached_input_and_computed_ones_are_written() -> None:
    found = bill([given(1000, 900)], PriceList(PRICES))
    assert (found.tokens.cached, found.tokens.written, found.tokens.output) == (900, 100, 100)
    expected = (900 * 0.1 + 100 * 1.25) * 2.0 / 1e6 + 100 * 8.0 / 1e6
    assert found.total == pytest.approx(expected)
    assert found.uncached == pytest.approx((1000 * 2.0 + 100 * 8.0) / 1e6)


@pytest.mark.parametrize(
    ("minutes", "ttl", "cached"), [(4, "5m", 900), (6, "5m", 0), (6, "1h", 900), (61, "1h", 0)]
)
def test_what_comes_after_the_time_to_live_is_written_again(
    minutes: float, ttl: str, cached: int
) -> None:
    prices = replace(PRICES, ttl=ttl)
    found = bill([given(1000, 900, minutes=minutes)], PriceList(prices))
    assert (found.tokens.cached, found.tokens.written) == (cached, 1000 - cached)
    assert found.total == amount(found.tokens, prices, ttl)


def test_without_the_cache_a_turn_is_plain_input() -> None:
    found = bill([given(1000, 0, reason="disabled")], PriceList(PRICES))
    assert (found.tokens.fresh, found.tokens.written) == (1000, 0)
    assert found.total == found.uncached


def test_prices_of_a_profile_go_first_for_its_own_answers() -> None:
    prices = Prices(input=1.0, cached_input=0.5, output=4.0, currency="EUR")
    remotes = {"box": RemoteProfile("box", "http://box/v1", prices=prices)}
    answers = [
        given(1000, 200, model="box:m", is_local=False),  # as the profile is now
        given(10, 0, model="box:m", is_local=False, price=TurnPrice("EUR", 0.5, 0.1)),  # as it was
        given(1000, 200, model="other:m", is_local=False),  # no prices of its own
    ]
    found = bill(answers, PriceList(PRICES, remotes))
    (own,) = found.own
    assert (own.currency, own.total) == ("EUR", pytest.approx(0.5 + (800 + 100 + 400) / 1e6))
    assert (found.num_answers, found.num_unknown) == (1, 0)
    assert (found.tokens.cached, found.tokens.written) == (200, 800)


def test_what_a_server_did_not_tell_is_unknown_and_in_no_sum() -> None:
    answers = [
        given(1000, 200, 50, model="other:m", is_local=False),
        given(1000, None, 50, model="other:m", is_local=False),
        given(None, None, None, model="other:m", is_local=False),
    ]
    shown = account(answers, PriceList(PRICES))
    assert (shown.bill.num_answers, shown.bill.num_unknown) == (1, 2)
    assert shown.totals.servers.cached_tokens == 200
    assert dict(shown.totals.servers.num_untold) == {
        "prompt_tokens": 1,
        "cached_tokens": 2,
        "completion_tokens": 1,
    }
    drawn = text_of(ledger.page(LedgerFacts(shown), 80))
    assert "2,000 + 1 unknown" in drawn
    silent = account(answers[2:], PriceList(PRICES))
    page = ledger.page(LedgerFacts(silent), 80)
    assert "unknown" in text_of(page)
    assert page.data["all"]["servers"]["prompt_tokens"] is None
    assert any("unknown" in sentence for sentence in page.sentences)


def text_of(page: Page) -> str:
    return "\n".join("".join(part.text for part in line) for line in page.lines)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_page_fits_and_says_the_same_in_columns_sentences_and_data(width: int) -> None:
    chat = account([given(1000, 900), given(2_000_000, 0, is_measured=False)], PriceList(PRICES))
    facts = LedgerFacts(chat, chat, "a [bold]chat[/]\x1b[31m" + "x" * 90, "s_1", 2)
    page = ledger.page(facts, width)
    drawn = text_of(page)
    assert max(formatting.width(line) for line in drawn.splitlines()) <= width
    assert "\x1b" not in drawn
    assert "2,001,000" in drawn
    assert "est." in drawn
    assert any("2,001,000 prompt tokens" in sentence for sentence in page.sentences)
    assert page.data["chat"]["prompt_tokens"] == 2_001_000
    assert page.data["chat"]["is_estimate_measured"] is False
    json.dumps(page.data)


def test_a_chat_without_an_answer_has_an_empty_ledger(service: ChatService) -> None:
    page = ledger.page(accounts.gather(service, None, PriceList()), 80)
    assert page.data["chat"] is None
    assert page.data["all"]["answers"] == 0
    assert "all chats" in text_of(page)
    assert "this chat" not in text_of(page)


def test_a_turn_without_the_cache_is_read_from_the_store(service: ChatService) -> None:
    chat = service.create_session("chat").session_id
    answer(service.send(chat, "one", TurnOptions(use_cache=False)))
    (found,) = given_answers(service.store.database)
    assert found.figures.cache.outcome == "off"
    answer(service.send(chat, "two"))
    first, second = given_answers(service.store.database)
    assert (first.read_before_ms, second.read_before_ms) == (0, first.created_ms)
