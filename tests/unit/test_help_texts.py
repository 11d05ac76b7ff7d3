"""What `--help` lists is what there is."""

from __future__ import annotations

import importlib

import pytest

from chatcache.bench.options import parse
from chatcache.commands import GROUPS
from chatcache.errors import UsageError


@pytest.mark.parametrize("group", ["sessions", "cache", "models", "engine", "demo", "config"])
def test_the_list_of_commands_leaves_none_out(group: str) -> None:
    commands = importlib.import_module(f"chatcache.commands.{group}").COMMANDS
    for name in commands:
        assert name in GROUPS[group].replace(",", " ").replace(":", " ").split(), name


@pytest.mark.parametrize("words", [["--tokens", "x"], ["--runs", "0"], ["--lengths", "1,-2"]])
def test_a_number_that_the_bench_cannot_take_is_said_in_plain_words(words: list[str]) -> None:
    with pytest.raises(UsageError, match="must be a whole number of at least 1, not") as raised:
        parse(words)
    assert "_count" not in str(raised.value)
    assert "`chatcache bench --help`" in raised.value.hint
