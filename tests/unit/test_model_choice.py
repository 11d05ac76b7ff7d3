"""Which models can be chosen, what choosing one means, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.assets import pocket_dir
from chatcache.backends.local.model import hub_files, resolve
from chatcache.backends.local.model.hub_files import HubModel
from chatcache.backends.switching import SwitchingBackend
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.errors import NotFoundError, UnavailableError
from chatcache.frontend.model_choice import TO_FETCH, ModelChoice
from chatcache.remotes import RemoteProfile
from tests.fakes import FakeBackend, fake_model_info

FAR = RemoteProfile(name="far", base_url="https://far.example/v1")
KEPT = "The K and V of builtin stay, and serve again when you switch back."


@pytest.fixture(autouse=True)
def _empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(resolve, "_is_hub_offline", lambda: False)


def make(model: str) -> FakeBackend:
    if model == "broken":
        raise NotFoundError("There is no such model.", "")
    return FakeBackend(model=model, starts_ready=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ChatService]:
    backend = SwitchingBackend(make, "builtin")
    with ChatService(SessionStore(tmp_path / "chats.db"), backend) as service:
        backend.start()
        yield service


@pytest.fixture
def models(service: ChatService) -> ModelChoice:
    return ModelChoice(service, {"far": FAR})


def test_an_engine_that_cannot_be_exchanged_says_so(tmp_path: Path) -> None:
    with ChatService(SessionStore(tmp_path / "chats.db"), FakeBackend()) as service:
        models = ModelChoice(service)
        assert not models.can_switch
        assert models.first_offers() == []
        with pytest.raises(UnavailableError, match="cannot be changed here"):
            models.switch("builtin")


def test_what_there_is_names_this_machine_and_the_servers(models: ModelChoice) -> None:
    names = [model.name for model in models.at_hand()]
    assert names[0] == "builtin"
    assert "far:" in names
    assert [model.name for model in models.first_offers()] == names
    assert models.named("far:big").place == "server"
    assert models.named("some/model").problem == TO_FETCH


def test_without_a_network_nothing_is_suggested(service: ChatService) -> None:
    assert ModelChoice(service).suggested([])
    offline = ModelChoice(service, {"far": FAR}, is_offline=True)
    assert offline.suggested([]) == []
    with pytest.raises(UnavailableError, match="network is switched off"):
        offline.must_download("far:big")


def test_a_name_is_looked_up_before_anything_is_left(
    models: ModelChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pocket_dir(), tmp_path / "other")
    assert not models.must_download(str(tmp_path / "other"))
    assert not models.must_download("far:big")
    assert models.must_download("some/model")
    with pytest.raises(NotFoundError, match="bulitin"):
        models.must_download("bulitin")
    monkeypatch.setattr(hub_files, "model_on_hub", lambda name: HubModel(name, name, 1_500_000_000))
    download = models.download("some/model")
    assert download.question == "Download some/model?"
    assert download.detail.startswith("1.5 GB from the hub; ")


def test_a_switch_tells_what_is_kept_when_it_is_ready(
    models: ModelChoice, service: ChatService
) -> None:
    assert models.consequence(0) == KEPT
    assert models.consequence(1200).startswith(
        "1,200 tokens of this chat are read anew by it, once."
    )
    assert models.ready(fake_model_info("builtin")) == ""
    models.switch("other")
    assert models.is_in_use("other", None)
    assert models.ready(fake_model_info("other")) == (f"other answers from now on. {KEPT}")
    assert models.way_back() is None


def test_a_model_that_fails_is_left_again(models: ModelChoice) -> None:
    models.switch("other")
    back = models.way_back()
    assert back is not None
    assert models.way_back() is None
    back()
    assert models.current(None) == "builtin"
    assert models.ready(fake_model_info("builtin")) == ""


def test_a_switch_that_is_refused_leaves_no_way_back(models: ModelChoice) -> None:
    with pytest.raises(NotFoundError):
        models.switch("broken")
    assert models.current(None) == "builtin"
    assert models.way_back() is None


def test_a_server_keeps_its_cache_by_itself(models: ModelChoice) -> None:
    models.switch("far:big")
    models.ready(fake_model_info("big"))
    assert models.consequence(0) == ""
    models.switch("far:")
    assert models.current(fake_model_info("far:small")) == "far:small"
    assert models.is_in_use("far:small", fake_model_info("far:small"))


def test_the_model_in_use_is_found_by_its_whole_path(
    models: ModelChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        (tmp_path / f"Big-0000{number}-of-00002.gguf").touch()
    models.switch("Big-00002-of-00002.gguf")
    assert models.current(None) == str(tmp_path / "Big-00001-of-00002.gguf")
    assert models.is_in_use(str(tmp_path / "Big-00001-of-00002.gguf"), None)
