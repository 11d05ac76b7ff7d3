"""Engines on the `model` of a test module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.equivalence.engine import Factory, IdsEngine


@pytest.fixture
def engine(model: Any, tmp_path: Path) -> Iterator[Factory]:
    """Makes engines on one cache directory, like processes that come and go."""
    made: list[IdsEngine] = []

    def make(name: str = "cache", **options: Any) -> IdsEngine:
        for earlier in made:
            earlier.prefixes.drain()
        made.append(IdsEngine(model, tmp_path / name, **options))
        return made[-1]

    yield make
    for opened in made:
        opened.close()
