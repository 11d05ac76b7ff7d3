"""The prefix cache with real files: what is held, where it lies, and what happens when it is not.

K and V are bytes that depend on every id before them (tests/kvfakes.py), so each restore proves
that nothing of another history was used.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatcache.cache.files import reader
from chatcache.cache.files import store as segments
from chatcache.cache.files.segfile import SegmentFile, write_segment
from chatcache.cache.files.store import SegmentStore
from chatcache.cache.prefix import PrefixCache
from tests.kvfakes import BYTES_PER_TOKEN, FIELDS, Bench, ByteBlock, ByteSink, ids_of

SYSTEM = "You are helpful. "
HELLO, HI = "Hello! ", "Hi! "


@pytest.fixture(params=[1 << 30, 0], ids=["one-reader", "readers"])
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.setattr(reader, "_MIN_BYTES_FOR_THREADS", request.param)
    made = Bench(tmp_path)
    yield made
    made.close()


def test_a_second_turn_reuses_all_of_the_first(bench: Bench) -> None:
    assert bench.turn(SYSTEM, HELLO, HI) == 0
    assert bench.turn(SYSTEM, HELLO, HI, "And now? ", "Well.") == len(SYSTEM + HELLO + HI)


def test_two_chats_share_a_system_prompt(bench: Bench) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    assert bench.turn(SYSTEM, "What can you do?", "A lot.") == len(SYSTEM)


def test_everything_is_found_again_by_a_new_process(bench: Bench) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    bench.turn(SYSTEM, HELLO, HI, "And now? ", "Well.")
    bench.close()
    bench.reopen()
    history = SYSTEM + HELLO + HI + "And now? Well."
    lookup = bench.cache.lookup(ids_of(history))
    assert (lookup.ram_tokens, lookup.disk_tokens) == (0, len(history))
    assert bench.turn(SYSTEM, HELLO, HI, "And now? ", "Well.", "More. ", "No.") == len(history)


def test_what_was_computed_in_one_piece_is_restored_from_one_piece(bench: Bench) -> None:
    """Two branches begin with the same tokens; each keeps the bits of its own computation."""
    bench.turn(SYSTEM, HELLO, HI)
    start = len(SYSTEM + HELLO + HI)
    paths = [ids_of(SYSTEM + HELLO + HI + text) for text in ("And now? ", "And then? ")]
    for ids in paths:
        bench.cache.commit(
            ids,
            [len(ids)],
            lambda first, stop, ids=ids: ByteBlock(ids, first, stop),  # type: ignore[misc]
            start,
        )
    bench.close()
    bench.reopen()
    last = [bench.cache.lookup(ids).spans[-1] for ids in paths]
    assert [(span.start, span.stop) for span in last] == [(start, start + 9), (start, start + 10)]
    assert last[0].segment_id != last[1].segment_id


def test_a_turn_writes_its_own_delta_and_nothing_else(bench: Bench) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    before = {path: path.stat().st_mtime_ns for path in bench.files()}
    ids = ids_of(SYSTEM + HELLO + HI + "And now? Well.")
    new = len("And now? Well.")
    size = bench.cache.commit(
        ids,
        [len(SYSTEM + HELLO + HI), len(ids)],
        lambda start, stop: ByteBlock(ids, start, stop),
    )
    bench.cache.drain()
    assert size == new * (BYTES_PER_TOKEN + 4)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(bench.files()) == len(before) + 1


def test_a_fork_from_the_middle_of_a_segment_uses_its_beginning(bench: Bench) -> None:
    bench.turn("a long first message ", "answer")
    assert bench.turn("a long first word ", "other") == len("a long first ")
    bench.close()
    bench.reopen()
    assert bench.turn("a long first word ", "other", "?", "!") == len("a long first word other")


@pytest.mark.parametrize("harm", ["delete", "truncate", "flip", "zero", "swap"])
def test_a_damaged_segment_ends_the_match_and_the_turn_goes_on(bench: Bench, harm: str) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    victim = bench.files()[1]
    content = bytearray(victim.read_bytes())
    if harm == "delete":
        victim.unlink()
    elif harm == "truncate":
        victim.write_bytes(content[:-1])
    elif harm == "flip":
        content[-5] ^= 4
        victim.write_bytes(content)
    elif harm == "zero":
        victim.write_bytes(bytes(len(content)))
    else:
        shutil.copy(bench.files()[0], victim)
    bench.reopen()
    sound = sorted(int(path.name.split("-")[1]) for path in bench.files() if path != victim)
    start = int(victim.name.split("-")[0])
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") == (start if start in (0, *sound) else 0)
    if harm != "delete":
        assert [file.segment_id for file in bench.cache.damaged] == [victim.stem.split("-")[2]]
        assert any(kind == "quarantined" for kind, _ in bench.events)
    bench.close()
    bench.reopen()
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.", "?", "!") == len(
        SYSTEM + HELLO + HI + "On. Yes."
    )


def test_damage_while_running_is_found_at_the_read(bench: Bench) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    bench.reopen()
    victim = bench.files()[0]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    ids = ids_of(SYSTEM + HELLO + HI)
    sink = ByteSink()
    with bench.cache.acquire(ids, len(ids)) as lease:
        restored = bench.cache.restore(lease, sink, 0)
    assert (restored.num_tokens, sink.num_tokens, restored.is_damage) == (0, 0, True)
    assert bench.cache.lookup(ids).num_tokens == 0


@pytest.mark.parametrize("is_open", [True, False], ids=["while running", "before opening"])
def test_a_sound_file_of_other_tokens_under_the_right_name_is_refused(
    bench: Bench, is_open: bool
) -> None:
    """Name, id, header and checksums are all right; only the ids themselves tell."""
    bench.turn(SYSTEM, HELLO, HI)
    bench.close()
    if is_open:
        bench.reopen()
    victim = bench.files()[-1]
    with SegmentFile(victim) as file:
        header = file.header
    other = ids_of("x" * header.stop)
    forged = replace(header, token_ids=other[header.start :])
    with victim.open("wb") as stream:
        write_segment(stream, forged, ByteBlock(other, header.start, header.stop).sources())
    if not is_open:
        bench.reopen()
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") < len(SYSTEM + HELLO + HI)
    assert header.segment_id in [file.segment_id for file in bench.cache.damaged]


def test_ram_pressure_spills_and_nothing_is_computed_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ram_budget=10 * BYTES_PER_TOKEN)
    bench.turn(SYSTEM, HELLO, HI)
    assert bench.cache.use()[0].num_bytes <= 10 * BYTES_PER_TOKEN
    assert bench.turn(SYSTEM, HELLO, HI, "?", "!") == len(SYSTEM + HELLO + HI)
    bench.close()


def test_without_a_disk_tier_the_oldest_leaf_is_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ram_budget=60 * BYTES_PER_TOKEN, is_spilling=False)
    bench.turn(SYSTEM, HELLO, HI)
    bench.turn(SYSTEM, "x" * 30, "y" * 10)
    assert bench.files() == []
    assert bench.cache.lookup(ids_of(SYSTEM + HELLO)).num_tokens == len(SYSTEM)
    assert bench.cache.use()[0].num_bytes <= 60 * BYTES_PER_TOKEN


def test_the_disk_budget_evicts_leaves_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.turn(SYSTEM, HELLO, HI)
    size = sum(path.stat().st_size for path in bench.files())
    bench.close()
    bench = Bench(tmp_path, disk_budget=size - 1)
    assert bench.cache.lookup(ids_of(SYSTEM + HELLO + HI)).num_tokens == len(SYSTEM + HELLO)
    bench.close()


def test_segments_of_other_models_make_room_when_they_are_older(tmp_path: Path) -> None:
    other = PrefixCache(tmp_path, "other", ram_budget=1 << 20, disk_budget=1 << 20)
    other.open({})
    ids = ids_of("old words")
    other.commit(ids, [9], lambda start, stop: ByteBlock(ids, start, stop))
    other.close()
    (old,) = (tmp_path / "segments" / "other").glob("*.safetensors")
    os.utime(old, (1, 1))
    bench = Bench(tmp_path, disk_budget=old.stat().st_size + 100)
    bench.turn(HELLO, HI)
    bench.close()
    assert not old.exists()
    assert bench.files()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    bench = Bench(tmp_path / "cache")
    assert bench.turn(HELLO, HI) == 0
    assert bench.turn(HELLO, HI, "?", "!") == len(HELLO + HI)
    assert [kind for kind, _ in bench.events] == ["warning"]
    tmp_path.chmod(0o700)


def test_a_cache_directory_that_is_a_file_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a directory")
    bench = Bench(tmp_path / "cache")
    assert bench.turn(HELLO, HI) == 0
    assert bench.turn(HELLO, HI, "?", "!") == len(HELLO + HI)
    assert [kind for kind, _ in bench.events] == ["warning"]


def test_a_cache_that_is_removed_in_mid_chat_begins_again(bench: Bench) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    shutil.rmtree(bench.directory)
    bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.")
    bench.close()
    bench.reopen()
    whole = ids_of(SYSTEM + HELLO + HI + "On. Yes.")
    assert bench.cache.lookup(whole).disk_tokens == len(whole)


def test_a_full_disk_keeps_the_path_of_what_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is made by what is not needed for it; what cannot be reached is not written."""
    bench.turn("something else, and older. ", "Yes. ")
    bench.turn(SYSTEM, HELLO, HI)
    real, is_full = segments.write_segment, [True]

    def write_if_there_is_room(*arguments: Any) -> int:
        if is_full.pop() if is_full else False:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(segments, "write_segment", write_if_there_is_room)
    bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.")
    bench.close()
    bench.reopen()
    whole = ids_of(SYSTEM + HELLO + HI + "On. Yes.")
    assert bench.cache.lookup(whole).disk_tokens == len(whole)
    assert bench.cache.lookup(ids_of("something else, and older. Yes. ")).num_tokens == 27


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory: 9 bytes")])
def test_where_memory_has_no_room_for_a_copy_the_turn_goes_on(
    bench: Bench, error: Exception
) -> None:
    bench.turn(SYSTEM, HELLO, HI)
    ids = ids_of(SYSTEM + HELLO + HI + "On. ")

    def export(start: int, stop: int) -> ByteBlock:
        raise error

    assert bench.cache.commit(ids, [len(ids)], export) == 0
    assert [text for kind, text in bench.events if kind == "warning"] == [
        f"tokens 28-32 are not kept: {str(error) or 'the memory is full'}"
    ]
    assert bench.turn(SYSTEM, HELLO, HI, "On. ", "Yes.") == len(SYSTEM + HELLO + HI)


def test_leftovers_of_a_killed_writer_are_removed(bench: Bench) -> None:
    bench.turn(HELLO, HI)
    leftover = bench.directory / "segments" / "ns" / ".tmp-999999999-abc123"
    leftover.write_bytes(b"half a segment")
    bench.close()
    bench.reopen()
    assert not leftover.exists()
    assert bench.turn(HELLO, HI, "?", "!") == len(HELLO + HI)


def test_files_are_private(bench: Bench) -> None:
    bench.turn(HELLO, HI)
    for path in bench.files():
        assert path.stat().st_mode & 0o077 == 0
    assert (bench.directory / "segments" / "ns").stat().st_mode & 0o077 == 0


def test_a_store_lists_what_its_namespace_means(bench: Bench) -> None:
    assert SegmentStore(bench.directory, "ns").fields() == FIELDS
