"""Commands that know the profiles: models, config, doctor. Only `probe` asks the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli
from chatcache.doctor import machine
from tests.fake_server import FakeServer, Status

KEY = "sk-secret-0123456789"
Run = Callable[..., str]


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("PROF_KEY", KEY)
    with FakeServer(models=[{"id": "m", "max_model_len": 4096}, {"id": "org/n:7b"}]) as server:
        (home / "config.toml").write_text(
            f'[remote.prof]\nbase_url = "{server.base_url}"\napi_key_env = "PROF_KEY"\n'
            "prices = { input = 1.0, output = 2.0 }\n"
            '[remote.far]\nbase_url = "http://far.example.invalid/v1"\nmodel = "big"\n'
        )
        yield server


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def run(*words: str, code: int = 0) -> str:
        assert cli.main(words) == code
        out, err = capsys.readouterr()
        assert KEY not in out + err
        return out + err

    return run


def as_json(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    return content


def test_the_list_has_the_profiles_and_asks_nobody(
    server: FakeServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {one["model"]: one for one in as_json(run("models", "list", "--json"))["models"]}
    assert set(models) == {"builtin", "prof:", "far:big"}
    assert models["prof:"]["path"] == server.base_url
    assert set(models["prof:"]) <= set(models["builtin"])
    monkeypatch.delenv("PROF_KEY")
    monkeypatch.setenv("CHATCACHE_MODEL", "prof:m")
    table = run("models", "list")
    assert "prof:m *" in table
    assert "$PROF_KEY is not set" in table
    monkeypatch.setenv("CHATCACHE_MODEL", "porf:m")
    assert "porf:m *" in run("models", "list")
    for words in ("models download prof:m", "cache verify --deep --model far:x"):
        assert "A server" in run(*words.split(), code=2)
    assert server.asked == []


def test_a_profile_is_shown_without_its_key(server: FakeServer, run: Run) -> None:
    shown = as_json(run("models", "show", "prof:m", "--json"))
    assert (shown["api_key_env"], shown["prices.input"]) == ("PROF_KEY", 1.0)
    assert (shown["on_this_machine"], shown["encrypted"], shown["problem"]) == (True, False, None)
    assert "prices.currency" in run("models", "show", "prof:m")
    settings = as_json(run("config", "show", "--json"))["settings"]
    assert settings["remote.prof.base_url"]["value"] == server.base_url
    assert settings["remote.prof.model"] == {"value": None, "origin": "default"}
    assert "remote.far.timeout" in run("config", "show")
    assert "Did you mean 'prof'?" in run("models", "show", "porf:m", code=3)
    assert server.asked == []


def test_a_probe_tells_how_far_away_it_is_and_what_it_has(
    server: FakeServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = as_json(run("models", "probe", "prof:m", "--json"))
    assert (probed["reachable"], probed["offered"]) == (True, True)
    assert (probed["models"], probed["max_context_tokens"]) == (["m", "org/n:7b"], 4096)
    assert probed["round_trip_ms"] > 0
    told = run("models", "probe", "prof:other")
    assert "does not list other" in told
    assert "  prof:org/n:7b" in told
    assert "Its context is 4,096 tokens." in run("models", "probe", "prof:m")
    assert server.chats == []
    server.models = Status(401, {"error": {"message": f"bad key {KEY}"}})
    assert "does not accept the key of $PROF_KEY" in run("models", "probe", "prof:m", code=4)
    assert "switched off" in run("models", "probe", "far:", "--offline", code=4)
    monkeypatch.delenv("PROF_KEY")
    assert "$PROF_KEY is not set" in run("models", "probe", "prof:m", code=4)


def test_doctor_tells_of_keys_and_of_who_reads_along(
    server: FakeServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_devices", lambda load: machine.Finding("devices", "ok", ""))
    monkeypatch.setenv("CHATCACHE_MODEL", "prof:m")

    def findings() -> dict[str, dict[str, str]]:
        found = as_json(run("doctor", "--json"))["findings"]
        return {one["subject"]: one for one in found}

    found = findings()
    assert found["server prof"]["status"] == "ok"
    assert "key in $PROF_KEY" in found["server prof"]["detail"]
    assert found["server far"]["status"] == "note"
    assert "not encrypted" in found["server far"]["detail"]
    assert "that of the server" in found["chat template"]["detail"]
    assert found["network"]["status"] == "ok"
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert "$ALL_PROXY" in findings()["network"]["detail"]
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such.pem")
    assert "$SSL_CERT_FILE names /no/such.pem" in findings()["network"]["detail"]
    monkeypatch.delenv("PROF_KEY")
    assert "$PROF_KEY is not set" in findings()["server prof"]["detail"]
    assert server.asked == []
