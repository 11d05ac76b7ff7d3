"""The radix tree against a plain dictionary of token tuples."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatcache.cache.book.radix import RadixTree, Span
from chatcache.token_ids import TokenIds

ids = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def test_a_shared_beginning_is_split_and_keeps_its_segment() -> None:
    tree = RadixTree()
    tree.insert(TokenIds([1, 2, 3, 4]), "first", 0)
    gained = tree.insert(TokenIds([1, 2, 9]), "second", 2)
    assert gained == [Span("second", 2, 3)]
    assert tree.match(TokenIds([1, 2, 3, 4, 5])).spans == (Span("first", 0, 4),)
    assert tree.match(TokenIds([1, 2, 9])).spans == (Span("first", 0, 2), Span("second", 2, 3))
    assert tree.parent_segment("second") == "first"


def test_what_was_computed_together_is_matched_together() -> None:
    tree = RadixTree()
    tree.insert(TokenIds([1, 2, 3, 4, 5]), "one", 0)
    tree.insert(TokenIds([1, 2, 3, 9]), "other", 1)
    assert tree.match(TokenIds([1, 2, 3, 4, 5])).spans == (Span("one", 0, 5),)
    assert tree.match(TokenIds([1, 2, 3, 9])).spans == (Span("one", 0, 1), Span("other", 1, 4))
    tree.remove("one")
    assert tree.match(TokenIds([1, 2, 3, 4, 5])).num_tokens == 0
    tree.insert(TokenIds([1]), "again", 0)
    assert tree.match(TokenIds([1, 2, 3, 4, 5])).spans == (Span("again", 0, 1), Span("other", 1, 3))


def test_a_hole_ends_the_match_until_it_is_filled() -> None:
    tree = RadixTree()
    tree.insert(TokenIds([1, 2]), "upper", 0)
    tree.insert(TokenIds([1, 2, 3]), "lower", 2)
    tree.remove("upper")
    assert tree.match(TokenIds([1, 2, 3])).num_tokens == 0
    assert "lower" in tree
    tree.insert(TokenIds([1, 2]), "again", 0)
    assert tree.match(TokenIds([1, 2, 3])).spans == (Span("again", 0, 2), Span("lower", 2, 3))


def test_an_unknown_path_is_refused() -> None:
    tree = RadixTree()
    with pytest.raises(ValueError, match="no path"):
        tree.insert(TokenIds([1, 2, 3]), "segment", 2)


class TreeAgainstDictionary(RuleBasedStateMachine):
    """`held` maps each held prefix (as a tuple) to the segments that label its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.held: dict[tuple[int, ...], list[str]] = {}
        self.count = 0

    def _match(self, token_ids: list[int]) -> int:
        length = 0
        while length < len(token_ids) and tuple(token_ids[: length + 1]) in self.held:
            length += 1
        return length

    @rule(token_ids=ids, back=st.integers(0, 3))
    def insert(self, token_ids: list[int], back: int) -> None:
        """What is computed may begin before the first position that nothing holds."""
        self.count += 1
        name = f"s{self.count}"
        matched = self._match(token_ids)
        start = max(0, matched - back)
        gained = self.tree.insert(TokenIds(token_ids), name, start)
        paths = [tuple(token_ids[: stop + 1]) for stop in range(start, len(token_ids))]
        new = [path for path in paths if path not in self.held]
        assert sum(span.stop - span.start for span in gained) == len(new)
        for path in paths:
            self.held.setdefault(path, []).append(name)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        names = {name for labels in self.held.values() for name in labels}
        name = data.draw(st.sampled_from(sorted(names)))
        self.tree.remove(name)
        left = {path: [n for n in labels if n != name] for path, labels in self.held.items()}
        self.held = {path: labels for path, labels in left.items() if labels}

    @rule(token_ids=ids)
    def match(self, token_ids: list[int]) -> None:
        result = self.tree.match(TokenIds(token_ids))
        assert result.num_tokens == self._match(token_ids)
        assert [span.stop for span in result.spans[:-1]] == [s.start for s in result.spans[1:]]
        for span in result.spans:
            for position in range(span.start, span.stop):
                assert span.segment_id in self.held[tuple(token_ids[: position + 1])]
        for before, after in zip(result.spans, result.spans[1:], strict=False):
            path = tuple(token_ids[: before.stop])
            assert after.segment_id not in self.held[path]

    @invariant()
    def sound(self) -> None:
        assert self.tree.check() == []
        assert len(self.tree) == len({n for labels in self.held.values() for n in labels})


TestTreeAgainstDictionary = TreeAgainstDictionary.TestCase
TestTreeAgainstDictionary.settings = settings(max_examples=60, stateful_step_count=25)
