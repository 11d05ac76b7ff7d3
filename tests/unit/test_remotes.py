"""Remote profiles in config.toml, and what `PROFILE:NAME` means."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from chatcache.config import Config, load_settings, parse_config
from chatcache.configfile import default_text, set_value
from chatcache.errors import NotFoundError, UnavailableError, UsageError
from chatcache.remotes import EXAMPLE, Prices, RemoteProfile, check_reach, remote_model

PATH = Path("config.toml")
LLAMA = RemoteProfile("llama", "http://127.0.0.1:8080")
CLOUD = RemoteProfile("cloud", "https://api.example.com/v1", "CLOUD_KEY", "big")
REMOTES = {"llama": LLAMA, "cloud": CLOUD}


def profile_of(text: str) -> RemoteProfile:
    (profile,) = parse_config(text, PATH)["remote"].values()
    assert isinstance(profile, RemoteProfile)
    return profile


def test_a_profile_is_read_with_all_its_settings() -> None:
    text = (
        '[remote.cloud]\nbase_url = "https://api.example.com/v1/"\napi_key_env = "CLOUD_KEY"\n'
        'model = "a/b:c"\ntimeout = 20\n'
        'prices = { input = 1, cached_input = 0.5, output = 2, currency = "EUR" }\n'
    )
    assert profile_of(text) == RemoteProfile(
        name="cloud",
        base_url="https://api.example.com/v1",
        api_key_env="CLOUD_KEY",
        model="a/b:c",
        prices=Prices(1.0, 0.5, 2.0, "EUR"),
        timeout=20,
    )


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[remote.x]\nmodel = 'm'", "remote.x has no base_url", "config set remote.x.base_url"),
        ("[remote.x]\nbase_ulr = 'http://h'", "no setting 'base_ulr'", "'base_url'"),
        ("[remote.x]\nbase_url = 'localhost:1'", "x.base_url must be like", ""),
        ("[remote.x]\nbase_url = 'ftp://h'", "x.base_url must be like", ""),
        ("[remote.x]\nbase_url = 'http://h:port'", "x.base_url must be like", ""),
        ("[remote.x]\nbase_url = 'http://me:pw@h'", "must not have a user or a password", ""),
        ("[remote.x]\nbase_url = 'http://h/v1?a=b'", "without ? and #", ""),
        ("[remote.x]\nbase_url = 3", "must be an address in quotes, not 3", ""),
        ("[remote.x]\nbase_url = 'http://h'\ntimeout = 0", "timeout must be at least 1", ""),
        ("[remote.x]\nbase_url = 'http://h'\nprices = 1", "prices must be a table", "input"),
        ("[remote.x]\nbase_url = 'http://h'\nprices = {inptu = 1}", "no setting 'inptu'", "input"),
        ("[remote.x]\nbase_url = 'http://h'\nprices = {input = -1}", "prices.input must be at", ""),
        ("[remote.builtin]\nbase_url = 'http://h'", "no name for a profile", "letters"),
        ("[remote.'a:b']\nbase_url = 'http://h'", "no name for a profile", "letters"),
        ("[remote]\nx = 1", "remote.x is no section", "[remote.x]"),
        ("remote = 1", "'remote' is a section", "[remote]"),
    ],
)
def test_wrong_profiles_are_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_config(text, PATH)
    assert message in raised.value.message
    assert hint in raised.value.hint


@pytest.mark.parametrize("key", ["sk-live-0123456789", "gsk_0123456789abcdefABCDEF", "a b"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UsageError) as raised:
        profile_of(f"[remote.x]\nbase_url = 'http://h'\napi_key_env = '{key}'")
    assert "not the key itself" in raised.value.message
    assert key not in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    ("address", "api"),
    [
        ("http://localhost:8080", "http://localhost:8080/v1"),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1"),
        ("https://h/openai/v1/chat/completions", "https://h/openai/v1"),
        ("https://h/api", "https://h/api"),
    ],
)
def test_the_address_may_be_written_as_people_write_it(address: str, api: str) -> None:
    assert profile_of(f'[remote.x]\nbase_url = "{address}"').api_url == api


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("http://localhost", True),
        ("http://127.8.0.1:1/v1", True),
        ("http://[::1]:8080", True),
        ("http://box.localhost", True),
        ("http://10.0.0.7", False),
        ("https://localhost.example.com", False),
        ("https://127.0.0.1.example.com", False),
    ],
)
def test_only_this_machine_counts_as_this_machine(address: str, is_here: bool) -> None:
    assert RemoteProfile("x", address).is_loopback is is_here


def test_the_example_of_the_written_file_is_valid_and_sets_nothing(home: Path) -> None:
    assert EXAMPLE in default_text()
    (home / "config.toml").write_text(default_text())
    config = load_settings().config
    assert config == Config(model=config.model, engine=config.engine)  # as the environment says
    lines = EXAMPLE[EXAMPLE.index("# [remote.server]") :].splitlines()
    profile = profile_of("\n".join(line.removeprefix("# ") for line in lines))
    assert (profile.name, profile.model) == ("server", "qwen3")
    assert {name for name, value in profile.values() if value is None} == set()


def test_config_set_makes_and_changes_profiles(home: Path) -> None:
    path = home / "config.toml"
    for name, word, value in (
        ("remote.llama.base_url", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("remote.llama.model", "7", "7"),
        ("remote.llama.timeout", "20", 20),
        ("remote.llama.prices.input", "0.5", 0.5),
        ("remote.llama.prices.currency", "EUR", "EUR"),
        ("remote.other.base_url", "https://h/v1", "https://h/v1"),
    ):
        assert set_value(path, name, word) == value
    text = path.read_text()
    assert "# [remote.server]" in text  # the comments of the first run are still there
    profiles = load_settings().config.remotes
    assert profiles["llama"] == RemoteProfile(
        "llama", "http://127.0.0.1:8080", None, "7", Prices(0.5, currency="EUR"), 20
    )
    assert profiles["other"].base_url == "https://h/v1"
    assert tomllib.loads(text)["remote"]["llama"]["prices"] == {"input": 0.5, "currency": "EUR"}


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("remote.x", "http://h", "no setting of a profile"),
        ("remote.x.modle", "m", "no setting 'modle'"),
        ("remote.x.prices", "1", "no setting 'prices'"),
        ("remote.x.model", "m", "remote.x has no base_url"),
        ("remote.x.base_url", "h", "base_url must be like"),
        ("remot.x.base_url", "http://h", "no section 'remot'"),
    ],
)
def test_config_set_refuses_what_is_wrong_and_leaves_the_file(
    home: Path, name: str, word: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        set_value(home / "config.toml", name, word)
    assert not (home / "config.toml").exists()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama:qwen3", ("llama", "qwen3")),
        ("llama:qwen3:0.6b", ("llama", "qwen3:0.6b")),
        ("cloud:org/model", ("cloud", "org/model")),
        ("cloud:", ("cloud", "big")),
        ("llama:", ("llama", None)),
        ("builtin", None),
        ("Qwen/Qwen3-0.6B", None),
        ("/models/a:b", None),
        ("./a:b", None),
        ("~/a:b", None),
        ("models/a:b", None),
        ("C:\\models\\one", None),
        ("C:/models/one", None),
    ],
)
def test_what_a_model_name_means(name: str, meant: Any) -> None:
    found = remote_model(name, REMOTES)
    assert (found and (found.profile.name, found.model)) == meant


def test_a_directory_with_a_colon_stays_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some:model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert remote_model("some:model", REMOTES) is None


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(NotFoundError) as raised:
        remote_model("lama:x", REMOTES)
    assert "'lama'" in raised.value.message
    assert "'llama'" in raised.value.hint
    with pytest.raises(NotFoundError) as raised:
        remote_model("lama:x", {})
    assert "config set remote.lama.base_url" in raised.value.hint


def test_an_address_in_place_of_a_name_says_how_to_make_a_profile() -> None:
    with pytest.raises(UsageError) as raised:
        remote_model("http://localhost:8080/v1", REMOTES)
    assert "remote.server.base_url http://localhost:8080/v1" in raised.value.hint


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/Qwen/Qwen3-0.6B",
        "https://huggingface.co/Qwen/Qwen3-0.6B/",
        "http://www.huggingface.co/Qwen/Qwen3-0.6B/tree/main",
        "https://hf.co/Qwen/Qwen3-0.6B?library=transformers",
        "HTTPS://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json",
        "huggingface.co/Qwen/Qwen3-0.6B",
        " https://huggingface.co/Qwen/Qwen3-0.6B#usage ",
    ],
)
def test_the_page_of_a_model_says_the_name_of_the_model(address: str) -> None:
    for remotes in ({}, REMOTES):
        with pytest.raises(UsageError) as raised:
            remote_model(address, remotes)
        assert "is the page of a model on the hub" in raised.value.message
        assert raised.value.hint == "Name the model: --model Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("hf.co/Qwen/Qwen3-0.6B-GGUF:Q4_K_M", "Qwen/Qwen3-0.6B-GGUF:Q4_K_M"),
        (
            "https://huggingface.co/me/tiny-GGUF/blob/main/sub/tiny-Q8_0.gguf?download=true",
            "me/tiny-GGUF:tiny-Q8_0",
        ),
    ],
)
def test_the_page_of_a_gguf_file_says_which_file(address: str, name: str) -> None:
    with pytest.raises(UsageError) as raised:
        remote_model(address, {})
    assert raised.value.hint == f"Name the model: --model {name}"


def test_a_model_in_the_store_of_ollama_is_none_of_a_server() -> None:
    assert remote_model("ollama:qwen3:0.6b", {}) is None
    profile = RemoteProfile("ollama", "http://127.0.0.1:11434/v1")
    remote = remote_model("ollama:qwen3:0.6b", {"ollama": profile})
    assert remote is not None
    assert remote.model == "qwen3:0.6b"


@pytest.mark.parametrize(
    "name", ["localhost:8080", "192.168.1.5:11434/v1", "box.lan:8000", "api.example.com:443"]
)
def test_a_host_with_a_port_is_an_address(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        remote_model(name, REMOTES)
    assert f"remote.server.base_url http://{name}`" in raised.value.hint


@pytest.mark.parametrize(
    "address", ["https://huggingface.co/datasets/a", "https://example.com/Qwen/Qwen3-0.6B"]
)
def test_other_addresses_are_those_of_servers(address: str) -> None:
    with pytest.raises(UsageError, match="is the address of a server"):
        remote_model(address, REMOTES)


@pytest.mark.parametrize(
    "name",
    [
        "llama3.2:1b",
        "gemma3n:e4b",
        "mixtral:8x7b",
        "qwen3:0.6b-q4_K_M",
        "phi4:latest",
        "m:instruct",
    ],
)
def test_a_model_of_ollama_is_no_profile(name: str) -> None:
    with pytest.raises(NotFoundError) as raised:
        remote_model(name, {})
    assert "looks like a model of Ollama" in raised.value.hint
    assert "base_url http://localhost:11434/v1`" in raised.value.hint
    assert f"--model ollama:{name}" in raised.value.hint
    there = {"box": RemoteProfile("box", "http://127.0.0.1:11434/v1")}
    with pytest.raises(NotFoundError) as raised:
        remote_model(name, there)
    assert f"Say --model box:{name}" in raised.value.hint
    page = f"https://ollama.com/library/{name}"
    with pytest.raises(UsageError) as used:
        remote_model(page, {})
    assert f"--model ollama:{name}" in used.value.hint


def test_without_a_network_only_this_machine_is_asked() -> None:
    check_reach(LLAMA, is_offline=True)
    with pytest.raises(UnavailableError, match="network is switched off"):
        check_reach(CLOUD, is_offline=True)


def test_a_key_that_is_not_set_or_not_a_key_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUD_KEY", raising=False)
    with pytest.raises(UnavailableError) as raised:
        check_reach(CLOUD, is_offline=False)
    assert "$CLOUD_KEY is not set" in raised.value.message
    monkeypatch.setenv("CLOUD_KEY", "a\nb")
    with pytest.raises(UnavailableError) as raised:
        check_reach(CLOUD, is_offline=False)
    assert "a\nb" not in str(raised.value)
    monkeypatch.setenv("CLOUD_KEY", " secret\n")
    assert CLOUD.key() == "secret"
