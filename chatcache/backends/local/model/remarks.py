"""What somebody should know of a loaded model before it answers, in whole sentences.

Owns the words. What was decided, and why, is told by whoever loaded it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def remarks(
    name: str, stored: torch.dtype, dtype: torch.dtype, *, has_template: bool, is_chosen: bool
) -> Iterator[str]:
    """`stored` is the dtype that the model was saved in, `dtype` the one that it runs in; by the
    user's choice if `is_chosen`."""
    if not has_template:
        yield (
            f"{name} has no chat template: it gets a plain format (User:, Assistant:), and may not "
            "have been made for chats."
        )
    if is_chosen or dtype == stored:
        return
    text = f"{name} was saved in {_word(stored)} and runs in {_word(dtype)}"
    if dtype.itemsize > stored.itemsize:
        text += ", which takes twice the memory"
    yield f"{text}, because this machine is quicker or more exact with it; --dtype chooses another."


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
