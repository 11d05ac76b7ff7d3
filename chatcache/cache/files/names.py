"""The name of a segment's file, `START-STOP-ID.safetensors`: made and read here alone."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

_NAME = re.compile(r"(\d+)-(\d+)-([0-9a-f]{32})\.safetensors")
_ID = slice(-len(".safetensors") - 32, -len(".safetensors"))


class SegmentName(NamedTuple):
    """What a name says. It may lie: the header of the file is the truth."""

    start: int
    stop: int
    segment_id: str


class Named(Protocol):
    """Whatever tells which segment it is about."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def segment_id(self) -> str: ...


def file_name(segment: Named) -> str:
    return f"{segment.start}-{segment.stop}-{segment.segment_id}.safetensors"


def is_file_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def parse_name(name: str) -> SegmentName:
    """The inverse of `file_name`. Raises ValueError if this is no name of a segment's file."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} does not name a segment")
    return SegmentName(int(match[1]), int(match[2]), match[3])


def id_of(name: str) -> str:
    """The id in what is known to be such a name; there are many of them."""
    return name[_ID]
