"""The adapter of the built-in model: found by its name, another voice, another cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from chatcache.assets import adapter_dir, pocket_dir
from chatcache.backends.local.identity import namespace_fields
from chatcache.backends.local.loader import LoadedModel, load_model

# peft reads an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PIRATE_WORDS = ("arr", "ahoy", "aye", "yo ho", "savvy", "ye ", "matey")


def test_the_name_of_a_shipped_adapter_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adapter_dir("pirate") == pocket_dir() / "adapters" / "pirate"


def test_a_directory_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pirate").mkdir()
    monkeypatch.chdir(tmp_path)
    assert adapter_dir("pirate") == tmp_path / "pirate"
    assert adapter_dir("./pirate") == tmp_path / "pirate"


def test_what_is_no_shipped_adapter_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adapter_dir("parrot") == tmp_path / "parrot"
    assert adapter_dir("../pirate") == tmp_path / ".." / "pirate"


@pytest.fixture(scope="module")
def plain() -> LoadedModel:
    return load_model("builtin")


@pytest.fixture(scope="module")
def pirate() -> LoadedModel:
    pytest.importorskip("peft")
    return load_model("builtin", adapter=adapter_dir("pirate"))


def answer(loaded: LoadedModel, question: str) -> str:
    """The greedy answer to one message, in lower case."""
    chat = [{"role": "user", "content": question}]
    prompt = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = loaded.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    cache = DynamicCache()
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < 60:
            logits = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            token = int(logits[0, -1].argmax())
            if token in loaded.end_token_ids:
                break
            written.append(token)
            ids = torch.tensor([[token]])
    return loaded.tokenizer.decode(written).lower()


def test_base_and_adapter_share_no_namespace(plain: LoadedModel, pirate: LoadedModel) -> None:
    without, with_it = namespace_fields(plain), namespace_fields(pirate)
    differing = {name for name in without if without[name] != with_it[name]}
    assert {"adapter", "parameters"} <= differing
    assert without["weights"] == with_it["weights"]


def test_the_adapter_changes_the_voice(plain: LoadedModel, pirate: LoadedModel) -> None:
    assert not any(word in answer(plain, "hello") for word in PIRATE_WORDS)
    assert any(word in answer(pirate, "hello") for word in PIRATE_WORDS)


def test_the_pirate_still_knows_things(pirate: LoadedModel) -> None:
    assert "f4" in answer(pirate, "how do i fork a chat?")
