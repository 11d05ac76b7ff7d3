"""Unsent words in their file."""

from __future__ import annotations

from pathlib import Path

from chatcache.frontend.remembered import Drafts


def test_drafts_are_found_again_whatever_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "drafts.json"
    drafts = Drafts(path)
    drafts.keep("a", "grüße 🎉 \ud83d")
    drafts.keep("b", " ")
    drafts.save()
    again = Drafts(path)
    assert (again.take("a"), again.take("a"), again.take("b")) == ("grüße 🎉 \ud83d", "", "")
    assert path.stat().st_mode & 0o077 == 0


def test_drafts_that_cannot_be_kept_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "data" / "drafts.json"
    path.mkdir(parents=True)
    drafts = Drafts(path)
    drafts.keep("a", "words")
    drafts.save()
    assert list(path.parent.iterdir()) == [path]


def test_programs_that_share_the_file_keep_each_others_drafts(tmp_path: Path) -> None:
    path = tmp_path / "drafts.json"
    first, second = Drafts(path), Drafts(path)
    first.keep("a", "one")
    second.keep("b", "two")
    first.save()
    second.save()
    first.save()
    assert (Drafts(path).take("a"), Drafts(path).take("b")) == ("one", "two")
    first.keep("a", "")
    first.save()
    assert (Drafts(path).take("a"), Drafts(path).take("b")) == ("", "two")
