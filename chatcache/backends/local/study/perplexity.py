"""How surprised a model is by a text: perplexity, and with it what fewer bits cost.

A text is read in chunks of one length, each without what was before it, and every token but the
first is scored. Of dialogues (JSON lines with `messages`) each is read as the model's template
writes it, and the answers alone are scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.packed.blocks import PackedModule
from chatcache.errors import NotFoundError, UsageError

_SCORED_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Chunk:
    """Token ids that are read together, and the positions of those that are scored."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`perplexity` is exp of the mean of -log p over `num_scored` tokens."""

    perplexity: float
    num_scored: int
    num_chunks: int


def read_text(path: Path) -> str:
    """Raises NotFoundError, UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}.", "Check --text.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as UTF-8 text: {error}.", "Check --text."
        ) from error


def chunks_of(text: str, tokenizer: Any, length: int, max_tokens: int | None) -> list[Chunk]:
    """What is to be read. Raises UsageError if nothing of the text can be scored."""
    dialogues = _dialogues(text)
    if dialogues is not None and tokenizer.chat_template:
        found = _of_dialogues(dialogues, tokenizer, length)
    else:
        plain = text if dialogues is None else "\n\n".join(map(_as_plain, dialogues))
        found = _of_text(plain, tokenizer, length)
    chosen: list[Chunk] = []
    total = 0
    for chunk in found:
        if max_tokens is not None and total + len(chunk.ids) > max_tokens and chosen:
            break
        chosen.append(chunk)
        total += len(chunk.ids)
    if not chosen:
        raise UsageError("The text is too short to be scored.", "Take another one with --text.")
    return chosen


@torch.inference_mode()
def perplexity_of(
    loaded: LoadedModel,
    chunks: Sequence[Chunk],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """`tell` hears the chunks done of all."""
    total, num_scored = 0.0, 0
    for done, chunk in enumerate(chunks):
        tell(done, len(chunks))
        ids = torch.tensor([chunk.ids], device=loaded.device)
        logits = loaded.model(ids, use_cache=False).logits[0]
        for start in range(0, len(chunk.scored), _SCORED_AT_ONCE):
            places = torch.tensor(chunk.scored[start : start + _SCORED_AT_ONCE], device=ids.device)
            rows = logits[places - 1].float()
            total += float(torch.nn.functional.cross_entropy(rows, ids[0, places], reduction="sum"))
        num_scored += len(chunk.scored)
    mean = total / num_scored
    return Perplexity(math.exp(mean) if mean < 700 else math.inf, num_scored, len(chunks))


def weight_bytes(loaded: LoadedModel) -> int:
    """What the weights take, packed or not; those that are shared count once."""
    packed = {
        matrix.address: matrix.num_bytes
        for module in loaded.model.modules()
        if isinstance(module, PackedModule)
        for matrix in module.matrices
    }
    if not packed:
        return loaded.num_parameters * loaded.dtype.itemsize
    rest = sum(int(parameter.nbytes) for parameter in loaded.model.parameters())
    return sum(packed.values()) + rest


def _dialogues(text: str) -> list[list[dict[str, str]]] | None:
    """The messages of each line; None: it is no such file."""
    found = []
    try:
        for line in filter(None, map(str.strip, text.splitlines())):
            messages = json.loads(line)["messages"]
            found.append([{"role": str(m["role"]), "content": str(m["content"])} for m in messages])
    except (ValueError, KeyError, TypeError):
        return None
    return found or None


def _as_plain(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _of_text(text: str, tokenizer: Any, length: int) -> Iterator[Chunk]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(0, len(ids), length):
        if len(piece := tuple(ids[start : start + length])) > 1:
            yield Chunk(piece, tuple(range(1, len(piece))))


def _of_dialogues(
    dialogues: Sequence[list[dict[str, str]]], tokenizer: Any, length: int
) -> Iterator[Chunk]:
    """One chunk per dialogue. An answer is scored where the template writes what was before it in
    the same way in the end."""
    for messages in dialogues:
        ids = _rendered(tokenizer, messages, is_prompt=False)[:length]
        scored: list[int] = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = _rendered(tokenizer, messages[:index], is_prompt=True)
                answered = _rendered(tokenizer, messages[: index + 1], is_prompt=False)
                if prompt and prompt == ids[: len(prompt)]:
                    scored += range(len(prompt), min(len(answered), len(ids)))
        if scored:
            yield Chunk(tuple(ids), tuple(scored))


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, is_prompt: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
