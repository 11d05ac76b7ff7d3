"""Text and control tokens of one tokenizer, in both directions, never mistaken for each other.

Owns: which added tokens steer the model (control tokens), how their strings in ordinary text are
broken by a marker character, and the way between marked text and ids. In marked text ("symbols") a
control string that is whole stands for the control token; a broken one is text that somebody
wrote. Knows nothing of messages or templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chatcache.backends.local.prompt.detokenize import plain_decode, special_ids
from chatcache.token_ids import TokenIds

# The shape that control tokens have across model families.
_CONTROL_SHAPE = re.compile(r"<[|｜].+[|｜]>|\[/?[A-Z_]{3,}\]", re.DOTALL)
_ANCHORS = ("", "\n")
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Segment:
    """A control token (`token_id`) or a run of marked text; `start` is its offset."""

    text: str
    start: int
    token_id: int | None = None


class SymbolCodec:
    """Encodes marked text and decodes ids to marked text, for one tokenizer and its template.

    Special tokens are control tokens. Added tokens that are not special are, when the template
    writes them or when they look like it; others (runs of spaces, HTML tags) are vocabulary.
    """

    def __init__(self, tokenizer: Any, template: str = "") -> None:
        self._tokenizer = tokenizer
        self.decode = plain_decode(tokenizer)
        special = special_ids(tokenizer)
        declared = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        self.controls: dict[str, int] = {}
        self.specials: set[str] = set()
        for token_id, token in tokenizer.added_tokens_decoder.items():
            content = token.content
            if len(content) < 2 or content.isspace():
                continue
            if token_id in special:
                self.specials.add(content)
            is_written = content in declared or content in template
            if token_id in special or is_written or _CONTROL_SHAPE.fullmatch(content):
                self.controls[content] = token_id
        self.control_ids = {token_id: text for text, token_id in self.controls.items()}
        self._pattern = any_of(self.controls)
        self._breaker = breaker(self.controls)
        self._num_ids = len(tokenizer)
        self._anchor, self._num_anchor_ids = self._find_anchor()

    def mark(self, text: str, marker: str) -> str:
        """`text` with every control string broken after its first character."""
        return break_controls(text, marker, self._pattern, self._breaker)

    def segments(self, symbols: str) -> Iterator[Segment]:
        """Control tokens and the runs of text between them, in order."""
        start = 0
        for match in self._pattern.finditer(symbols):
            if match.start() > start:
                yield Segment(symbols[start : match.start()], start)
            yield Segment(match.group(), match.start(), self.controls[match.group()])
            start = match.end()
        if start < len(symbols):
            yield Segment(symbols[start:], start)

    def encode(self, symbols: str, marker: str, after: int | None = None) -> list[int]:
        """The canonical ids of `symbols`; `after` is the control token in front of it, if any."""
        prefix = "" if after is None else self.control_ids[after]
        pieces = (prefix + symbols).split(marker)
        ids = self._encode_pieces(pieces)
        expected = [segment.token_id for segment in self.segments(prefix + symbols)]
        found = [token_id for token_id in ids if token_id in self.control_ids]
        if found != [token_id for token_id in expected if token_id is not None]:
            ids = self._encode_strictly(prefix + symbols, marker)
        return ids if after is None else ids[1:]

    def runs(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(start, stop) of each control token and of each run of ordinary ids between them."""
        start = 0
        for at, token_id in enumerate(ids):
            if token_id in self.control_ids:
                if at > start:
                    yield start, at
                yield at, at + 1
                start = at + 1
        if start < len(ids):
            yield start, len(ids)

    def run_text(self, ids: Sequence[int], start: int, stop: int) -> str:
        """The text of a run, decoded as it stands behind the control token in front of it."""
        run = list(ids[start:stop])
        anchor = self.control_ids.get(ids[start - 1]) if start else None
        if anchor is not None:
            text = self.decode([ids[start - 1], *run])
            if text.startswith(anchor):
                return text[len(anchor) :]
        return self.decode(run)

    def symbols(self, ids: Sequence[int], marker: str) -> str:
        """Marked text of `ids`: real control tokens whole, control strings in text broken."""
        return "".join(
            self.control_ids[ids[start]]
            if ids[start] in self.control_ids
            else self.mark(self.run_text(ids, start, stop), marker)
            for start, stop in self.runs(ids)
        )

    def num_known(self, ids: TokenIds) -> int:
        """How many leading ids this tokenizer has at all."""
        if not ids or max(ids) < self._num_ids:
            return len(ids)
        return next(at for at, token_id in enumerate(ids) if token_id >= self._num_ids)

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Each piece on its own, so that nothing forms across two; no space is put in between."""
        first = self._tokenizer.encode(pieces[0], add_special_tokens=False)
        if len(pieces) == 1:
            return list(first)
        rest = self._tokenizer(
            [self._anchor + piece for piece in pieces[1:]],
            add_special_tokens=False,
            return_attention_mask=False,
        )["input_ids"]
        return [*first, *(id_ for ids in rest for id_ in ids[self._num_anchor_ids :])]

    def _encode_strictly(self, symbols: str, marker: str) -> list[int]:
        """Control tokens by their ids and text in pieces too small to hold one.

        For tokenizers whose normaliser turns other text into a control string.
        """
        ids: list[int] = []
        for segment in self.segments(symbols):
            if segment.token_id is not None:
                ids.append(segment.token_id)
                continue
            for piece in segment.text.split(marker):
                ids += self._encode_without_controls(piece)
        return ids

    def _encode_without_controls(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self._encode_pieces(["", text])
        if len(text) == 1 or not any(token_id in self.control_ids for token_id in ids):
            return ids
        half = len(text) // 2
        return self._encode_without_controls(text[:half]) + self._encode_without_controls(
            text[half:]
        )

    def _find_anchor(self) -> tuple[str, int]:
        """Text to put in front of a piece so that the tokenizer adds no space to its beginning."""
        encode = self._tokenizer.encode
        before = encode("y", add_special_tokens=False)
        for anchor in _ANCHORS:
            num_ids = len(encode(anchor, add_special_tokens=False)) if anchor else 0
            if all(
                self.decode(before + encode(anchor + probe, add_special_tokens=False)[num_ids:])
                == self.decode(before) + probe
                for probe in ("x", " x", "|x")
            ):
                return anchor, num_ids
        return "", 0


def break_controls(
    text: str, marker: str, pattern: re.Pattern[str], breaker_pattern: re.Pattern[str]
) -> str:
    """Put `marker` behind the first character of every control string, overlapping ones too."""
    if pattern.search(text) is None:
        return text
    return breaker_pattern.sub(lambda match: match.group() + marker, text)


def breaker(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches the first character of every one of `strings`, wherever one begins."""
    source = _trie_source(strings)
    return re.compile(f"(?={source}).", re.DOTALL) if source else _NEVER


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of `strings`; thousands of them cost no more than a few."""
    source = _trie_source(strings)
    return re.compile(source) if source else _NEVER


def _trie_source(strings: Iterable[str]) -> str:
    trie: dict[str, Any] = {}
    for string in strings:
        node = trie
        for character in string:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branch_source(trie)


def _branch_source(node: dict[str, Any]) -> str:
    """The regular expression of one trie node; chains without a branch stay plain text."""
    branches = []
    for character, child in node.items():
        if not character:
            continue
        chain = re.escape(character)
        while len(child) == 1 and "" not in child:
            character, child = next(iter(child.items()))
            chain += re.escape(character)
        branches.append(chain + _branch_source(child))
    if not branches:
        return ""
    source = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{source})?" if "" in node else source
