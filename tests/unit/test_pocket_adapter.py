"""What `--adapter` means: a directory, or the name of an adapter beside the built-in model."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache import assets


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that came with the built-in model."""
    directory = tmp_path / "pocket" / "adapters" / "pirate"
    directory.mkdir(parents=True)
    monkeypatch.setattr(assets, "PLACES", (tmp_path / "pocket",))
    monkeypatch.chdir(tmp_path)
    return directory


def test_the_name_of_a_shipped_adapter_is_enough(shipped: Path) -> None:
    assert assets.adapter_dir("pirate") == shipped


def test_a_directory_of_that_name_comes_first(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "pirate").mkdir()
    assert assets.adapter_dir("pirate") == tmp_path / "pirate"
    assert assets.adapter_dir("./pirate") == tmp_path / "pirate"


def test_what_is_no_shipped_adapter_is_a_path(shipped: Path, tmp_path: Path) -> None:
    assert assets.adapter_dir("parrot") == tmp_path / "parrot"
    assert assets.adapter_dir("../pirate") == tmp_path / ".." / "pirate"
