"""A model in fewer bits, by its name: `NAME:4bit` is NAME as `--quantize 4bit` loads it.

Owns that spelling, for every place where a model is named. What else stands behind a colon (a
quantisation of a GGUF file, a tag of Ollama, the model of a server) is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Container
from typing import NamedTuple

from chatcache.places import path_of
from chatcache.sections import EXACT_WEIGHTS, QUANTIZE

EXACT = "exact"  # what `--quantize none` means, as a word
PACKED_FORMS = tuple(form for form in QUANTIZE if form != EXACT_WEIGHTS)
_OLLAMA = "ollama"


class NamedForm(NamedTuple):
    """`form` is "" where the name says none: then the settings decide."""

    model: str
    form: str

    @property
    def quantize(self) -> str | None:
        """As the setting has it; None: the name says nothing."""
        return EXACT_WEIGHTS if self.form == EXACT else self.form or None


def named_form(name: str, profiles: Container[str] = ()) -> NamedForm:
    """What a name says; `profiles` are the names of servers."""
    model, _, form = name.rpartition(":")
    is_form = form.casefold() in (EXACT, *PACKED_FORMS) and bool(model)
    if not is_form or model in profiles or model.casefold().partition(":")[0] == _OLLAMA:
        return NamedForm(name, "")
    if os.path.exists(path_of(name)):  # noqa: PTH110 - never raises
        return NamedForm(name, "")
    return NamedForm(model, form.casefold())


def form_name(model: str, form: str) -> str:
    return f"{model}:{form}"
