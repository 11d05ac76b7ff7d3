"""Two tokenizers side by side: all tokens of both, and aligned where both end one."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece, TokenPieces
from chatcache.frontend.lens import compare_view as view
from chatcache.frontend.lens.compare_view import CompareFacts
from chatcache.frontend.lens.page import text_of
from chatcache.token_ids import TokenIds
from tests.lens_facts import TEXTS

SPOKEN = st.lists(TEXTS, max_size=30).map("".join).map(lambda text: text.replace("\ud800", "?"))


def cut(text: str, seed: int, name: str) -> TokenPieces:
    """A text cut anywhere, also within characters, as a tokenizer that works on bytes does."""
    raw, chance = text.encode(), random.Random(seed)
    cuts = sorted({0, len(raw), *(chance.randrange(len(raw) + 1) for _ in range(len(raw) // 3))})
    pieces: dict[tuple[str, bool], TokenPiece] = {}
    ids = []
    for start, stop in itertools.pairwise(cuts):
        part = raw[start:stop]
        try:
            key = (part.decode(), False)
        except UnicodeDecodeError:
            key = ("".join(f"<{byte:02X}>" for byte in part), True)
        piece = pieces.setdefault(key, TokenPiece(len(pieces), key[0], is_part=key[1]))
        ids.append(piece.token_id)
    return TokenPieces(tuple(pieces.values()), TokenIds(ids), name)


@settings(max_examples=60)
@given(SPOKEN, st.integers(0, 9), st.integers(0, 9), st.integers(30, 100))
def test_every_token_of_both_is_there_and_no_line_is_wider(
    text: str, left: int, right: int, width: int
) -> None:
    facts = CompareFacts(text, cut(text, left, "one"), cut(text, right, "other"))
    page = view.page(facts, width)
    for line in page.lines:
        assert fmt.width(text_of(line)) <= width
        assert text_of(line).isprintable()
    for name, side in (("a", facts.left), ("b", facts.right)):
        known = {piece.token_id: piece.text for piece in side.pieces}
        spelled = [known[token_id] for token_id in side.ids]
        assert [part for group in page.data["groups"] for part in group[name]] == spelled
        assert page.data[name]["tokens"] == len(side.ids)
    if left == right:
        assert all(group["a"] == group["b"] for group in page.data["groups"])
        assert "Both make as many" in page.sentences[2]


def tokens(name: str, *texts: str) -> TokenPieces:
    pieces = tuple(TokenPiece(number, text) for number, text in enumerate(texts))
    return TokenPieces(pieces, TokenIds(range(len(texts))), name)


def test_words_are_aligned_whatever_is_done_with_the_spaces() -> None:
    left = tokens("builtin", "Hello", " world", "!", "\n", "ok")
    right = tokens("other", "Hel", "lo", " ", "wor", "ld!", "\nok")
    page = view.page(CompareFacts("Hello world!\nok", left, right), 60)
    text = "\n".join(text_of(line).rstrip() for line in page.lines)
    assert "A builtin: 5 tokens, 3.0 characters each" in text
    assert "B makes 1 token more of it, 1.20 times as many." in text
    assert "A ┃Hello ┃·world│! ┃↵│ok┃\nB ┃Hel│lo┃·│wor│ld!┃↵ok ┃" in text
    assert "Hello for A, Hel | lo for B." in page.sentences


def test_a_text_that_one_of_them_has_written_otherwise_is_one_group() -> None:
    facts = CompareFacts("Ab", tokens("x", "Ab"), tokens("y", "a", "b", "b"))
    assert len(view.aligned(facts)) == 1
    assert len(view.aligned(CompareFacts("", tokens("x"), tokens("y")))) == 1
