"""The linter: what it finds in texts, requests, personas and chats, and what it lets pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chatcache import cli, compose
from chatcache.backends.usage import CacheReport, Figures, Timings, Usage
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.transfer import ALL_FORMAT, FORMAT
from chatcache.config import load_settings
from chatcache.errors import UsageError
from chatcache.formatting import width
from chatcache.frontend.files import quoted as quoted_file
from chatcache.frontend.lint import look, variants
from chatcache.frontend.lint.attachments import quoted_files
from chatcache.frontend.lint.documents import read_document
from chatcache.frontend.lint.finding import (
    RULE_WORDS,
    LintFinding,
    TokenScale,
    as_json,
    panel_line,
    report,
)
from chatcache.frontend.lint.history import PastTurn, history_findings
from chatcache.frontend.lint.orders import early_difference
from chatcache.frontend.lint.talks import LintMessage, file_findings, ordinal
from chatcache.frontend.lint.variants import persona_findings
from chatcache.personas import Persona
from chatcache.tui.panel import drawing
from chatcache.tui.panel.state import PanelState
from tests.fakes import FakeBackend
from tests.unit.test_service import answer

NOW = datetime(2026, 11, 5, 14, 3, tzinfo=UTC)
RULES = (
    "You are a careful assistant for people who write programs. Answer in whole sentences.\n\n"
    "When you do not know something, say so, and name where it could be found out.\n\n"
    "Never invent names of functions. Quote the code that you speak of, and use plain words."
)
INSTRUCTION = "Say in one sentence what this file asks for, and whether anything in it is missing."


def at(text: str, name: str = "prompt.txt") -> list[LintFinding]:
    return look.look_at_document(read_document(text.encode(), name), name, [NOW])


def rules(found: list[LintFinding]) -> list[str]:
    return [finding.rule for finding in found]


# Texts


def test_a_finding_says_where_what_it_costs_and_what_to_do() -> None:
    text = f"Be brief.\n  Today is 2026-11-05.\n{RULES}"
    (found,) = at(text)
    assert (found.rule, found.line, found.column, found.found) == ("date", 2, 12, "2026-11-05")
    start = text.index("2026")
    assert found.token == round(start / 4)
    assert found.cost_tokens == round(len(text) / 4) - round(start / 4)
    assert found.is_estimated
    first, cost, advice = report([found])
    assert first.startswith("prompt.txt: the text, line 2, column 12, token ")
    assert "(est.) read again each time it changes" in cost
    assert "message" in advice
    json.dumps(as_json(found))


def test_a_placeholder_counts_in_a_file_that_is_filled_in() -> None:
    assert rules(at("You are kind. It is {{ current_date }}.")) == ["placeholder"]


def test_a_stable_text_has_no_finding() -> None:
    assert at(RULES) == []
    assert at("{not json at all, version 1.2.3, since 2024-01-01") == []


def test_a_file_in_front_of_instructions_in_a_system_prompt() -> None:
    file = quoted_file("notes.txt", "The notes of today.\n" * 8)
    (found,) = at(f"{file}\n\n{RULES}")
    assert (found.rule, found.found, found.line) == ("attachment_first", "notes.txt", 1)
    assert found.saves_tokens == round(len(RULES) / 4)
    assert at(f"{RULES}\n\n{file}") == []
    assert rules(at(f"<documents>\nabc\n</documents>\n{RULES}")) == ["attachment_first"]


@pytest.mark.parametrize(
    "text", ["plain", "with ``` three", "````\nfour\n````", "File x:\n```\ny\n```"]
)
def test_quoted_files_are_found_as_they_were_quoted(text: str) -> None:
    (found,) = quoted_files(f"{quoted_file('a b.txt', text)}\n\nWhat is this?")
    assert (found.name, found.text) == ("a b.txt", text)


# Requests


def request(*texts: str, **more: object) -> dict[str, object]:
    roles = ["system", *["user", "assistant"] * len(texts)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"model": "m", "messages": messages, **more}


def lines_of(*requests: object) -> str:
    return "\n".join(json.dumps(entry) for entry in requests) + "\n"


@pytest.mark.parametrize(
    "document",
    [
        request("Today is 2026-11-05.", "hi"),
        request("Today is 2026-11-05.", "hi")["messages"],
        {"system": "Today is 2026-11-05.", "messages": [{"role": "user", "content": "hi"}]},
        {"system": [{"type": "text", "text": "Today is 2026-11-05."}], "messages": []},
        {"instructions": "Today is 2026-11-05.", "input": "hi"},
        {"custom_id": "1", "body": request("Today is 2026-11-05.", "hi")},
        {"messages": [{"role": "developer", "content": [{"text": "Today is 2026-11-05."}]}]},
    ],
)
def test_requests_in_their_many_forms(document: object) -> None:
    for text, name in ((json.dumps(document), "a.json"), (json.dumps(document), "a")):
        (found,) = at(text, name)
        assert (found.rule, found.line, found.column) == ("date", 1, 10)


def test_a_date_in_a_message_of_the_user_costs_nothing() -> None:
    assert at(json.dumps(request("Be kind.", "Today is 2026-11-05, Session ID: a8f3k2p9"))) == []


def test_an_id_that_every_request_has_is_no_finding_and_one_that_differs_is_said_once() -> None:
    same = request(f"Tenant 6f1c2a9e-3b54-4d0f-9a77-0c1d2e3f4a5b. {RULES}", "hi")
    assert (
        at(lines_of(same, request(f"{same['messages'][0]['content']} More.", "ho")), "a.jsonl")
        == []
    )  # type: ignore[index]
    ids = ("6f1c2a9e-3b54-4d0f-9a77-0c1d2e3f4a5b", "0b1d2e3f-3b54-4d0f-9a77-6f1c2a9e4a5b")
    found = at(lines_of(*[request(f"Tenant {number}. {RULES}", "hi") for number in ids]), "a.jsonl")
    assert rules(found) == ["random_id"]


def test_requests_that_differ_early_without_a_date_or_an_id() -> None:
    found = at(lines_of(*[request(f"User {who}.\n\n{RULES}", "hi") for who in ("Ada", "Bob")]), "l")
    assert rules(found) == ["differs_early"]
    assert found[0].cost_per == "request"
    assert found[0].saves_tokens is not None
    assert found[0].saves_tokens > 50


def test_a_request_of_a_long_log_is_compared_with_those_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def counted(first: str, second: str, scale: TokenScale) -> None:
        compared.append((first, second))

    monkeypatch.setattr(variants, "worthwhile_difference", counted)
    many = [request(f"User {who}. {RULES}", "hi") for who in range(4 * look.MAX_BESIDE)]
    assert at(lines_of(*many), "a.jsonl") == []
    assert 0 < len(compared) <= 2 * look.MAX_BESIDE * len(many)


def test_two_exported_chats_of_one_name_are_two() -> None:
    chats = [
        {"format": FORMAT, "session": "notes", **request(f"User {who}.\n\n{RULES}", "hi")}
        for who in ("Ada", "Bob")
    ]
    found = at(json.dumps({"format": ALL_FORMAT, "sessions": chats}), "all.json")
    assert rules(found) == ["differs_early"] * 2


def test_tools_in_another_order() -> None:
    tools = [{"name": name, "description": "what it does " * 5} for name in ("a", "b")]
    first, second = request(RULES, "hi", tools=tools), request(RULES, "ho", tools=tools[::-1])
    found = at(lines_of(first, second, first), "a.jsonl")
    assert rules(found) == ["tools_differ"]
    assert "same tools" in found[0].what
    assert at(lines_of(first, first), "a.jsonl") == []
    grown = request(RULES, "hi", tools=[*tools, {"name": "c"}])
    assert at(lines_of(first, grown), "a.jsonl") == []


def test_a_history_that_loses_its_beginning() -> None:
    turns = [f"message {number} " + "and many words of it " * 5 for number in range(6)]
    grows = [request("Be kind.", *turns[:2]), request("Be kind.", *turns[:4])]
    assert at(lines_of(*grows), "a.jsonl") == []
    slides = [request("Be kind.", *turns[:4]), request("Be kind.", *turns[2:])]
    found = at(lines_of(*slides), "a.jsonl")
    assert rules(found) == ["history_rewritten"]
    assert found[0].token == 2


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "a.txt", "is empty"),
        (b" \n", "a.json", "is empty"),
        (b"\x00\x01\x02", "a.bin", "no text"),
        (b"\xff\xfe\xfd" * 9, "a", "no text"),
        (b"{broken", "a.json", "is not JSON"),
        (b'{"a": 1}', "a.json", "has no messages"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\n{oops\n', "a.jsonl", "line 2"),
        (b"[" * 100_000, "a.json", "nested"),
        (b'{"messages": "x"}\n{"messages": 3}\n', "a.jsonl", "line 2, has no messages"),
    ],
)
def test_what_is_no_document_is_told(content: bytes, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_document(content, name)


# Personas


def personas(**systems: str) -> dict[str, Persona]:
    return {name: Persona(name, system) for name, system in systems.items()}


def test_personas_that_differ_in_their_first_words() -> None:
    alike = personas(tutor=f"You are a tutor.\n\n{RULES}", critic=f"You are a critic.\n\n{RULES}")
    (found,) = persona_findings(alike, TokenScale())
    assert (found.line, found.column) == (1, 11)
    # With what both have in front, all of it is shared: computed, and by doing it.
    before = early_difference(alike["tutor"].system, alike["critic"].system)
    turned = [f"{RULES}\n\n{persona.system.partition(chr(10))[0]}" for persona in alike.values()]
    after = early_difference(*turned)
    assert before is not None
    assert after is not None
    assert found.saves_tokens == pytest.approx((after.at - before.at) / 4, abs=8)
    again = personas(tutor=turned[0], critic=turned[1])
    assert list(persona_findings(again, TokenScale())) == []


def test_personas_that_have_little_in_common_are_no_finding() -> None:
    other = "You write poems about the sea, in the manner of sailors, and never in prose."
    assert list(persona_findings(personas(a=RULES, b=other), TokenScale())) == []
    assert list(persona_findings(personas(a=RULES, b=f"{RULES} Be brief."), TokenScale())) == []


# Histories


def past(turn: int, reason: str, diverged_at: int, num_read: int) -> PastTurn:
    cached = diverged_at
    usage = Usage(num_read + 20, 10, cached, 0)
    cache = CacheReport("partial", reason, diverged_at, "a sentence")  # type: ignore[arg-type]
    return PastTurn(turn, Figures(usage, Timings(*[None] * 6), cache), num_read)


def test_misses_at_the_same_place_are_one_finding_with_exact_costs() -> None:
    turns = [past(n, "evicted", 40, 100 * n) for n in (2, 3)] + [past(4, "evicted", 90, 400)]
    (found,) = history_findings(turns, "s_1")
    assert (found.rule, found.token, found.place) == ("repeated_miss", 40, "turns 2, 3")
    assert (found.cost_tokens, found.is_estimated) == ((160 + 260) // 2, False)
    assert "pin s_1" in found.advice
    for calm in ("new_user_turn", "cheaper_to_recompute", "disabled", "cold_start"):
        assert list(history_findings([past(2, calm, 4, 90), past(3, calm, 4, 90)], "s_1")) == []


def test_a_template_that_rewrites_what_was_read() -> None:
    turns = [past(n, "template_rewrote_history", 80 * n, 100 * n) for n in (2, 3, 4)]
    (found,) = history_findings(turns, "s_1")
    assert (found.rule, found.cost_tokens) == ("template_rewrites", 60)
    assert "mode s_1 append" in found.advice
    assert list(history_findings(turns[:1], "s_1")) == []
    assert list(history_findings(turns, "s_1", is_append=True)) == []
    assert rules(list(history_findings([past(2, "template_is_unstable", 5, 90)], "s"))) == [
        "template_changes"
    ]


# Chats


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ChatService]:
    backend = FakeBackend(["Yes."], starts_ready=True)
    backend.start()
    with ChatService(SessionStore(tmp_path / "c.sqlite3"), backend) as service:
        yield service


def chat(service: ChatService, name: str, system: str | None, *texts: str) -> list[LintFinding]:
    session = service.create_session(name, system)
    for text in texts:
        answer(service.send(session.session_id, text))
    return look.look_at_chat(service, service.find_session(session.session_id))


def test_a_date_in_the_system_prompt_of_a_chat_costs_what_the_chat_has(
    service: ChatService,
) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    (found,) = chat(service, "a", f"Today is {today}. {RULES}", "one", "two")
    assert (found.rule, found.place, found.subject) == ("date", "system prompt", "a")
    tokens = service.find_session("a").num_tokens
    assert found.cost_tokens == tokens - (found.token or 0)
    service.fork(found.session_id or "", name="fork")
    everything = look.look_at_everything(service, {}, NOW)
    assert rules(everything) == ["date"]  # once, though two chats have it


def test_an_id_that_two_chats_have_stays_and_one_that_differs_does_not(
    service: ChatService,
) -> None:
    number = "6f1c2a9e-3b54-4d0f-9a77-0c1d2e3f4a5b"
    assert rules(chat(service, "a", f"Tenant {number}. {RULES}", "one")) == ["random_id"]
    assert chat(service, "b", f"Tenant {number}. {RULES}", "one") == []
    other = number.replace("6f1c", "1a2b")
    assert rules(chat(service, "c", f"Tenant {other}. {RULES}", "one")) == ["random_id"]


def test_a_fork_shares_the_prompt_of_its_chat_and_shows_nothing_to_stay(
    service: ChatService,
) -> None:
    number = "6f1c2a9e-3b54-4d0f-9a77-0c1d2e3f4a5b"
    (found,) = chat(service, "a", f"Tenant {number}. {RULES}", "one")
    fork = service.fork(found.session_id or "", name="fork")
    answer(service.send(fork.session_id, "two"))
    service.fork(fork.session_id, name="fork of the fork")
    for name in ("fork", "fork of the fork"):
        assert rules(look.look_at_chat(service, service.find_session(name))) == ["random_id"]
    service.delete(found.session_id or "")
    for name in ("fork", "fork of the fork"):
        assert rules(look.look_at_chat(service, service.find_session(name))) == ["random_id"]


def test_files_that_are_attached_again(service: ChatService) -> None:
    file = quoted_file("a.txt", "the text of the file\n" * 9)
    (found,) = chat(service, "a", None, f"{file}\n\nWhat is it?", f"{file}\n\nAnd now?")
    assert (found.rule, found.place, found.found) == ("attachment_repeated", "turn 2", "a.txt")
    assert "says the same" in found.what
    changed = quoted_file("a.txt", "another text\n" * 9)
    (found,) = chat(service, "b", None, f"{file}\n\nWhat?", f"{changed}\n\nWhat now?")
    assert "another text each time" in found.what
    assert chat(service, "c", None, f"{file}\n\nWhat is it?", "And then?") == []


def test_how_often_a_file_is_attached_is_said_as_people_count() -> None:
    numbers = (1, 2, 3, 4, 11, 13, 21, 22, 33, 101, 111, 112)
    words = "first second third 4th 11th 13th 21st 22nd 33rd 101st 111th 112th"
    assert [ordinal(number) for number in numbers] == words.split()


def test_the_same_instruction_behind_another_file_in_each_chat(service: ChatService) -> None:
    one, two = (quoted_file(f"{name}.txt", f"text of {name}") for name in ("one", "two"))
    assert chat(service, "a", None, f"{one}\n\n{INSTRUCTION}") == []
    (found,) = chat(service, "b", None, f"{two}\n\n{INSTRUCTION}")
    assert (found.rule, found.line) == ("attachment_first", 6)
    assert "1 other chat (a)" in found.what
    assert chat(service, "c", None, f"{INSTRUCTION}\n\n{one}") == []


def test_chats_without_words_and_chats_that_are_gone(service: ChatService) -> None:
    empty = service.create_session("empty")
    assert look.look_at_open(service, None) == []
    assert look.look_at_chat(service, empty) == []
    service.delete(empty.session_id)
    assert look.look_at_open(service, empty) == []


def test_very_long_texts_are_looked_at_once() -> None:
    """By what grows with the square of their length this would take minutes."""
    word, tags = "a1" * 100_000 + "/x", "<file>\n" * 100_000
    assert at(f"Be kind. {word} {RULES}") == []
    assert quoted_files(tags) == []
    assert [file.text for file in quoted_files(f"{tags}<files>\nabc\n</files>")] == ["abc"]


def test_what_begins_like_a_file_and_never_ends_is_none() -> None:
    message = LintMessage("user", "File a.txt:\n```\nnever closed", "turn 1")
    assert list(file_findings([message, replace(message, place="turn 2")], TokenScale())) == []


# The command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_lint(*words: str) -> tuple[int, str, str]:
        code = cli.main(["lint", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_lint


def test_the_command_takes_a_chat_a_file_and_nothing(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = f"{datetime.now():%Y-%m-%d}"
    config = f'[personas.clock]\nsystem = "Today is {today}. Be brief."\n'
    (home / "config.toml").write_text(config)
    with compose.opened_service(load_settings(), has_engine=False) as service:
        service.create_session("notes", f"It is {today}. Be brief.")
    monkeypatch.chdir(home)
    (home / "notes").write_text("Be brief.")
    (home / "system.txt").write_text(f"Be brief. It is {today}.")
    found = {words: json.loads(run(*words, "--json")[1])["findings"] for words in TARGETS}
    assert [finding["subject"] for finding in found[()]] == ["config.toml", "notes"]
    assert [finding["place"] for finding in found[("notes",)]] == ["system prompt"]
    assert found[("./notes",)] == []  # the file of that name
    assert [finding["column"] for finding in found[("system.txt",)]] == [17]
    assert run("notes")[0] == 0
    assert run("notes", "--strict")[0] == 5
    assert run("./notes", "--strict") == (0, "Nothing was found that makes a prefix change.\n", "")


TARGETS: tuple[tuple[str, ...], ...] = ((), ("notes",), ("./notes",), ("system.txt",))


def test_what_is_not_there_or_not_right_has_its_code(run: Run, tmp_path: Path) -> None:
    code, _, told = run("no-such-thing")
    assert (code, "no session and no file 'no-such-thing'" in told) == (3, True)
    assert run("--nonsense")[0] == 2
    assert run(str(tmp_path))[0] == 2  # a directory
    (tmp_path / "a.json").write_text("{}")
    code, out, told = run(str(tmp_path / "a.json"))
    assert (code, out, "has no messages" in told) == (2, "", True)
    assert run(str(tmp_path / "missing.txt"))[0] == 3


def test_an_exported_chat_is_a_file_like_others(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    today = f"{datetime.now():%Y-%m-%d}"
    with compose.opened_service(load_settings(), has_engine=False) as service:
        service.create_session("notes", f"It is {today}. Be brief.")
    for words in (("notes",), ("--all",)):
        assert cli.main(["sessions", "export", *words]) == 0
        (tmp_path / "e.json").write_text(capsys.readouterr().out)
        (found,) = json.loads(run(str(tmp_path / "e.json"), "--json")[1])["findings"]
        assert (found["rule"], found["place"]) == ("date", "notes, message 1 (system)")


# The panel


def test_the_line_of_the_panel_fits_and_is_there_only_with_a_finding() -> None:
    assert panel_line([]) == ""
    finding = LintFinding("date", "system prompt", "what", "do", cost_tokens=5)
    dear = replace(finding, rule="template_rewrites", cost_tokens=90)
    assert panel_line([finding, dear]) == f"{RULE_WORDS['template_rewrites']} (+1)"
    for rule in RULE_WORDS:
        words = panel_line([replace(finding, rule=rule)])
        shown = drawing.lines(PanelState(lint=words), 34, 0.0)
        (line,) = ["".join(p.text for p in line) for line in shown if "/lint" in str(line)]
        assert width(line) <= 34
        assert RULE_WORDS[rule] in line
    assert not any("/lint" in str(line) for line in drawing.lines(PanelState(), 34, 0.0))


def test_the_panel_of_one_line_names_the_command_where_there_is_a_finding() -> None:
    figures = past(2, "new_user_turn", 4, 90).figures
    for words, is_there in (("date in system prompt", True), ("", False)):
        line = drawing.compact_line(PanelState(figures=figures, lint=words), 60)
        assert ("! /lint" in "".join(piece.text for piece in line)) is is_there
