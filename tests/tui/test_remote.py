"""Servers on the screen: the picker, a turn, what the panel says, and the way back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from chatcache.backends.base import Backend
from chatcache.backends.remote.backend import RemoteBackend
from chatcache.backends.switching import SwitchingBackend
from chatcache.remotes import Prices, RemoteProfile, remote_model
from chatcache.tui.screens.models import ModelScreen
from tests.fake_server import FakeServer, Status, Stream
from tests.fakes import FakeBackend
from tests.tui.conftest import NARROW, Bench, Chat


class Shop:
    """Makes a fake engine for models of this machine, and the real thing for servers."""

    def __init__(self, bench: Bench, server: FakeServer) -> None:
        self.server = server
        self.remotes = {
            "prof": RemoteProfile("prof", server.base_url, prices=Prices(1.0, 0.5, 2.0)),
            "gone": RemoteProfile("gone", "http://127.0.0.1:9/v1", model="x"),
        }
        self.made: list[Backend] = []
        bench.backend = SwitchingBackend(self.make, "builtin")  # type: ignore[assignment]
        bench.backend.is_started = False

    def make(self, model: str) -> Backend:
        remote = remote_model(model, self.remotes)
        made = (
            FakeBackend(model=model, starts_ready=True) if remote is None else RemoteBackend(remote)
        )
        self.made.append(made)
        return made


@pytest.fixture
def shop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeServer(models=[{"id": "m", "max_model_len": 4096}, {"id": "n:7b"}]) as server:
        yield Shop(bench, server)
        bench.close()


async def ready(chat: Chat, model: str) -> None:
    await chat.until(
        lambda: chat.screen.status.is_ready and chat.screen.status.info.model == model  # type: ignore[union-attr]
    )
    await chat.idle()


async def test_the_picker_asks_servers_and_a_chat_goes_there_and_back(
    bench: Bench, shop: Shop
) -> None:
    async with bench.run(remotes=shop.remotes) as chat:
        await chat.say("one")
        await chat.press("f5")
        await chat.until(lambda: isinstance(chat.app.screen, ModelScreen))
        await chat.until(lambda: "prof:n:7b" in chat.text and "Nothing listens" in chat.text)
        assert "prof:m" in chat.text
        assert " prof: " not in chat.text
        await chat.press(*"prof:m")
        await chat.until(lambda: "gets your messages" in chat.text)
        await chat.press("enter")
        await ready(chat, "prof:m")
        assert any("The K and V of builtin stay" in toast for toast in chat.toasts)
        await chat.say("two", "three")
        assert chat.answers[1:] == ["You said: two", "You said: three"]
        assert [one["content"] for one in shop.server.chats[0].body["messages"]] == [
            "one", "You said: one", "two",
        ]  # fmt: skip
        assert "○ server · 14 prompt, 8 cached · TTFT" in chat.footers[-1]
        for words in ("SERVER  57.1 % cached", "by the server", "COST", "4,096 tokens"):
            assert words in chat.text
        await chat.press("f5")
        await chat.until(lambda: "Nothing listens" in chat.text and "prof:n:7b" in chat.text)
        assert chat.text.count("● prof:m ") == 1
        await chat.press("escape")
        await chat.say("/model builtin", "four")
        await ready(chat, "builtin")
        assert chat.users == ["one", "two", "three", "four"]
        assert not any("K and V of prof" in toast for toast in chat.toasts)
        engine = shop.made[-1]
        assert isinstance(engine, FakeBackend)
        assert engine.requests[-1].journal  # what it had read of this chat is still known
        assert "CACHE  " in chat.text


async def test_the_first_run_offers_a_server_that_is_set_up(bench: Bench, shop: Shop) -> None:
    async with bench.run(remotes={"prof": replace(shop.remotes["prof"], model="m")}) as chat:
        await chat.until(lambda: "F5 picks another: prof:m at a server of yours" in chat.text)
        assert shop.server.asked == []


async def test_what_only_this_machine_has_is_said_plainly(bench: Bench, shop: Shop) -> None:
    async with bench.run(remotes=shop.remotes) as chat:
        await chat.say("/model prof:m")
        await ready(chat, "prof:m")
        await chat.until(
            lambda: "SERVER" in chat.text and "prof:m is ready at 127.0.0.1" in chat.text
        )
        await chat.say("one", "/spill", "/stats")
        assert "No model of this machine is loaded." in chat.notices[0]
        assert "prompt tokens at servers" in chat.notices[1]
        await chat.say("/model prof:m")
        assert any("is the model already" in toast for toast in chat.toasts)
        for command in ("/segments", "/lens"):
            await chat.type(command)
            await chat.press("enter")
            await chat.until(lambda: len(chat.app.screen_stack) > 1)
            await chat.press("escape")
            await chat.idle()
        assert any("keeps its own cache" in toast for toast in chat.toasts)
        assert any("only the server knows" in toast for toast in chat.toasts)


async def test_a_server_elsewhere_is_named_once(
    bench: Bench, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteProfile, "is_loopback", property(lambda profile: False))
    async with bench.run(remotes=shop.remotes) as chat:
        await chat.say("/model prof:m")
        await ready(chat, "prof:m")
        await chat.say("/model prof:n:7b")
        await ready(chat, "prof:n:7b")
        told = [one for one in chat.notices if "Your messages go to 127.0.0.1" in one]
        assert len(told) == 1
        assert "not encrypted" in told[0]
    async with bench.run(remotes=shop.remotes, is_offline=True) as chat:
        await chat.say("/model prof:m")
        assert "the network is switched off" in chat.notices[-1]


async def test_a_server_that_is_gone_is_left_again(bench: Bench, shop: Shop) -> None:
    async with bench.run(remotes=shop.remotes) as chat:
        await chat.say("/model gone:x")
        await ready(chat, "builtin")
        assert any("Nothing listens at 127.0.0.1:9" in one for one in chat.notices)
        await chat.say("one", "/model porf:m")
        assert chat.answers == ["You said: one"]
        assert "Did you mean 'prof'?" in chat.notices[-1]


async def test_a_remote_turn_is_stopped_and_fails_in_words(bench: Bench, shop: Shop) -> None:
    async with bench.run(NARROW, remotes=shop.remotes) as chat:
        await chat.say("/model prof:m")
        await ready(chat, "prof:m")
        gate = threading.Event()
        shop.server.plan(Stream("one two three four", gate=gate, gate_at=2))
        await chat.type("go")
        await chat.press("enter")
        await chat.until(lambda: chat.answers and "two" in chat.answers[0])
        await chat.press("escape")
        await chat.idle()
        gate.set()
        assert chat.answers == ["one two "]
        assert "stopped, /continue goes on" in chat.footers[-1]
        shop.server.plan(Status(429, {"error": {"message": "quota"}}))
        await chat.say("again")
        assert "takes no more requests for now (429). It says: quota." in chat.notices[-1]
        assert "/regen answers it" in chat.notices[-1]
        await chat.say("/regen")
        assert chat.answers[-1] == "You said: again"
        assert "○ server" in chat.text


async def test_what_a_server_keeps_to_itself_is_shown(bench: Bench, shop: Shop) -> None:
    """Thoughts that it does not mark are folded away in the end; a silent cut is said once."""
    for num_tokens in (4096, 4096, 4096):
        usage = {"prompt_tokens": num_tokens, "completion_tokens": 3}
        pieces = ["hm, let ", "me see</think>", "Yes.", {"choices": [], "usage": usage}]
        shop.server.plan(Stream(pieces, has_usage=False))
    async with bench.run(remotes=shop.remotes) as chat:
        await chat.press("f5")
        await chat.until(lambda: "prof:n:7b" in chat.text)
        await chat.press(*"prof:m", "enter")
        await ready(chat, "prof:m")
        await chat.say("one", "two", "three")
        assert chat.answers == ["Yes."] * 3
        await chat.until(lambda: "thought, 4 words" in chat.text)
        assert chat.text.count("read only 4,096 tokens") == 1


async def test_an_answer_that_cannot_go_on_stays_as_it_is(bench: Bench, shop: Shop) -> None:
    refusal = "Assistant response prefill is incompatible with enable_thinking."
    half = "Half an answer, and then"
    other = "Half an answer, to begin with."
    shop.server.plan(
        Stream(half, finish=None, ends="close"),
        *[Status(400, {"error": {"message": refusal}})] * 2,
        Stream(other),
    )
    async with bench.run(remotes=shop.remotes) as chat:
        await chat.say("/model prof:m")
        await ready(chat, "prof:m")
        await chat.say("one", "/continue")
        assert "does not go on in the middle of an answer (400). It says" in chat.notices[-1]
        assert "`/regen` answers anew" in chat.notices[-1]
        assert chat.answers == [half]
        await chat.say("/continue")
        assert "wrote another answer instead of going on" in chat.notices[-1]
        assert chat.answers == [half]
        shop.server.plan(Stream([" it goes on."]))
        await chat.say("/continue")
        assert chat.answers == [f"{half} it goes on."]
