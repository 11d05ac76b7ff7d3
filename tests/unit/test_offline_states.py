"""What is known without an engine of models with states: they resume at checkpoints alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatcache.cache.files.store import SegmentStore
from chatcache.cache.inspect import CacheInspector
from chatcache.cache.prefix import PrefixCache
from chatcache.token_ids import TokenIds
from tests.kvfakes import FIELDS, ByteBlock, ids_of

SYSTEM, FIRST, ANSWER = "You are helpful. ", "Hello, who are you? ", "I am what I am. "
WHOLE = SYSTEM + FIRST + ANSWER


def remember(directory: Path, *, with_states: bool) -> CacheInspector:
    """A conversation as an engine leaves it; with states, each segment ends at a checkpoint."""
    ids = ids_of(WHOLE)
    cache = PrefixCache(
        directory, "ns", ram_budget=1 << 20, disk_budget=1 << 20, needs_states=with_states
    )
    cache.open(FIELDS)
    ends = [len(SYSTEM), len(SYSTEM + FIRST), len(WHOLE)]
    cache.commit(
        ids,
        ends,
        lambda start, stop: ByteBlock(ids, start, stop, with_states=with_states),
    )
    cache.close()
    return CacheInspector(directory, 1 << 20, 1 << 20)


def journal(text: str) -> TokenIds:
    return ids_of(text)


@pytest.mark.parametrize(
    ("text", "held", "held_with_states"),
    [
        (WHOLE + "More.", len(WHOLE), len(WHOLE)),
        (SYSTEM + FIRST + "I am so", len(SYSTEM + FIRST) + 5, len(SYSTEM + FIRST)),
        (SYSTEM + "Hello there", len(SYSTEM) + 5, len(SYSTEM)),
        ("You were", 4, 0),
    ],
)
def test_an_estimate_knows_where_a_model_resumes(
    tmp_path: Path, text: str, held: int, held_with_states: int
) -> None:
    for with_states, expected in ((False, held), (True, held_with_states)):
        inspector = remember(tmp_path / str(with_states), with_states=with_states)
        (cost,) = inspector.estimate("ns", [journal(text)]) or [None]
        assert cost is not None
        assert (cost.disk_tokens, cost.recompute_tokens) == (expected, len(text) - expected)
        assert inspector.num_held("ns", journal(text)) == expected
        (kv,) = inspector.branch_kv([("ns", journal(text))], [[0]])
        assert kv.disk_tokens == expected


def test_forgetting_a_chat_with_states_leaves_what_another_one_uses(tmp_path: Path) -> None:
    inspector = remember(tmp_path, with_states=True)
    other = journal(SYSTEM + FIRST + "Somebody else.")
    assert inspector.forget("ns", [journal(WHOLE)], [other]) == 1
    assert inspector.num_held("ns", journal(WHOLE)) == len(SYSTEM + FIRST)


def test_the_first_sound_file_tells_whether_there_are_states(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path, "ns")
    assert not store.has_states()
    remember(tmp_path, with_states=True)
    assert store.has_states()
    for path in store.paths()[:-1]:
        path.write_bytes(b"")
    assert store.has_states()
