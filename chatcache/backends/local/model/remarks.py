"""What somebody should know of a loaded model before it answers, in whole sentences.

Owns the words. What was decided, and why, is told by whoever loaded it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from chatcache.backends.local.model.loader import LoadedModel


def remarks(loaded: LoadedModel, *, is_dtype_chosen: bool) -> Iterator[str]:
    """`is_dtype_chosen`: by the user, who needs no telling."""
    if not loaded.tokenizer.chat_template:
        yield (
            f"{loaded.name} has no chat template: it gets a plain format (User:, Assistant:), and "
            "may not have been made for chats."
        )
    stored, dtype = loaded.stored_dtype, loaded.dtype
    if is_dtype_chosen or dtype == stored:
        return
    text = f"{loaded.name} was saved in {_word(stored)} and runs in {_word(dtype)}"
    if dtype.itemsize > stored.itemsize:
        text += ", which takes twice the memory"
    yield f"{text}, because this machine is quicker or more exact with it; --dtype chooses another."


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
