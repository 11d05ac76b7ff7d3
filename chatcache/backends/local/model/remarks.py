"""What somebody should know of a loaded model before it answers, in whole sentences.

Owns the words. What was decided, and why, is told by whoever loaded it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from chatcache.backends.local.model import fit
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.model.needs import SMALL_MODEL_PARAMETERS
from chatcache.formatting import model_name


def remarks(loaded: LoadedModel, *, is_dtype_chosen: bool) -> Iterator[str]:
    """`is_dtype_chosen`: by the user, who needs no telling. Of a small model another dtype costs
    little, and where the model is described it is told anyway."""
    name = model_name(loaded.name)
    if not loaded.tokenizer.chat_template:
        yield (
            f"{name} has no chat template: it gets a plain format (User:, Assistant:), and may not "
            "have been made for chats."
        )
    yield from loaded.notes
    if text := fit.remark(loaded.name, loaded.fit):
        yield text
    stored, dtype = loaded.stored_dtype, loaded.dtype
    is_small = loaded.num_parameters < SMALL_MODEL_PARAMETERS
    if is_dtype_chosen or is_small or dtype == stored:
        return
    text = f"{name} was saved in {dtype_word(stored)} and runs in {dtype_word(dtype)}"
    if dtype.itemsize > stored.itemsize:
        text += ", which takes twice the memory"
    yield (
        f"{text}: {loaded.device} is slow with {dtype_word(stored)}. --dtype {dtype_word(stored)} "
        "keeps it all the same."
    )


def dtype_word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
