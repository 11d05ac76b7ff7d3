"""The model picker, switching, and downloads that are called off."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from chatcache.assets import pocket_dir
from chatcache.backends.base import ModelLoading
from chatcache.backends.local.model import hub_files, resolve, shelf
from chatcache.backends.local.model.hub_files import HubModel
from chatcache.backends.switching import SwitchingBackend
from chatcache.errors import ModelLoadError
from chatcache.frontend.form_shelf import FormShelf
from chatcache.frontend.model_choice import ModelChoice
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.forms import FormScreen
from chatcache.tui.screens.models import ModelScreen
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.bars import FirstRunBar
from tests.fakes import FakeBackend
from tests.gguf_files import small_header
from tests.tui.conftest import NARROW, Bench, Chat


class Shop:
    """Makes a fake backend for each model that is switched to."""

    def __init__(self, bench: Bench) -> None:
        self.made: list[FakeBackend] = []
        self.broken = ""
        bench.backend = SwitchingBackend(self.make, "builtin")  # type: ignore[assignment]
        bench.backend.is_started = False

    def make(self, model: str) -> FakeBackend:
        error = ModelLoadError("The weights are broken.", "") if model == self.broken else None
        backend = FakeBackend(model=model, load_error=error, starts_ready=model != "slow/model")
        if model == "slow/model":
            backend.gate("load")
        self.made.append(backend)
        return backend


@pytest.fixture
def shop(bench: Bench) -> Shop:
    return Shop(bench)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Another model on this machine."""
    shutil.copytree(pocket_dir(), tmp_path / "other")
    return str(tmp_path / "other")


async def open_picker(chat: Chat) -> None:
    await chat.press("f5")
    await chat.until(lambda: isinstance(chat.app.screen, ModelScreen) and "● builtin" in chat.text)


async def test_the_picker_shows_the_model_in_use_and_switches(
    bench: Bench, shop: Shop, directory: str
) -> None:
    async with bench.run() as chat:
        await chat.say("one", f"/model {directory}", "two", "/model builtin", "three")
        assert [one.info.model for one in shop.made] == ["builtin", directory, "builtin"]
        assert [one.is_closed for one in shop.made] == [True, True, False]
        assert any("The K and V of builtin stay" in toast for toast in chat.toasts)
        await open_picker(chat)
        assert "context of" in chat.text
        await chat.press("down")
        await chat.until(lambda: "read anew by it, once" in chat.text)
        await chat.press("enter")
        await chat.idle()
        assert chat.users == ["one", "two", "three"]
        assert shop.made[-1].info.model == directory


async def test_the_model_in_use_is_not_loaded_again(bench: Bench, shop: Shop) -> None:
    async with bench.run(NARROW) as chat:
        await open_picker(chat)
        await chat.press("enter")
        await chat.idle()
        assert len(shop.made) == 1
        assert any("is the model already" in toast for toast in chat.toasts)


async def test_a_name_that_means_nothing_is_refused(bench: Bench, shop: Shop) -> None:
    async with bench.run() as chat:
        await chat.say("/model bulitin", "/model /nowhere/at/all")
        assert "Did you mean 'builtin'?" in chat.notices[0]
        assert "does not exist" in chat.notices[1]
        assert len(shop.made) == 1


async def test_a_model_that_fails_is_left_again(bench: Bench, shop: Shop, directory: str) -> None:
    shop.broken = directory
    async with bench.run() as chat:
        await chat.say(f"/model {directory}")
        await chat.until(lambda: len(shop.made) == 3 and chat.screen.status.is_ready)
        assert "The weights are broken." in chat.notices[-1]
        assert shop.made[-1].info.model == "builtin"
        await chat.say("one")
        assert chat.answers == ["You said: one"]


async def test_a_download_is_asked_for_shown_and_called_off(
    bench: Bench, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "model_on_hub", lambda name: HubModel(name, name, 1_500_000_000))
    monkeypatch.setattr(resolve, "resolve_model", lambda name, is_offline: name)
    async with bench.run() as chat:
        await open_picker(chat)
        await chat.press(*"slow/model")
        await chat.until(lambda: "to be downloaded" in chat.text)
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, ConfirmScreen))
        assert "Download slow/model?" in chat.text
        assert "1.5 GB from the hub" in chat.text
        await chat.press("y")
        await chat.until(lambda: len(shop.made) == 2)
        shop.made[1].emit(ModelLoading("downloading slow/model", 300_000_000, 1_500_000_000))
        await chat.until(lambda: "300 MB / 1.5 GB" in chat.status)
        assert "Esc stops" in chat.status
        await chat.press("escape")
        await chat.until(lambda: len(shop.made) == 3 and chat.screen.status.is_ready)
        assert shop.made[1].is_closed
        assert chat.screen.status.info == shop.made[2].info


async def test_a_model_is_made_the_one_of_every_start(
    bench: Bench, shop: Shop, directory: str
) -> None:
    chosen: list[tuple[str, ...]] = []
    async with bench.run(keep_setting=lambda *setting: chosen.append(setting)) as chat:
        await open_picker(chat)
        await chat.press("f6")
        await chat.until(lambda: "builtin is loaded at every start from now on." in chat.text)
        assert chosen == [("model.default", "builtin")]
        await chat.press(*"qwen3-0.6")
        await chat.until(lambda: "about 1.5 GB" in chat.text)
        await chat.press("f6")
        await chat.until(lambda: "Only a model that is on this machine" in chat.text)
        assert chosen == [("model.default", "builtin")]
        await chat.press("escape")


async def test_the_first_run_offers_another_model(
    bench: Bench, shop: Shop, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [
        shelf.ShelfModel("builtin", "built in"),
        shelf.ShelfModel("org/some-model", "hub", num_bytes=1_500_000_000),
        shelf.ShelfModel("org/other", "hub"),
        shelf.ShelfModel("org/broken", "hub", problem="half of it is missing"),
    ]
    monkeypatch.setattr(shelf, "shelf", lambda *_: here)
    async with bench.run() as chat:
        bar = chat.screen.query_one(FirstRunBar)
        await chat.until(lambda: bar.display)
        assert (
            "F5 picks another: org/some-model is on this machine (1.5 GB), and 1 more" in chat.text
        )
        await chat.press("escape")
        assert not bar.display
    monkeypatch.setattr(shelf, "shelf", lambda *_: here[:1])
    async with bench.run(NARROW) as chat:
        bar = chat.screen.query_one(FirstRunBar)
        await chat.until(lambda: bar.display)
        assert "a download, or a directory" in chat.text
        await chat.say("hello")
        assert not bar.display
    async with bench.run() as chat:
        await chat.until(lambda: chat.users == ["hello"])
        assert not chat.screen.query_one(FirstRunBar).display


async def test_without_a_network_nothing_is_asked(bench: Bench, shop: Shop) -> None:
    async with bench.run(is_offline=True) as chat:
        await chat.say("/model org/some-model")
        assert "the network is switched off" in chat.notices[0]
        assert len(shop.made) == 1


async def test_an_engine_that_cannot_be_exchanged_says_so(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("/model other")
        assert "cannot be changed here" in chat.notices[0]


def test_the_time_left_comes_from_what_was_fetched() -> None:
    status = BackendStatus()
    for now, done in ((0.0, 0), (1.0, 10)):
        status.absorb(ModelLoading("downloading x", done, 100), now)
        assert status.seconds_left is None
    status.absorb(ModelLoading("downloading x", 40, 100), 4.0)
    assert status.seconds_left == pytest.approx(6.0)
    status.absorb(ModelLoading("reading the weights", 1, 2), 5.0)
    assert status.seconds_left is None


async def test_models_of_other_programs_are_named_or_say_why_not(
    bench: Bench, shop: Shop, home: Path
) -> None:
    folder = home / "llama.cpp"
    folder.mkdir()
    (folder / "tiny-Q4_0.gguf").write_bytes(small_header().file_bytes())
    async with bench.run() as chat:
        await open_picker(chat)
        await chat.until(lambda: "tiny-Q4_0" in chat.text and "llama.cpp" in chat.text)
        await chat.press(*"ollama:gone")
        await chat.until(lambda: "no 'gone:latest' on this machine" in chat.text)
        await chat.press("enter")
        await chat.until(lambda: "ollama pull gone:latest" in chat.text)
        await chat.press("escape")
        await chat.say(f"/model {folder}")
        assert shop.made[-1].info.model == str(folder)


async def test_a_form_in_few_bits_is_chosen_from_the_picker(
    bench: Bench, shop: Shop, directory: str, tmp_path: Path
) -> None:
    async with bench.run(forms=FormShelf(tmp_path / "cache")) as chat:
        await chat.say(f"/model {directory}")
        await chat.press("f5")
        await chat.until(lambda: "● other" in chat.text)
        await chat.press("f7")
        await chat.until(lambda: isinstance(chat.app.screen, FormScreen) and "● exact" in chat.text)
        await chat.press("down", "down")
        await chat.until(lambda: "Made once" in chat.text)
        assert "a quarter of the memory" in chat.text
        assert "other needs about" in chat.text
        await chat.press("enter")
        await chat.idle()
        assert shop.made[-1].info.model == f"{directory}:4bit"
        await chat.say(f"/model {directory}:4bit")
        assert any("is the model already" in toast for toast in chat.toasts)


async def test_what_has_no_other_forms_says_so(bench: Bench, shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(small_header().file_bytes())
    async with bench.run(forms=FormShelf(tmp_path / "cache")) as chat:
        await open_picker(chat)
        await chat.press(*str(file), "f7")
        await chat.until(lambda: "Only models of safetensors" in chat.text)
        await chat.press("escape")
        await chat.say(f"/model {file}:4bit")
        assert "used as its file has it" in chat.notices[-1]
        assert len(shop.made) == 1


async def test_the_form_that_is_in_use_is_marked_whatever_it_was_called(
    bench: Bench, shop: Shop, directory: str, tmp_path: Path
) -> None:
    async with bench.run(forms=FormShelf(tmp_path / "cache")) as chat:
        await chat.say(f"/model {directory}")
        info = replace(shop.made[-1].info, quantization="4bit")
        choice = ModelChoice(chat.service, None, FormShelf(tmp_path / "cache"))
        assert choice.current(info) == f"{directory}:4bit"
        assert choice.is_in_use(f"{directory}:4bit", info)
        assert not choice.is_in_use(f"{directory}:8bit", info)
