"""A page of the lens to a file: a picture, JSON or text, by the end of the file's name.

A file that is there is left alone; a new one appears whole or not at all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from chatcache import formatting as fmt
from chatcache.atomic_write import write_atomically
from chatcache.errors import UsageError
from chatcache.frontend.lens.page import Page, text_of
from chatcache.frontend.lens.png import png
from chatcache.frontend.lens.svg import svg
from chatcache.places import path_of


def export_name(chat_name: str, view: str) -> str:
    """A name to suggest."""
    stem = re.sub(r"[^\w.-]+", "-", fmt.shorten(chat_name, 40)).strip("-.…") or "chat"
    return f"{stem}-{view}.svg"


def as_text(page: Page) -> str:
    """The lines as they stand on a terminal, without colours."""
    return "".join(f"{fmt.clean(text_of(drawn)).rstrip()}\n" for drawn in page.lines)


def export_page(page: Page, name: str) -> str:
    """Write a page, and say where. Raises UsageError, or UnavailableError for a picture that
    cannot be made here."""
    path = path_of(name)
    kind = path.suffix.casefold()
    if kind == ".svg":
        content = svg(page).encode()
    elif kind == ".png":
        content = png(page)
    elif kind == ".json":
        content = (json.dumps(page.data, ensure_ascii=False, indent=2) + "\n").encode()
    elif kind in (".txt", ""):
        content = as_text(page).encode()
    else:
        raise UsageError(
            f"Nothing is written as {path.suffix!r}.", "Choose .svg, .png, .json or .txt."
        )
    write_new(path, content)
    return f"Written to {path}, {fmt.size(len(content))}."


def write_new(path: Path, content: bytes) -> None:
    """Raises UsageError where a file is there, or none can be."""
    if path.exists():
        raise UsageError(f"{path} is there already.", "Choose another name.")
    try:
        write_atomically(path, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{path} cannot be written: {reason}.", "Choose another place.") from error
