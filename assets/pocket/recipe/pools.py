"""Reads lists of phrases and words: `[section]` lines, entries separated by `|` or line ends."""

from __future__ import annotations

from pathlib import Path

TEXTS_DIR = Path(__file__).parent / "texts"


def load_pools(path: Path) -> dict[str, list[str]]:
    """Sections of a file; an entry in double quotes keeps its outer spaces."""
    pools: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            pools[section] = []
        elif line.strip() and not line.startswith("#"):
            pools[section].extend(_unquote(entry.strip()) for entry in line.split(" | "))
    return pools


def _unquote(entry: str) -> str:
    return entry[1:-1] if len(entry) > 1 and entry[0] == entry[-1] == '"' else entry


PHRASES = load_pools(TEXTS_DIR / "phrases.txt")
WORDS = load_pools(TEXTS_DIR / "values.txt")
