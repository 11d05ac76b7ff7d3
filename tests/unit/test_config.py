"""Settings: the order of sources, refusals that name the nearest, the commented file."""

from __future__ import annotations

import json
import stat
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.budgets import KEPT_DISK
from chatcache.cache.book.policy import TierPolicy
from chatcache.checks import byte_size, num_bytes
from chatcache.compose import engine_settings
from chatcache.config import Config, load_settings, parse_config, resolve_paths
from chatcache.configfile import default_text, documented_keys, set_value, write_default
from chatcache.errors import StorageError, UsageError
from chatcache.sections import SECTIONS

PATH = Path("config.toml")


def write_config(home: Path, text: str) -> Path:
    path = home / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_source_goes_before_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().config.model.default == "builtin"
    assert load_settings().origins["model.default"] == "default"

    path = write_config(home, '[model]\ndefault = "from-file"\n')
    settings = load_settings()
    assert settings.config.model.default == "from-file"
    assert settings.origins["model.default"] == str(path)

    monkeypatch.setenv("CHATCACHE_MODEL", "from-environment")
    settings = load_settings()
    assert settings.config.model.default == "from-environment"
    assert settings.origins["model.default"] == "environment CHATCACHE_MODEL"

    settings = load_settings({"model.default": "from-option"})
    assert settings.config.model.default == "from-option"
    assert settings.origins["model.default"] == "option"


@pytest.mark.parametrize(("word", "is_offline"), [("1", True), ("0", False), ("true", True)])
def test_hub_offline_is_respected(
    monkeypatch: pytest.MonkeyPatch, word: str, is_offline: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", word)
    assert load_settings().config.model.offline is is_offline


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[modle]", "line 1: there is no section or setting 'modle'", "'model'"),
        ("\n[model]\ndevise = 'cpu'", "line 3: there is no setting 'devise'", "'device'"),
        ("[model]\ndevice = 'gpu'", "line 2: device must be one of auto, cpu", "config show"),
        ("[model]\noffline = 'no'", "line 2: offline must be true or false, not 'no'", ""),
        ("[model]\nthreads = 0", "line 2: threads must be at least 1", ""),
        ("[model]\nthreads = 9000", "line 2: threads must be at most 1024", ""),
        ("[model]\nthreads = true", "threads must be a whole number, not true", ""),
        ("[sampling]\ntop_p = 1.5", "top_p must be above 0 and at most 1, not 1.5", ""),
        ("[sampling]\ntemperature = nan", "temperature must be at least 0", ""),
        ("[cache]\nram_budget = '2 XB'", "ram_budget has an unknown unit 'XB'", ""),
        ("[cache]\nram_budget = '120%'", "ram_budget must be at most 100%", ""),
        ("[cache]\nram_budget = -1", "ram_budget must be bytes", ""),
        (f"[cache]\nram_budget = 1{'0' * 30}", "ram_budget must be bytes", ""),
        (f"[cache]\nram_budget = '{'9' * 400} GB'", "ram_budget is more than any disk has", ""),
        ("[sampling]\nrepetition_penalty = 1e-40", "must be at least 0.01", ""),
        ("[keys]\nquit = 1", "line 2: keys.quit must be keys in quotes", ""),
        ("model.device = 3", "line 1: device must be one of", ""),
        ("model = 3", "'model' is a section", "[model]"),
        ("[model", "not valid TOML", "config edit"),
        (f"[model]\nthreads = {'9' * 5000}", "not valid TOML", "config edit"),
        (f"[model]\nthreads = {'[' * 100_000}", "not valid TOML", "config edit"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_config(text, PATH)
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATCACHE_MODEL", "  ")
    with pytest.raises(UsageError, match="CHATCACHE_MODEL must not be empty"):
        load_settings()


def test_a_mark_that_an_editor_puts_first_does_no_harm(home: Path) -> None:
    path = home / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[ui]\r\nmotion = false\r\n")
    set_value(path, "ui.theme", "ansi-dark")
    ui = load_settings().config.ui
    assert (ui.motion, ui.theme) == (False, "ansi-dark")


def test_a_config_that_is_not_text_is_refused(home: Path) -> None:
    (home / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_settings()


def test_keys_are_free(home: Path) -> None:
    write_config(home, '[keys]\nquit = "ctrl+q,f10"\nfork = ["f4", "ctrl+f"]\n')
    assert load_settings().config.keys == {"quit": "ctrl+q,f10", "fork": "f4,ctrl+f"}


def test_the_first_file_documents_every_setting_and_changes_none(home: Path) -> None:
    path = home / "config.toml"
    assert write_default(path)
    assert not write_default(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_settings(environ={"CHATCACHE_CONFIG": str(path)}).config == Config()
    text = path.read_text()
    for name, section in SECTIONS.items():
        documented = dict(documented_keys(section))
        assert list(documented) == [key.name for key in fields(section)]
        assert all(doc in text.replace("\n# ", "\n") for doc in documented.values())
        assert f"[{name}]" in text


def test_every_commented_value_is_valid(home: Path) -> None:
    settings, _, examples = default_text().partition("# Servers: ")
    lines = [line.split("   # ")[0] for line in settings.splitlines()]
    entries = [line.removeprefix("# ") for line in lines if " = " in line and "e.g." not in line]
    headers = [line for line in lines if line.startswith("[")]
    assert len(entries) == sum(len(fields(section)) for section in SECTIONS.values())
    uncommented = "\n".join(
        line.removeprefix("# ") if line.removeprefix("# ") in entries else line for line in lines
    )
    parsed = parse_config(uncommented, PATH)
    assert len(parsed) == len(headers)
    assert sum(len(table) for table in parsed.values()) == len(entries)
    personas = examples.partition("# Personas: ")[2]
    example = "\n".join(line.removeprefix("# ") for line in personas.splitlines()[1:])
    assert list(parse_config(example, PATH)) == ["personas"]


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert not write_default(in_the_way / "chatcache" / "config.toml")


def test_set_keeps_comments_and_order(home: Path) -> None:
    path = write_config(home, "# mine\n[ui] # looks\n\n[cache]\nram_budget = 3 # three\n")
    set_value(path, "ui.theme", "nord")
    set_value(path, "cache.ram_budget", "25%")
    set_value(path, "sampling.temperature", "0")
    text = path.read_text()
    assert "# mine\n[ui] # looks" in text
    assert 'ram_budget = "25%" # three' in text
    assert tomllib.loads(text) == {
        "ui": {"theme": "nord"},
        "cache": {"ram_budget": "25%"},
        "sampling": {"temperature": 0.0},
    }


def test_set_replaces_the_commented_default_in_place(home: Path) -> None:
    path = home / "config.toml"
    set_value(path, "ui.theme", "nord")
    set_value(path, "ui.theme", "gruvbox")
    assert path.read_text() == default_text().replace(
        '# theme = "textual-dark"', 'theme = "gruvbox"'
    )


def test_a_refused_value_leaves_the_file_alone(home: Path) -> None:
    path = write_config(home, "[ui]\n")
    for name, word in (("ui.panel", "wide"), ("ui.pannel", "off"), ("them", "x"), ("x.y", "1")):
        with pytest.raises(UsageError):
            set_value(path, name, word)
    assert path.read_text() == "[ui]\n"
    assert list(path.parent.glob("*.new")) == []


def test_set_says_when_the_file_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises((StorageError, UsageError)):
        set_value(in_the_way / "config.toml", "ui.theme", "nord")


@pytest.mark.parametrize("word", ["9" * 5000, "[" * 100_000])
def test_set_takes_a_number_or_brackets_without_end_for_a_word(home: Path, word: str) -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        set_value(home / "config.toml", "model.threads", word)


def test_set_follows_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("[ui]\n")
    link = tmp_path / "config.toml"
    link.symlink_to(real)
    set_value(link, "ui.theme", "nord")
    assert link.is_symlink()
    assert 'theme = "nord"' in real.read_text()


def test_logs_stay_with_data_that_was_put_somewhere() -> None:
    paths, _ = resolve_paths({"paths.data_dir": "/somewhere"}, {})
    assert paths.log_dir == Path("/somewhere/logs")
    assert paths.database.parent == Path("/somewhere")
    elsewhere, origins = resolve_paths({}, {})
    assert elsewhere.log_dir != elsewhere.data_dir / "logs"
    assert set(origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [(0, 0), (7, 7), ("7", 7), ("2 GB", 2 * 10**9), ("1.5GiB", 3 << 29), ("25%", 250)],
)
def test_sizes(word: int | str, expected: int) -> None:
    assert num_bytes(byte_size(word), lambda: 1000) == expected


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(word: str) -> None:
    try:
        kept = byte_size(word)
    except ValueError:
        return
    assert num_bytes(kept, lambda: 1000) >= 0


@pytest.mark.parametrize(
    ("value", "kept"),
    [(True, "turn"), (False, "never"), ("exit", "exit"), ("pressure", "pressure")],
)
def test_spill_is_a_mode_or_a_switch(home: Path, value: Any, kept: str) -> None:
    write_config(home, f"[cache]\nspill = {json.dumps(value)}\n")
    assert load_settings().config.cache.spill == kept


def test_times_to_live_and_floor_reach_the_engine(home: Path) -> None:
    write_config(home, '[cache]\nram_ttl = "5m"\ndisk_ttl = "2d"\ndisk_floor = "2 GB"\n')
    policy = engine_settings(load_settings()).policy
    assert policy == TierPolicy("turn", 300, 172_800, 2_000_000_000, KEPT_DISK)


@pytest.mark.parametrize(
    "line", ['ram_ttl = "5x"', "disk_ttl = 5", 'ram_ttl = "0s"', 'spill = "x"']
)
def test_bad_tier_settings_are_refused(home: Path, line: str) -> None:
    write_config(home, f"[cache]\n{line}\n")
    with pytest.raises(UsageError):
        load_settings()
