"""The index of a namespace: whatever is wrong with it costs time, and nothing is reused wrongly."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatcache.cache.files.index import FILE_NAME, IndexRow, SegmentIndex
from chatcache.cache.files.names import file_name
from chatcache.cache.files.segfile import SegmentFile
from chatcache.cache.inspect import CacheInspector
from tests.kvfakes import Bench, ids_of

SYSTEM, HELLO, HI = "You are helpful. ", "Hello! ", "Hi! "
HISTORY = SYSTEM + HELLO + HI


def talked(directory: Path) -> Bench:
    made = Bench(directory)
    made.turn(SYSTEM, HELLO, HI)
    made.turn(SYSTEM, "Other words. ", "Yes. ")
    made.close()
    return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = talked(tmp_path)
    yield made
    made.close()


def path_of(bench: Bench) -> Path:
    return bench.directory / "segments" / "ns" / FILE_NAME


def rows_of(bench: Bench) -> list[IndexRow]:
    index = SegmentIndex(path_of(bench).parent)
    with index.opened():
        return index.latest(10_000)


def replace_rows(bench: Bench, rows: list[IndexRow]) -> None:
    index = SegmentIndex(path_of(bench).parent)
    index.open(is_writing=True)
    index.remove(index.parents())
    index.add(rows)
    index.close()


def held(bench: Bench, text: str = HISTORY) -> int:
    return bench.cache.lookup(ids_of(text)).num_tokens


def test_every_segment_that_is_written_is_in_it(bench: Bench) -> None:
    assert {file_name(row) for row in rows_of(bench)} == {path.name for path in bench.files()}
    assert path_of(bench).stat().st_mode & 0o077 == 0
    for row in rows_of(bench):
        with SegmentFile(path_of(bench).with_name(file_name(row))) as file:
            header = file.header
        assert (row.token_ids, row.parent_id) == (header.token_ids, header.parent_id)
        assert (row.num_bytes, row.has_states) == (header.num_bytes, False)


@pytest.mark.parametrize(
    "harm",
    ["missing", "empty", "zeros", "foreign", "torn", "other tables", "no text", "directory"],
)
def test_a_damaged_index_is_made_again_from_the_headers(bench: Bench, harm: str) -> None:
    path = path_of(bench)
    content = path.read_bytes()
    path.unlink()
    if harm == "directory":
        path.mkdir()
    elif harm == "other tables":
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE segment (a, b)")
        other.close()
    elif harm != "missing":
        changed = {
            "empty": b"",
            "zeros": bytes(len(content)),
            "foreign": b"something else, not a database. " * 1000,
            "torn": content[: len(content) // 2 - 30],
            "no text": content.replace(b"CREATE INDEX known", b"CREATE IND\xa8X known"),
        }
        path.write_bytes(changed[harm])
    bench.reopen()
    assert held(bench) == len(HISTORY)
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") == len(HISTORY)
    bench.close()
    if harm != "directory":
        assert len(rows_of(bench)) == len(bench.files())


@pytest.mark.parametrize("is_writing", [True, False])
def test_an_index_whose_text_is_no_text_is_not_known(tmp_path: Path, is_writing: bool) -> None:
    """SQLite quotes the text in its message, which Python cannot decode then."""
    index = SegmentIndex(tmp_path)
    row = IndexRow("1" * 32, None, 0, 3, ids_of("abc"), 100, False)
    with index.opened(is_writing=True):
        index.add([row])
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("UPDATE segment SET parent = CAST(X'A8A8' AS TEXT)")
    connection.commit()
    connection.close()
    with index.opened(is_writing=is_writing):
        assert index.latest(10) == []
        assert index.parents() == {}
    content = (tmp_path / FILE_NAME).read_bytes() if (tmp_path / FILE_NAME).exists() else b""
    (tmp_path / FILE_NAME).write_bytes(content.replace(b"TABLE segment", b"TABLE \xa8egment"))
    with index.opened(is_writing=is_writing):
        assert index.latest(10) == []
        index.add([row])
        assert index.latest(10) == [row]


@settings(max_examples=60)
@given(at=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), length=st.integers(1, 400))
def test_whatever_stands_in_it_no_reuse_is_wrong(at: float, mask: int, length: int) -> None:
    """Each turn of the bench compares all that it restores with what these very ids give."""
    directory = Path(tempfile.mkdtemp(prefix="chatcache-test-"))
    bench = talked(directory)
    path = path_of(bench)
    content = bytearray(path.read_bytes())
    begin = int(at * len(content))
    for place in range(begin, min(begin + length, len(content))):
        content[place] ^= mask
    path.write_bytes(content)
    bench.reopen()
    for parts in ([SYSTEM, HELLO, HI], [SYSTEM, "Other words. ", "Yes. "]):
        assert bench.turn(*parts, "On. ", "Yes.") <= len("".join(parts))
    assert bench.cache.damaged == []
    bench.close()
    bench.reopen()
    assert held(bench, HISTORY + "On. Yes.") <= len(HISTORY + "On. Yes.")
    bench.close()
    shutil.rmtree(directory)


@settings(max_examples=60, deadline=None)
@given(
    column=st.sampled_from(
        ["id", "parent", "start", "stop", "ids", "num_bytes", "has_states", "fork"]
    ),
    value=st.one_of(
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.sampled_from(["../../outside", "\0", "0" * 32]),
    ),
)
@example(column="num_bytes", value=math.inf)
def test_rows_of_nonsense_fail_no_turn(column: str, value: object) -> None:
    directory = Path(tempfile.mkdtemp(prefix="chatcache-test-"))
    bench = talked(directory)
    connection = sqlite3.connect(path_of(bench))
    with connection, contextlib.suppress(UnicodeEncodeError):
        connection.execute(f"UPDATE segment SET {column} = ? WHERE start > 0", (value,))
    connection.close()
    bench.reopen()
    for parts in ([SYSTEM, HELLO, HI], [SYSTEM, "Other words. ", "Yes. "]):
        assert bench.turn(*parts, "On. ", "Yes.") <= len("".join(parts))
    assert bench.cache.rows()
    assert bench.cache.rows(limit=3)
    bench.close()
    bench.reopen()
    assert held(bench, HISTORY + "On. Yes.") >= len(HISTORY + "On. ")
    bench.close()
    shutil.rmtree(directory)


def test_an_index_that_lies_never_makes_a_reuse_wrong(bench: Bench) -> None:
    """Rows are exchanged: each segment is said to be where another one is."""
    rows = rows_of(bench)
    for shift in range(1, len(rows)):
        lies = [
            replace(
                true,
                parent_id=lie.parent_id,
                token_ids=lie.token_ids,
                start=lie.start,
                stop=lie.stop,
            )
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
    lies = [replace(row, parent_id=wrong.segment_id) for row in rows if row != other]
    replace_rows(bench, lies)
    bench.reopen()
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") in (0, len(SYSTEM), len(HISTORY))
    bench.close()


def test_a_row_with_wrong_ids_is_put_right_by_the_header(bench: Bench) -> None:
    lies = [replace(row, token_ids=row.token_ids[:-1] + ids_of("?")) for row in rows_of(bench)]
    replace_rows(bench, lies)
    bench.reopen()
    assert held(bench) == len(HISTORY)
    assert bench.cache.damaged == []


def test_rows_of_files_that_are_gone_are_dropped(bench: Bench) -> None:
    for path in bench.files()[1:]:
        path.unlink()
    bench.reopen()
    assert held(bench) == len(SYSTEM)
    assert [row.num_tokens for row in bench.cache.rows()] == [len(SYSTEM)]
    bench.close()
    assert len(rows_of(bench)) == 1


def test_a_directory_that_cannot_take_an_index_costs_nothing_but_time(bench: Bench) -> None:
    index = SegmentIndex(bench.directory / "nowhere")
    index.open(is_writing=True)
    index.add(rows_of(bench))
    assert index.totals()[0] == len(bench.files())
    index.close()
    with index.opened():
        assert index.latest(10) == []


def test_a_look_changes_nothing_on_disk(bench: Bench) -> None:
    directory = path_of(bench).parent
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    looking = Bench(bench.directory, is_spilling=False)
    assert held(looking) == len(HISTORY)
    bench.files()[0].unlink()
    assert held(looking, "You") == 3  # it is in the book already
    looking.close()
    looking.reopen()
    assert held(looking) == 0
    looking.close()
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    gone = {name for name in before if before[name] != after.get(name)}
    assert (len(gone), after.keys() - before.keys()) == (1, set())


def test_what_one_writes_others_see_who_only_look(tmp_path: Path) -> None:
    writer = Bench(tmp_path)
    writer.turn(SYSTEM, HELLO, HI)
    looking = Bench(tmp_path, is_spilling=False)
    assert held(looking) == len(HISTORY)
    writer.turn(SYSTEM, HELLO, HI, "On. ", "Yes.")
    assert held(looking, HISTORY + "On. Yes.") == len(HISTORY + "On. Yes.")
    writer.close()
    assert held(looking, HISTORY + "On. Yes.") == len(HISTORY + "On. Yes.")
    looking.close()


@pytest.mark.parametrize("is_deleting", [False, True])
def test_the_index_of_an_earlier_version_goes(bench: Bench, is_deleting: bool) -> None:
    path_of(bench).unlink()
    old = path_of(bench).with_name("index-1.bin")
    old.write_bytes(b"chatcache-index1")
    if is_deleting:
        CacheInspector(bench.directory, 1 << 20, 1 << 20).collect_garbage()
    else:
        bench.reopen()
        assert held(bench) == len(HISTORY)
    assert not old.exists()


@pytest.mark.parametrize("is_running", [False, True], ids=["no engine", "an engine runs"])
def test_the_ids_of_what_was_deleted_are_nowhere(tmp_path: Path, is_running: bool) -> None:
    bench = Bench(tmp_path)
    secrets = [f"{chr(256 + number)} is secret and not to be seen again. " for number in range(40)]
    for secret in secrets:
        bench.turn(SYSTEM, secret, HI)
    if not is_running:
        bench.close()
    directory = path_of(bench).parent
    content = b"".join(path.read_bytes() for path in directory.iterdir())
    assert ids_of(secrets[7]).packed in content
    inspector = CacheInspector(tmp_path, 1 << 20, 1 << 20)
    gone = [ids_of(SYSTEM + secret + HI) for secret in secrets[::2]]
    kept = [ids_of(SYSTEM + secret + HI) for secret in secrets[1::2]]
    assert inspector.forget("ns", gone, kept) == 40
    content = b"".join(path.read_bytes() for path in directory.iterdir())
    for number, secret in enumerate(secrets):
        assert (ids_of(secret).packed in content) is bool(number % 2)
    assert [inspector.num_held("ns", journal) for journal in kept] == list(map(len, kept))
    bench.close()


def test_rows_of_several_writers_are_all_seen(tmp_path: Path) -> None:
    first, second = SegmentIndex(tmp_path), SegmentIndex(tmp_path)
    first.open(is_writing=True)
    second.open(is_writing=True)
    assert not second.has_news()
    row = IndexRow("", None, 0, 3, ids_of("abc"), 100, False)
    for number in range(6):
        writer = first if number % 2 else second
        writer.add([replace(row, segment_id=f"{number:032x}")])
        assert (first if writer is second else second).has_news()
    assert second.totals() == first.totals() == (6, 600)
    first.add([replace(row, segment_id="0" * 32, num_bytes=50)])
    second.remove(["1".zfill(32)])
    assert second.totals() == first.totals() == (5, 450)
    assert second.has_news()
    assert not second.has_news()
    shutil.rmtree(tmp_path)
    assert first.totals() == (5, 450)
    first.close()
    second.close()


def test_looking_for_news_opens_nothing_when_there_are_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.reopen()
    assert held(bench) == len(HISTORY)
    monkeypatch.setattr(os, "open", lambda *args, **rest: pytest.fail(str(args)))
    monkeypatch.setattr(os, "listdir", lambda *args: pytest.fail(str(args)))
    assert held(bench) == len(HISTORY)
    monkeypatch.undo()
