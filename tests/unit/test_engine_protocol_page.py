"""The page of the protocol names every message with its fields, and nothing that there is not."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from pathlib import Path

from chatcache.backends.local.engine import wire

PAGE = Path(wire.__file__).with_name("PROTOCOL.md")
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \|", re.MULTILINE)


def test_every_message_stands_there_with_its_fields() -> None:
    rows = dict(ROW.findall(PAGE.read_text(encoding="utf-8")))
    told = {name: re.findall(r"`(\w+)`", cell) for name, cell in rows.items()}
    kinds = [*typing.get_args(wire.ToEngine), *typing.get_args(wire.FromEngine)]
    assert told == {kind.__name__: [field.name for field in fields(kind)] for kind in kinds}


def test_it_tells_the_version() -> None:
    assert f"now {wire.PROTOCOL}." in PAGE.read_text(encoding="utf-8")
