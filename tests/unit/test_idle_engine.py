"""Idle work on real engines with tiny float32 models: in this process, and in one of its own."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import (
    BackendEvent,
    ChatMessage,
    IdleKind,
    Prepare,
    Prepared,
    SamplingParams,
    TurnEvent,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.process import build_runner
from chatcache.backends.local.engine.server import Runner
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.files.segfile import SegmentFile
from chatcache.token_ids import NO_IDS, TokenIds
from tests.models import build_model_dir
from tests.templates import BY_NAME

SECONDS = 120.0
LONG = "What is the answer? " + "The key and the value of every token are kept. " * 12
SECRET = "zebra quince jackal vortex"
_ids = itertools.count()

Talker = Callable[..., "Talk"]
Build = Callable[[str], Path]


class Here:
    """An engine in this process."""

    def __init__(self, settings: EngineSettings) -> None:
        self._runner: Runner | None = build_runner(settings, lambda event: None)

    def ask(self, request: TurnRequest) -> Iterator[TurnEvent]:
        assert self._runner is not None
        return self._runner.run(request, threading.Event())

    def prepare(self, request: Prepare, max_steps: int | None = None) -> Prepared:
        """Do the work; after `max_steps` it is not wanted any more."""
        assert self._runner is not None
        steps = itertools.count()
        work = self._runner.prepare(request, lambda: max_steps is None or next(steps) < max_steps)
        while True:
            try:
                next(work)
            except StopIteration as end:
                prepared: Prepared = end.value
                return prepared

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None


@dataclass
class Talk:
    """A conversation with one engine, its messages and journal kept as the chat service does."""

    engine: Any
    messages: list[ChatMessage] = field(default_factory=list)
    journal: TokenIds = NO_IDS

    def fork(self, engine: Any = None) -> Talk:
        return Talk(engine or self.engine, list(self.messages), self.journal)

    def request(self, text: str) -> TurnRequest:
        return TurnRequest(
            f"t{next(_ids)}",
            (*self.messages, ChatMessage("user", text)),
            self.journal,
            sampling=SamplingParams(temperature=0.0, max_new_tokens=12),
        )

    def ahead(self, kind: IdleKind, text: str = "") -> Prepare:
        return Prepare(f"p{next(_ids)}", kind, self.request(text))

    def prepare(self, kind: IdleKind, text: str = "") -> Prepared:
        prepared: Prepared = self.engine.prepare(self.ahead(kind, text))
        return prepared

    def say(self, text: str) -> tuple[TurnPlanned, TurnResult]:
        request = self.request(text)
        events = list(self.engine.ask(request))
        planned, last = events[0], events[-1]
        assert isinstance(planned, TurnPlanned), planned
        assert isinstance(last, TurnFinished), last
        prompt = self.journal[: planned.keep] + planned.new_ids
        self.journal = prompt + last.result.answer_ids
        answer = ChatMessage("assistant", last.result.text, last.result.reasoning)
        self.messages = [*request.messages, answer]
        return planned, last.result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Build:
    made: dict[str, Path] = {}

    def build(shape: str) -> Path:
        if shape not in made:
            place = tmp_path_factory.mktemp("models") / shape
            made[shape] = build_model_dir(place, tokenizer=BY_NAME[shape].tokenizer())
        return made[shape]

    return build


@pytest.fixture
def talk(model: Build, tmp_path: Path) -> Iterator[Talker]:
    """Opens engines; with the same `cache` name one after the other, as restarts do."""
    opened: list[Here] = []

    def open_(shape: str = "chatml", cache: str = "cache", **settings: Any) -> Talk:
        for engine in opened:
            engine.close()
        options = {"num_threads": 1, "prefill_chunk_tokens": 16, **settings}
        place, log = tmp_path / cache, tmp_path / "engine.log"
        opened.append(Here(EngineSettings(str(model(shape)), place, log, **options)))
        return Talk(opened[-1])

    yield open_
    for engine in opened:
        engine.close()


def computed_text(shape: str, planned: TurnPlanned, talk: Talk) -> str:
    """What the last turn had to compute, as text."""
    prompt = talk.journal[: planned.prompt_tokens]
    start = planned.cached_ram_tokens + planned.cached_disk_tokens
    return str(BY_NAME[shape].tokenizer().decode(prompt[start:]))


@pytest.mark.parametrize("shape", ["qwq", "qwen3-thinking", "r1"])
def test_after_idle_work_only_the_new_message_is_computed(talk: Talker, shape: str) -> None:
    plain = talk(shape, cache="other")
    plain.say(LONG)
    wanted = plain.say("And then?")[1]
    assert wanted.cache.reason != "new_user_turn"
    one = talk(shape)
    one.say(LONG)
    before = one.fork()
    prepared = one.prepare("next_turn")
    planned, result = one.say("And then?")
    text = computed_text(shape, planned, one)
    assert "And then?" in text
    assert text.index("And then?") <= len("user\n")
    assert result.cache.reason == "new_user_turn"
    assert result.cache.ahead_tokens == prepared.tokens_prefilled > 0
    assert result.text == wanted.text
    again = before.fork(talk(shape).engine)
    planned, resumed = again.say("And then?")
    assert computed_text(shape, planned, again) == text
    assert resumed.cache.reason == "new_user_turn"
    assert resumed.usage.cached_disk_tokens == planned.cached_disk_tokens > 0
    assert resumed.text == wanted.text


def test_work_that_was_broken_off_is_gone_on_with(talk: Talker) -> None:
    one = talk("mistral")  # whose template moves the system prompt: all is read again
    one.messages = [ChatMessage("system", "Be brief. " * 20)]
    one.say(LONG)
    request = one.ahead("next_turn")
    first = one.engine.prepare(request, max_steps=3)
    assert first.was_cancelled
    assert first.tokens_prefilled > 0
    rest = one.engine.prepare(request)
    assert not rest.was_cancelled
    assert rest.tokens_prefilled > 0
    again = one.engine.prepare(request)
    assert (again.tokens_prefilled, again.tokens_restored) == (0, 0)
    planned, result = one.say("And then?")
    assert planned.prompt_tokens - planned.cached_ram_tokens < 40
    assert result.cache.ahead_tokens >= rest.tokens_prefilled


def test_a_turn_uses_what_was_broken_off_too(talk: Talker) -> None:
    one = talk("mistral")
    one.messages = [ChatMessage("system", "Be brief. " * 20)]
    one.say(LONG)
    first = one.engine.prepare(one.ahead("next_turn"), max_steps=3)
    assert one.say("And then?")[1].cache.ahead_tokens == first.tokens_prefilled > 0


def test_a_template_that_extends_cleanly_needs_nothing(talk: Talker) -> None:
    one = talk()
    one.say(LONG)
    assert one.prepare("next_turn").tokens_prefilled == 0


def test_a_message_that_was_typed_slowly_is_nearly_computed_when_it_is_sent(talk: Talker) -> None:
    one = talk()
    one.say(LONG)
    plain = one.fork()
    for stop in range(40, len(LONG), 40):
        last = one.prepare("draft", LONG[:stop].rpartition(" ")[0])
        assert not last.was_cancelled
    planned, result = one.say(LONG)
    assert planned.prompt_tokens - planned.cached_ram_tokens < 40
    assert result.cache.ahead_tokens > 100
    assert result.text == plain.say(LONG)[1].text


def test_a_draft_finishes_the_work_on_the_history_and_that_is_kept(talk: Talker) -> None:
    one = talk("qwq")
    one.say(LONG)
    before = one.fork()
    one.prepare("draft", "Is it there")
    again = before.fork(talk("qwq").engine)
    planned, _ = again.say("Something else.")
    assert computed_text("qwq", planned, again).startswith("user\nSomething else.")


def test_a_draft_that_became_something_else_costs_nothing_but_time(talk: Talker) -> None:
    plain = talk(cache="other")
    plain.say(LONG)
    wanted = plain.say("Why?")[1].text
    one = talk()
    one.say(LONG)
    one.prepare("draft", SECRET)
    assert one.say("Why?")[1].text == wanted


@pytest.mark.parametrize("spill", ["turn", "exit", "pressure"])
def test_what_is_not_sent_is_never_written(talk: Talker, tmp_path: Path, spill: Any) -> None:
    policy = TierPolicy(spill=spill)
    one = talk("qwq", policy=policy, ram_budget=1 if spill == "pressure" else 1 << 30)
    one.say(LONG)
    one.prepare("draft", f"Is it {SECRET}?")
    one.say("Is it there? Why?")
    one.prepare("draft", f"{SECRET} and {SECRET}")
    one.engine.close()
    secret = BY_NAME["qwq"].tokenizer().encode(f" {SECRET}", add_special_tokens=False)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert files
    for path in files:
        with SegmentFile(path) as segment:
            assert TokenIds(secret) not in segment.header.token_ids
    words = SECRET.split()
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or words[0].encode() not in path.read_bytes()


def test_a_highlighted_chat_is_brought_back_from_disk(talk: Talker) -> None:
    one = talk()
    one.say(LONG)
    again = one.fork(talk().engine)
    prepared = again.prepare("restore")
    assert prepared.tokens_restored == len(one.journal)
    assert prepared.tokens_prefilled == 0
    planned, _ = again.say("Why?")
    assert planned.cached_disk_tokens == 0
    assert planned.cached_ram_tokens == len(one.journal)
    messages = [*one.messages[:1], ChatMessage("assistant", "No.")]
    unknown = Talk(again.engine, messages, TokenIds((1, 2, 3)))
    assert unknown.prepare("restore").tokens_restored == 0


def test_a_highlight_does_not_give_up_what_could_not_be_brought_back(talk: Talker) -> None:
    one = talk(policy=TierPolicy(spill="never"))
    one.say(LONG)
    other = one.fork(talk(ram_budget=1, policy=TierPolicy(spill="never")).engine)
    other.say("Something else. " + LONG)
    held = len(other.journal)
    one.fork(other.engine).prepare("restore")
    assert other.say("Why?")[0].cached_ram_tokens == held


# In a process of its own


@pytest.fixture(scope="module")
def backend(model: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    place = tmp_path_factory.mktemp("process")
    options: dict[str, Any] = {"num_threads": 1, "prefill_chunk_tokens": 16}
    settings = EngineSettings(str(model("chatml")), place / "cache", place / "log", **options)
    backend = LocalBackend(settings)
    yield backend
    backend.close()


@pytest.fixture
def prepared(backend: LocalBackend) -> Iterator[queue.SimpleQueue[Prepared]]:
    """What the engine says of its idle work."""
    events: queue.SimpleQueue[Prepared] = queue.SimpleQueue()

    def listen(event: BackendEvent) -> None:
        if isinstance(event, Prepared):
            events.put(event)

    unsubscribe = backend.subscribe(listen)
    backend.wait_ready(SECONDS)
    yield events
    unsubscribe()


Events = queue.SimpleQueue[Prepared]


def test_a_message_overtakes_idle_work(
    backend: LocalBackend, prepared: Events, talk: Talker
) -> None:
    plain = talk()
    plain.say(LONG)
    wanted = plain.say("Why?")[1].text
    one = Talk(backend)
    one.say(LONG)
    assert backend.prepare(one.ahead("draft", LONG * 20))
    planned, result = one.say("Why?")
    assert prepared.get_nowait().was_cancelled
    assert planned.prompt_tokens - planned.cached_ram_tokens < 40
    assert result.text == wanted


def test_new_idle_work_takes_the_place_of_the_old_and_cancelling_ends_it(
    backend: LocalBackend, prepared: Events
) -> None:
    one = Talk(backend)
    one.say(LONG)
    backend.prepare(one.ahead("draft", LONG * 20))
    backend.prepare(one.ahead("draft", LONG * 20))
    backend.cancel_prepare()
    assert prepared.get(timeout=SECONDS).was_cancelled
    assert prepared.get(timeout=SECONDS).was_cancelled
    backend.prepare(one.ahead("draft", "Is it there?"))
    assert not prepared.get(timeout=SECONDS).was_cancelled


def test_no_idle_work_while_a_turn_runs(backend: LocalBackend, prepared: Events) -> None:
    one = Talk(backend)
    events = backend.ask(one.request(LONG))
    events.get()
    assert not backend.prepare(one.ahead("draft", "Why?"))
    for _ in events:
        pass
    assert backend.prepare(one.ahead("draft", "Why?"))
    prepared.get(timeout=SECONDS)


def test_closing_does_not_wait_for_idle_work(backend: LocalBackend, prepared: Events) -> None:
    one = Talk(backend)
    one.say(LONG)
    backend.prepare(one.ahead("draft", LONG * 60))
    backend.close()
    assert prepared.empty() or prepared.get_nowait().was_cancelled
