"""The ledger of the built-in model: it adds up what `ask --json` said of each turn, forks too."""

from __future__ import annotations

from pathlib import Path

from chatcache import compose
from chatcache.chat.figures import turn_report
from chatcache.config import load_settings
from chatcache.frontend import accounts
from chatcache.frontend.lens import ledger
from tests.unit.test_service import answer

COUNTS = ("prompt_tokens", "completion_tokens")
DETAILS = ("cached_tokens", "cached_ram_tokens", "cached_disk_tokens")
CACHE = ("saved_ms", "bytes_written", "bytes_read")


def test_the_sums_are_those_of_the_turns(home: Path) -> None:
    settings = load_settings()
    with compose.opened_service(settings, "test") as service:
        chat = service.create_session("chat", "You are brief.").session_id
        reports = [turn_report(answer(service.send(chat, text))) for text in ("one", "two")]
        reports.append(turn_report(answer(service.regenerate(chat))))
        fork = service.fork(chat, at_turn=1, name="fork").session_id
        reports.append(turn_report(answer(service.send(fork, "another"))))
        prices = compose.price_list(settings)
        page = ledger.page(accounts.gather(service, service.find_session(fork), prices), 80)
    told = page.data["all"]
    for name in COUNTS:
        assert told[name] == sum(report["usage"][name] for report in reports)
    for name in DETAILS:
        assert told[name] == sum(
            report["usage"]["prompt_tokens_details"][name] for report in reports
        )
    for name in CACHE:
        assert round(told[name], 2) == round(sum(report["cache"][name] for report in reports), 2)
    assert told["answers"] == 4
    assert told["cached_tokens"] > 0
    own = page.data["chat"]
    assert own["prompt_tokens"] == reports[-1]["usage"]["prompt_tokens"]
    assert page.data["shared_turns"] == 1
    billed = told["bill"]["tokens"]
    assert billed["cached"] + billed["written"] == told["prompt_tokens"]
