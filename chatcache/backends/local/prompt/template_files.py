"""The chat template of a model as its files hold it, read without transformers.

For a quick look: whether a template writes the date, the time, or something random. What that
costs a conversation is told by `models probe`, which lets the template run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_TIME = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")
_OTHER_TIME = re.compile(r"strftime_now\s*\(")
_RANDOM = re.compile(r"\|\s*random\b")


def read_template(path: Path) -> str | None:
    """The default template in a model directory; None if there is none, or it cannot be read."""
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass  # Older models have it in their tokenizer's settings.
    try:
        template: Any = json.loads((path / "tokenizer_config.json").read_bytes())["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in entries}.get("default")
    return template if isinstance(template, str) else None


def changes_by_itself(source: str) -> str | None:
    """Which part of what a template writes differs from one time to the next: the time, the date or
    something random; None if its source shows nothing of the kind."""
    formats = [match.group(2) for match in _TIME.finditer(source)]
    if formats:
        return "the time" if any("%H" in text or "%M" in text for text in formats) else "the date"
    if _OTHER_TIME.search(source):
        return "the date or the time"
    return "something random" if _RANDOM.search(source) else None
