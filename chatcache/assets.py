"""Finds the built-in model and its adapters: in a checkout or editable install, and in a wheel."""

from __future__ import annotations

from pathlib import Path

from chatcache.errors import NotFoundError
from chatcache.places import path_of

PACKAGE = Path(__file__).resolve().parent
PLACES = (PACKAGE / "pocket", PACKAGE.parent / "assets" / "pocket")


def pocket_dir() -> Path:
    """The directory of the built-in model. Raises NotFoundError with the places tried."""
    for place in PLACES:
        if (place / "config.json").is_file():
            return place
    raise NotFoundError(
        f"The built-in model is not at {' nor at '.join(str(place) for place in PLACES)}.",
        "Install chatcache again, or choose a model with --model.",
    )


def dialogues_file() -> Path:
    """Dialogues like those that the built-in model has learnt from, none of which it has seen."""
    return pocket_dir() / "dialogues.jsonl"


def adapter_dir(name: str) -> Path:
    """What `--adapter` means: a directory, or else the name of an adapter of the built-in model.

    Whether a directory is there is for the loader to say.
    """
    path = path_of(name)
    shipped = [place / "adapters" / name for place in PLACES]
    if path.name == name and not path.is_dir():
        path = next((place for place in shipped if place.is_dir()), path)
    return path.absolute()
