"""What a live path says of itself, whatever is run, restored, cut off and forgotten on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import LivePath, chunks
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.token_ids import TokenIds

ids_lists = st.lists(st.integers(0, 3), max_size=12)
acts = st.lists(
    st.tuples(
        st.sampled_from(["run", "hold", "forget", "start_cold"]), ids_lists, st.integers(1, 5)
    ),
    max_size=8,
)


def forward(cache: LiveKV, token_ids: Sequence[int], start: int) -> torch.Tensor:
    """A model whose keys and values are the ids themselves."""
    assert cache.num_tokens == start
    states = torch.tensor([list(token_ids)], dtype=torch.float32)[:, None, :, None]
    cache.update(states, states.clone(), 0)
    return states[:, 0, -1]


def live_path() -> LivePath:
    return LivePath(cast(Forward, forward), LiveKV(1, torch.float32, torch.device("cpu")))


def live_ids(path: LivePath) -> list[Any]:
    if not path.kv.num_tokens:
        return []
    block = path.kv.export(0, path.kv.num_tokens)
    return cast(list[Any], block.tensors["key.0"].flatten().tolist())


@given(acts)
def test_the_ids_are_those_whose_keys_are_live(acts: list[tuple[str, list[int], int]]) -> None:
    path = live_path()
    for act, tokens, size in acts:
        ids = TokenIds(tokens)
        shared = path.ids.common_prefix(ids)
        if act == "run":
            path.hold(ids, shared)
            done = [step.done for step in path.run(ids, chunks(shared, len(ids), size))]
            assert done == [stop for _, stop in chunks(shared, len(ids), size)]
            path.num_kept = path.kv.num_tokens
        elif act == "hold":
            path.hold(ids, min(shared, size))
        else:
            path.computed_from = path.num_kept
            getattr(path, act)()
            assert path.num_kept == 0
            assert act == "forget" or path.computed_from == 0
        assert live_ids(path) == list(path.ids)
        assert path.num_kept <= path.kv.num_tokens


def test_a_run_may_be_left_between_two_pieces() -> None:
    path, ids = live_path(), TokenIds(range(9))
    steps = path.run(ids, chunks(0, 9, 4))
    assert [next(steps).done, next(steps).done] == [4, 8]
    assert live_ids(path) == list(path.ids) == list(range(8))
