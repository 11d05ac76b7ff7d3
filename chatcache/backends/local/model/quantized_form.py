"""A model in 4 or 8 bits: what its bytes are made of, and which forms there are to choose from.

Owns the key under which a form is kept. Reads headers and what is remembered of hashes, no weights
and no torch, so that a front end can list forms while nothing is loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from chatcache.backends.local.model.files import count_bytes, count_parameters, weight_files
from chatcache.backends.local.model.identity import NO_ADAPTER, REMEMBERED, known_weights_id
from chatcache.backends.local.model.outlook import Outlook, outlook
from chatcache.cache.files.quantized import QuantizedModels
from chatcache.model_form import EXACT, PACKED_FORMS, form_name

# Another number where `packed/quantize.py` makes other bytes of the same weights: what was kept by
# an older one is not used.
QUANTIZER_VERSION = "1"


@dataclass(frozen=True, slots=True)
class QuantizedForm:
    """How a model is to be quantised, and what its bytes are made of."""

    form: str
    weights_id: str
    adapter_id: str

    @property
    def fields(self) -> dict[str, str]:
        return {
            "form": self.form,
            "source_weights": self.weights_id,
            "source_adapter": self.adapter_id,
            "quantizer": QUANTIZER_VERSION,
        }

    @property
    def key(self) -> str:
        text = json.dumps(self.fields, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelForm:
    """One way to load a model. `num_bytes`: of its files, 0 while they are not made; `room` is None
    where nobody can tell; `seconds`: about what making it takes, None: not known."""

    name: str
    form: str
    num_bytes: int
    is_made: bool
    room: Outlook | None
    seconds: float | None = None


def made_forms(path: Path, cache_dir: Path) -> dict[str, int]:
    """The forms of the model in a directory that are kept, with the bytes of their files."""
    known = known_weights_id(weight_files(path), cache_dir / REMEMBERED)
    if known is None:  # nothing is made of weights that were never read
        return {}
    shelf = QuantizedModels(cache_dir)
    sizes = {form: shelf.size(QuantizedForm(form, known, NO_ADAPTER).key) for form in PACKED_FORMS}
    return {form: num_bytes for form, num_bytes in sizes.items() if num_bytes}


def forms_of(model: str, path: Path, cache_dir: Path, dtype: str) -> list[ModelForm]:
    """The exact form of the model in a directory, and those in fewer bits. Raises ModelLoadError,
    OSError."""
    made, shelf = made_forms(path, cache_dir), QuantizedModels(cache_dir)
    num_weights = count_parameters(path)
    exact = ModelForm(
        form_name(model, EXACT), EXACT, count_bytes(path), True, outlook(model, path, dtype)
    )
    packed = [
        ModelForm(
            name=form_name(model, form),
            form=form,
            num_bytes=made.get(form, 0),
            is_made=form in made,
            room=outlook(model, path, dtype, form),
            seconds=num_weights / speed if (speed := shelf.speed(form)) else None,
        )
        for form in reversed(PACKED_FORMS)
    ]
    return [exact, *packed]
