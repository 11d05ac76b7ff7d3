"""How numbers, times and foreign text are written for people. Pure functions only.

Text that came from a model, a file or a paste goes through `clean` before it is shown: a terminal
must never obey it.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Sequence

# C0 and C1 controls except newline and tab, and the invisible characters that reorder a line.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# The end of a GGUF file's name, with the number of its part; a file called by its digest.
_GGUF_SUFFIX = re.compile(r"(?<=[^/])(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
_BLOB = re.compile(r"(sha256-[0-9a-f]{12})[0-9a-f]{52}")


def clean(text: str) -> str:
    """The text without anything that a terminal would act upon."""
    return _UNPRINTABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """The text on one line, with runs of white space as one space."""
    return " ".join(clean(text).split())


def model_name(model: str) -> str:
    """The name of a model as it is shown: of a directory or a GGUF file its own name, not the whole
    path to it.

    In the Hugging Face cache the name of the model is that of a folder further up; in Ollama's
    store that of the last folders."""
    whole = one_line(model)
    name = _GGUF_SUFFIX.sub("", whole)
    is_file = name != whole and ":" not in name
    head, _, tail = name.partition("/")
    is_path = head in ("", ".", "..") or head.startswith("~") or "/" in tail
    if ":" in head or not (is_path or is_file):
        return name
    parts = [part for part in name.split("/") if part not in ("", ".", "..", "~")]
    if is_file:
        return parts[-1]
    if len(parts) > 4 and parts[-5] == "manifests":
        folders = [part for part in parts[-4:-1] if part not in ("registry.ollama.ai", "library")]
        return f"ollama:{'/'.join(folders)}:{parts[-1]}"
    if (blob := _BLOB.fullmatch(parts[-1] if parts else "")) is not None:
        return blob[1]
    folder = next((part for part in parts if part.startswith("models--")), "")
    return folder.removeprefix("models--").replace("--", "/") or (parts[-1] if parts else name)


def model_label(model: str, quantization: str) -> str:
    """The name of a model with how its weights are packed: `Qwen3-0.6B · 4bit`."""
    name = model_name(model)
    return f"{name} · {quantization}" if quantization and quantization not in name else name


def capital(sentence: str) -> str:
    """With a capital letter at its beginning; the others stay as they are."""
    return f"{sentence[:1].upper()}{sentence[1:]}"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def span(start: int, stop: int) -> str:
    """Positions from `start` up to `stop`, which is the first one behind them: `0–612`. So its
    parts meet (`612–790` is next), and the number of tokens is the difference."""
    return f"{start:,}–{stop:,}"


def size(num_bytes: int) -> str:
    """Bytes in decimal units: `976 B`, `264 MB`, `1.9 GB`."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            has_fraction = unit == "GB" or (unit != "B" and 0 < value < 9.95)
            return f"{value:.1f} {unit}" if has_fraction else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(milliseconds: float | None) -> str:
    """A time span to three figures or so: `31 ms`, `0.21 s`, `12.4 s`, `2 min 05 s`."""
    if milliseconds is None:
        return "–"
    if milliseconds < 1:
        return "<1 ms"
    if milliseconds < 99.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def rate(per_second: float | None) -> str:
    """A number per second: `18.4`, `312`, `1,204`."""
    if per_second is None:
        return "–"
    return f"{per_second:.1f}" if per_second < 99.95 else f"{per_second:,.0f}"


def percent(part: int, whole: int) -> str:
    """A share with one decimal; 100 and 0 only when it is exactly all or nothing."""
    if whole <= 0 or part <= 0:
        return "0 %"
    if part >= whole:
        return "100 %"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f} %"


def parameters(number: int) -> str:
    """A parameter count: `596 M`, `1.2 B`."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return str(number)


def moment(at: float, now: float) -> str:
    """A time of the past: the hour today, the date and hour on other days."""
    then, today = time.localtime(at), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%b %d %H:%M" if then[0] == today[0] else "%Y-%m-%d %H:%M", then)


def width(text: str) -> int:
    """The number of terminal cells of one line: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    cells = 0
    for char in text:
        if unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Me", "Mn"):
            continue
        cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return cells


def fitting(text: str, cells: int) -> str:
    """As much of the beginning of a line as has room in so many cells."""
    used = 0
    for index, char in enumerate(text):
        used += width(char)
        if used > cells:
            return text[:index]
    return text


def shorten(text: str, limit: int) -> str:
    """The text on one line of at most `limit` cells, with an ellipsis where it was cut."""
    text = one_line(text)
    if fitting(text, limit) == text:
        return text
    return fitting(text, limit - 1).rstrip() + "…"


def flow(text: str, cells: int, indent: str = "") -> list[str]:
    """A text on lines of at most so many cells, broken between words; those behind the first begin
    with `indent`. A word that is longer than a line is broken within."""
    lines, current, is_empty = [], "", True
    for word in one_line(text).split():
        if not is_empty and not _fits(word, cells - width(current) - 1):
            lines.append(current)
            current, is_empty = indent, True
        while is_empty and not _fits(word, room := max(1, cells - width(current))):
            head = fitting(word, room) or word[:1]
            lines.append(current + head)
            current, word = indent, word[len(head) :]
        current += word if is_empty else f" {word}"
        is_empty = False
    return [*lines, current]


def _fits(word: str, cells: int) -> bool:
    return len(fitting(word, cells)) == len(word)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Rows aligned in columns two spaces apart. `right` names the columns aligned to the right."""
    lines = [list(header), *[[one_line(cell) for cell in row] for row in rows]]
    widths = [max(width(line[column]) for line in lines) for column in range(len(header))]
    is_right = [name in right.split() for name in header]

    def padded(cell: str, column: int) -> str:
        gap = " " * (widths[column] - width(cell))
        return gap + cell if is_right[column] else cell + gap

    return "\n".join(
        "  ".join(padded(cell, column) for column, cell in enumerate(line)).rstrip()
        for line in lines
    )


def beginning(text: str, num_lines: int, num_characters: int) -> tuple[str, int]:
    """The first lines of a text, and how many characters were left out.

    All of it where little more would be left out than is shown.
    """
    if _end_of(text, num_lines * 3 // 2, num_characters * 3 // 2) == len(text):
        return text, 0
    end = _end_of(text, num_lines, num_characters)
    return text[:end], len(text) - end


def _end_of(text: str, num_lines: int, num_characters: int) -> int:
    """Where the first lines of a text end."""
    at = -1
    for _ in range(num_lines):
        at = text.find("\n", at + 1)
        if at < 0:
            return min(len(text), num_characters)
    return min(at, num_characters)
