"""Keeps the held-out wordings out of the corpus: no generated user message may equal one."""

from __future__ import annotations

import re
from pathlib import Path

from pools import load_pools

EVAL_DIR = Path(__file__).parent / "eval"
_VALUE = "value"
# Shorter questions ("hello!") are not a wording but what everybody says.
_COMMON_WORDS = 4
_NO_LETTERS = re.compile(r"[^a-z0-9]+")


def normalize(text: str) -> str:
    """Lower case words without punctuation."""
    return _NO_LETTERS.sub(" ", text.lower()).strip()


def held_out_messages() -> frozenset[str]:
    """All held-out questions and ways to tell and to ask a fact, normalised."""
    texts = []
    for path in sorted(EVAL_DIR.glob("questions_*.txt")):
        lines = path.read_text(encoding="utf-8").splitlines()
        texts += [line.split(" | ")[1] for line in lines if " | " in line and line[0] != "#"]
    for path in sorted(EVAL_DIR.glob("unknown_*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            kind, _, text = line.partition(": ")
            text = text.rpartition(" => ")[0] if kind == "ask" else text
            is_common = len(text.split()) < _COMMON_WORDS and "<" not in text
            if kind in ("ask", "system") and not is_common:
                texts.append(text.replace("\\n", "\n"))
    for section, entries in load_pools(EVAL_DIR / "facts.txt").items():
        if section.startswith(("tell_", "ask_")):
            texts += [entry.replace("{v}", _VALUE) for entry in entries]
    return frozenset(normalize(text) for text in texts) - {""}


HELD_OUT = held_out_messages()


def is_held_out(message: str, told_values: list[str]) -> bool:
    """Whether a message has a held-out wording, whatever value it tells."""
    if normalize(message) in HELD_OUT:
        return True
    return any(
        normalize(message.lower().replace(value.lower(), _VALUE)) in HELD_OUT
        for value in told_values
        if value and value.lower() in message.lower()
    )
