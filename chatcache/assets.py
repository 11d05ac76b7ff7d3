"""Finds the built-in model: in a source checkout or editable install, and in a wheel."""

from __future__ import annotations

from pathlib import Path

from chatcache.errors import NotFoundError

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
