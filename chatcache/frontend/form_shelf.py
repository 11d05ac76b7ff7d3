"""The forms of the models at hand: exact, and in the few bits that `--quantize` makes of them.

Owns which of them can be chosen and what each is called. What one is made of is known to
`quantized_form`; nothing is made or loaded here, files are looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from chatcache.backends.local.model import resolve
from chatcache.backends.local.model.quantized_form import ModelForm, forms_of, made_forms
from chatcache.backends.local.model.shelf import ShelfModel, at_hand
from chatcache.cache.files.quantized import QuantizedModels
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import model_name
from chatcache.model_form import EXACT, form_name
from chatcache.sections import EXACT_WEIGHTS


@dataclass(frozen=True, slots=True)
class FormShelf:
    """`quantize` and `dtype` are those of the settings: how a model is loaded whose name does not
    say it."""

    cache_dir: Path
    quantize: str = EXACT_WEIGHTS
    dtype: str = "auto"

    @property
    def usual(self) -> str:
        return EXACT if self.quantize == EXACT_WEIGHTS else self.quantize

    def name(self, model: str, form: str) -> str:
        """What means this form of a model; its plain name where that suffices."""
        return model if form in ("", self.usual) else form_name(model, form)

    def forms(self, model: str) -> list[ModelForm]:
        """Those of a model on this machine. Raises UnavailableError for one that has no others, and
        ChatcacheError for one that cannot be loaded."""
        path = self._directory(model)
        return [
            replace(form, name=self.name(model, form.form))
            for form in forms_of(model, path, self.cache_dir, self.dtype)
        ]

    def _directory(self, model: str) -> Path:
        found = resolve.resolve_model(model, is_offline=True)
        path = Path(found)
        if path.is_dir():
            return path
        how = at_hand(model).quantization
        raise UnavailableError(
            f"{model_name(model)} is used as its file has it{f' ({how})' if how else ''}.",
            "Only models of safetensors are turned into 4 or 8 bits.",
        )

    def with_made(self, models: Iterable[ShelfModel]) -> list[ShelfModel]:
        """The models, behind each the forms of it that were made already."""
        rows: list[ShelfModel] = []
        if not QuantizedModels(self.cache_dir).use().num_models:
            return list(models)
        for model in models:
            rows.append(model)
            if model.problem or model.quantization or model.place == "server":
                continue
            with contextlib.suppress(ChatcacheError, OSError):
                made = made_forms(self._directory(model.name), self.cache_dir)
                rows += [
                    replace(
                        model,
                        name=self.name(model.name, form),
                        num_bytes=num_bytes,
                        quantization=form,
                    )
                    for form, num_bytes in made.items()
                    if form != self.usual
                ]
        return rows
