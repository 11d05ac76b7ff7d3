"""Two models are told apart by their content, however alike they look from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatcache.backends.local.model import identity
from chatcache.backends.local.model.identity import HashBook
from tests.models import build_metaspace_tokenizer, build_tokenizer


def test_equal_content_has_an_equal_id_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"weights")
    one = identity.weights_id([tmp_path / "a"], None)
    assert one == identity.weights_id([tmp_path / "b"], None)
    assert one != identity.weights_id([tmp_path / "a", tmp_path / "b"], None)


def test_a_hash_is_taken_once_and_remembered(tmp_path: Path) -> None:
    weights, book = tmp_path / "model.safetensors", tmp_path / "cache" / "weights.json"
    weights.write_bytes(b"weights")
    read: list[int] = []
    first = identity.weights_id([weights], book, lambda done, total: read.append(done))
    again = identity.weights_id([weights], book, lambda done, total: read.append(done))
    assert (first, read) == (again, [7])
    assert book.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("keeps_size", [True, False])
def test_a_file_that_changed_is_hashed_again(tmp_path: Path, keeps_size: bool) -> None:
    weights, book = tmp_path / "model.safetensors", tmp_path / "weights.json"
    weights.write_bytes(b"weights")
    before = identity.weights_id([weights], book)
    replacement = tmp_path / "new"
    replacement.write_bytes(b"Weights" if keeps_size else b"more weights")
    replacement.replace(weights)
    assert identity.weights_id([weights], book) != before


@pytest.mark.parametrize("prefix", ["", "sha256-"], ids=["hub", "ollama"])
def test_files_of_the_hub_and_of_ollama_are_known_by_their_names(
    tmp_path: Path, prefix: str
) -> None:
    blob = tmp_path / "blobs" / (prefix + "ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"not what was hashed")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert HashBook(None).sha256(link) == "ab" * 32


def test_a_book_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    weights, book = tmp_path / "model.safetensors", tmp_path / "cache" / "weights.json"
    weights.write_bytes(b"weights")
    book.mkdir(parents=True)
    assert identity.weights_id([weights], book) == identity.weights_id([weights], None)
    assert list(book.parent.iterdir()) == [book]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 3}', b'{"x": [1, 2, 3, "no"]}'])
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    weights, book = tmp_path / "model.safetensors", tmp_path / "weights.json"
    weights.write_bytes(b"weights")
    book.write_bytes(content)
    assert identity.weights_id([weights], book) == identity.weights_id([weights], None)


def test_a_book_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    unwritable = tmp_path / "model.safetensors" / "weights.json"
    assert identity.weights_id([weights], unwritable)


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    weights, book = tmp_path / "model.safetensors", tmp_path / "weights.json"
    book.write_text(json.dumps({"/no/such/file": [1, 2, 3, "cd" * 32]}))
    weights.write_bytes(b"weights")
    identity.weights_id([weights], book)
    assert list(json.loads(book.read_text())) == [str(weights)]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[0, 0].fill_(9),
        lambda tensor: tensor.copy_(tensor.flip(0)),
        lambda tensor: tensor.neg_(),
    ],
    ids=["one value", "another order", "sign"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_in_memory_are_told_apart(
    change: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    tensor = torch.arange(12, dtype=dtype).reshape(3, 4)
    before = identity.parameters_id([("w", tensor)])
    assert before == identity.parameters_id([("w", tensor.clone())])
    change(tensor)
    assert before != identity.parameters_id([("w", tensor)])


def test_names_shapes_and_dtypes_belong_to_the_parameters() -> None:
    tensor = torch.zeros(2, 3)
    variants = [
        [("w", tensor)],
        [("v", tensor)],
        [("w", tensor.reshape(3, 2))],
        [("w", tensor.to(torch.int32))],
    ]
    assert len({identity.parameters_id(variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("dtype", "integers"),
    [
        (torch.int8, torch.uint8),
        (torch.bfloat16, torch.int16),
        (torch.float32, torch.int32),
        (torch.float64, torch.int64),
    ],
)
def test_the_sum_of_parameters_is_that_of_torch(dtype: torch.dtype, integers: torch.dtype) -> None:
    """It is in the name of everything that was ever kept."""
    bits = torch.randint(0, 256, (3000, 8), dtype=torch.uint8)
    tensor = bits.view(dtype).T  # not contiguous
    flat = tensor.contiguous().flatten().view(integers)
    samples = flat[:: max(1, flat.numel() // 64)][:64].tolist()
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"w|{tuple(tensor.shape)}|{dtype}{int(flat.sum())}{samples}".encode())
    assert identity.parameters_id([("w", tensor)]) == digest.hexdigest()


def test_a_tokenizer_is_its_vocabulary_and_not_its_template() -> None:
    first = identity.tokenizer_id(build_tokenizer())
    assert first == identity.tokenizer_id(build_tokenizer(chat_template=None))
    others = [
        build_tokenizer(vocab_size=380),
        build_tokenizer(plain_added_tokens=()),
        build_metaspace_tokenizer(),
    ]
    assert len({first, *(identity.tokenizer_id(other) for other in others)}) == 4


def test_the_id_of_a_tokenizer_is_remembered_by_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, model = tmp_path / "books", tmp_path / "model"
    first, other = build_tokenizer(), build_tokenizer(vocab_size=380)
    first.save_pretrained(model)
    found = identity.remembered_tokenizer_id(first, model, book)
    assert found == identity.tokenizer_id(first)
    monkeypatch.setattr(identity, "tokenizer_id", lambda tokenizer: "computed")
    assert identity.remembered_tokenizer_id(first, model, book) == found
    assert identity.remembered_tokenizer_id(first, model, None) == "computed"
    monkeypatch.undo()
    other.save_pretrained(model)
    assert identity.remembered_tokenizer_id(other, model, book) == identity.tokenizer_id(other)
    first.save_pretrained(model)
    assert identity.remembered_tokenizer_id(first, model, book) == found


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', None])
def test_a_damaged_book_of_tokenizers_is_no_book(content: str | None, tmp_path: Path) -> None:
    book, tokenizer = tmp_path / "tokenizers.json", build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    found = identity.remembered_tokenizer_id(tokenizer, tmp_path / "model", tmp_path)
    text = book.read_text()
    book.write_text(text.replace(found, "nonsense") if content is None else content)
    assert identity.remembered_tokenizer_id(tokenizer, tmp_path / "model", tmp_path) == found
    if content is None:
        assert book.read_text() == text


def test_encoding_with_truncation_leaves_the_id_as_it_is() -> None:
    tokenizer = build_tokenizer()
    before = identity.tokenizer_id(tokenizer)
    tokenizer("word " * 50, truncation=True, max_length=4)
    assert identity.tokenizer_id(tokenizer) == before


def test_a_config_is_what_the_model_computes() -> None:
    config = {"rope_theta": 1e4, "layers": ["a"], "_name_or_path": "x", "text": {"dtype": "y"}}
    same = config | {"_name_or_path": "z", "transformers_version": "9", "text": {}}
    assert identity.config_id(config) == identity.config_id(same)
    assert identity.config_id(config) != identity.config_id(config | {"rope_theta": 1e5})


def test_an_adapter_is_its_weights_and_its_scale(tmp_path: Path) -> None:
    assert identity.adapter_id(None, None) == "none"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"lora")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    before = identity.adapter_id(tmp_path, None)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    assert identity.adapter_id(tmp_path, None) != before
