"""The index of a namespace: whatever is wrong with it costs time, and nothing is reused wrongly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.cache.files.index import FILE_NAME, IndexRow, SegmentIndex, pack_row, unpack_row
from chatcache.token_ids import TokenIds
from tests.kvfakes import Bench, ids_of

SYSTEM, HELLO, HI = "You are helpful. ", "Hello! ", "Hi! "
HISTORY = SYSTEM + HELLO + HI


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.turn(SYSTEM, HELLO, HI)
    made.turn(SYSTEM, "Other words. ", "Yes. ")
    made.close()
    yield made
    made.close()


def path_of(bench: Bench) -> Path:
    return bench.directory / "segments" / "ns" / FILE_NAME


def rows_of(bench: Bench) -> list[IndexRow]:
    return [unpack_row(packed) for packed in SegmentIndex(path_of(bench).parent).read()]


def replace_rows(bench: Bench, rows: list[IndexRow]) -> None:
    SegmentIndex(path_of(bench).parent).write(map(pack_row, rows))


def held(bench: Bench, text: str = HISTORY) -> int:
    return bench.cache.lookup(ids_of(text)).num_tokens


def test_every_segment_that_is_written_is_in_it(bench: Bench) -> None:
    names = {f"{row.start}-{row.stop}-{row.segment_id}.safetensors" for row in rows_of(bench)}
    assert names == {path.name for path in bench.files()}
    assert path_of(bench).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "harm", ["missing", "empty", "zeros", "flip", "torn", "newer", "directory"]
)
def test_a_damaged_index_is_made_again_from_the_headers(bench: Bench, harm: str) -> None:
    path = path_of(bench)
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm == "directory":
        path.mkdir()
    elif harm != "missing":
        changed = {
            "empty": b"",
            "zeros": bytes(len(content)),
            "flip": content[:200] + bytes([content[200] ^ 1]) + content[201:],
            "torn": content[:-30],
            "newer": b"chatcache-index9" + content[16:],
        }
        path.write_bytes(changed[harm])
    bench.reopen()
    assert held(bench) == len(HISTORY)
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") == len(HISTORY)
    bench.close()
    if harm != "directory":
        assert len(rows_of(bench)) == len(bench.files())


def test_an_index_that_lies_never_makes_a_reuse_wrong(bench: Bench) -> None:
    """Rows are exchanged: each segment is said to be where another one is."""
    rows = rows_of(bench)
    for shift in range(1, len(rows)):
        lies = [
            true._replace(parent_id=lie.parent_id, head=lie.head, start=lie.start, stop=lie.stop)
            for true, lie in zip(rows, [*rows[shift:], *rows[:shift]], strict=True)
        ]
        replace_rows(bench, lies)
        bench.reopen()
        assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") <= len(HISTORY)
        assert bench.turn(SYSTEM, "Other words. ", "Yes. ", "On. ", "Yes.") <= 35
        assert bench.cache.damaged == []
        bench.close()


def test_a_wrong_parent_is_put_right_by_the_header(bench: Bench) -> None:
    rows = rows_of(bench)
    wrong = next(row for row in rows if row.start == len(SYSTEM))
    other = next(row for row in rows if row.start > wrong.start)
    replace_rows(bench, [row._replace(parent_id=wrong.segment_id) for row in rows if row != other])
    bench.reopen()
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") in (0, len(SYSTEM), len(HISTORY))
    bench.close()


def test_rows_of_files_that_are_gone_are_dropped(bench: Bench) -> None:
    for path in bench.files()[1:]:
        path.unlink()
    bench.reopen()
    assert held(bench) == len(SYSTEM)
    assert [row.num_tokens for row in bench.cache.rows()] == [len(SYSTEM)]


def test_dead_rows_do_not_pile_up_for_ever(bench: Bench) -> None:
    rows = rows_of(bench)
    replace_rows(bench, [*(rows[0]._replace(segment_id=f"{n:032x}") for n in range(1100)), *rows])
    bench.reopen()
    assert len(rows_of(bench)) == len(rows)
    assert held(bench) == len(HISTORY)


def test_a_directory_that_cannot_take_an_index_costs_nothing_but_time(bench: Bench) -> None:
    index = SegmentIndex(bench.directory / "nowhere")
    index.append([b""])
    index.write([])
    assert index.read() == []


def test_appends_of_several_writers_are_all_seen(tmp_path: Path) -> None:
    first, second = SegmentIndex(tmp_path), SegmentIndex(tmp_path)
    first.write([])
    second.read()
    row = IndexRow("ab" * 16, None, 0, 3, 100, TokenIds([0, 0, 0]))
    for number in range(5):
        one = first if number % 2 else second
        one.append([pack_row(row._replace(start=number, stop=number + 3))])
    assert [unpack_row(packed).start for packed in second.read_new()] == list(range(5))
    assert second.read_new() == []
    first.write([pack_row(row)])
    assert [unpack_row(packed) for packed in second.read_new()] == [row]


def test_looking_for_news_opens_nothing_when_there_are_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.reopen()
    assert held(bench) == len(HISTORY)
    monkeypatch.setattr(os, "open", lambda *args, **rest: pytest.fail(str(args)))
    monkeypatch.setattr(os, "listdir", lambda *args: pytest.fail(str(args)))
    assert held(bench) == len(HISTORY)
    monkeypatch.undo()
