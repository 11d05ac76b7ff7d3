"""Whoever listens to a backend, whichever it is, knows in the end what is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.backends.base import BackendEvent, ModelLoading, ModelReady
from chatcache.backends.life import BackendLife
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.remote.backend import RemoteBackend
from chatcache.backends.switching import SwitchingBackend
from chatcache.remotes import RemoteModel, RemoteProfile
from tests.toymodel import fake_model_info

LOADING, READY = ModelLoading("loading weights"), ModelReady(fake_model_info())


def local(place: Path) -> LocalBackend:
    return LocalBackend(EngineSettings("echo", place, place / "engine.log"))


def remote() -> RemoteBackend:
    return RemoteBackend(RemoteModel(RemoteProfile("p", "http://127.0.0.1:9/v1"), "tiny"))


@pytest.mark.parametrize("kind", ["local", "remote", "switching"])
def test_a_listener_that_comes_just_now_hears_the_newest_last(kind: str, tmp_path: Path) -> None:
    inner: BackendLife = remote() if kind == "remote" else local(tmp_path)
    backend = SwitchingBackend(lambda _: inner, "m") if kind == "switching" else inner
    inner._listeners.tell(LOADING)
    heard: list[BackendEvent] = []

    def listen(event: BackendEvent) -> None:
        heard.append(event)
        if event == LOADING:  # while it is told what was true, something new happens
            inner._listeners.tell(READY)

    backend.subscribe(listen)
    assert heard == [LOADING, READY]
    late: list[BackendEvent] = []
    backend.subscribe(late.append)
    assert late == [READY]
    backend.close()
