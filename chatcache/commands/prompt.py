"""The text of a prompt: the argument, files and standard input, put together.

Knows what bytes may arrive (no UTF-8, odd file names, megabytes) and nothing of what is done with
the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from chatcache.commands import standard_input
from chatcache.errors import NotFoundError, UsageError
from chatcache.formatting import one_line, plural
from chatcache.frontend.files import quoted
from chatcache.places import path_of

Warn = Callable[[str], None]

MAX_BYTES = 64 << 20  # more fits into no context, and a device may have no end


def build_prompt(
    argument: str | None, files: Sequence[str], warn: Warn, *, reads_stdin: bool | None = None
) -> str:
    """Files first, then the argument, then standard input when it is piped or asked for by `-`.

    `reads_stdin`: always to its end, or never; None: beside another argument, only if something
    comes. Raises UsageError when all of it is empty, NotFoundError for a file.
    """
    parts = [_quoted_file(name, warn) for name in files]
    if argument == "-" and reads_stdin is not False:
        argument, reads_stdin = None, True
    if argument is not None:
        parts.append(decoded_argument(argument, warn))
    if reads_stdin or (reads_stdin is None and standard_input.is_there()):
        has_more = bool(parts) and reads_stdin is None
        read = standard_input.read_if_any if has_more else standard_input.read_to_end
        parts.append(decoded(read(warn, MAX_BYTES), "Standard input", warn))
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise UsageError(
            "The prompt is empty.",
            'Write `chatcache ask "TEXT"`, or pipe a text into `chatcache ask`.',
        )
    return prompt


def read_system(option: str, warn: Warn) -> str:
    """The system prompt of `--system TEXT` or `--system @FILE`."""
    if option.startswith("@"):
        return decoded(read_bytes(option[1:], warn, MAX_BYTES), one_line(option[1:]), warn).strip()
    return decoded_argument(option, warn)


def decoded_argument(argument: str, warn: Warn) -> str:
    """An argument as text. Python has bytes that are not UTF-8 as surrogates, which cannot be
    stored."""
    return decoded(argument.encode("utf-8", "surrogateescape"), "The prompt", warn)


def decoded(content: bytes, what: str, warn: Warn) -> str:
    """UTF-8 as text. Other bytes become U+FFFD, and the user is told."""
    text = content.decode("utf-8-sig", "replace")
    num_replaced = text.count("\ufffd") - content.count(b"\xef\xbf\xbd")
    if num_replaced > 0:
        warn(f"{what} is not UTF-8: {plural(num_replaced, 'character')} replaced.")
    return text


def read_bytes(name: str, warn: Warn, limit: int = -1) -> bytes:
    """The contents of a file, or of standard input for `-`. Raises NotFoundError, and UsageError,
    also for more bytes than `limit`; -1 is no limit."""
    if name == "-":
        return standard_input.read_to_end(warn, limit)
    try:
        with path_of(name).open("rb") as file:
            content = file.read(limit)
            is_whole = limit < 0 or not file.read(1)
    except IsADirectoryError as error:
        raise UsageError(f"{one_line(name)} is a directory.", "Name a file.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotFoundError(
            f"{one_line(name)} cannot be read: {reason}.", "Check its name."
        ) from error
    if not is_whole:
        raise standard_input.too_long(one_line(name), limit)
    return content


def _quoted_file(name: str, warn: Warn) -> str:
    """A file's name and text, fenced by more backticks than it has in a row."""
    text = decoded(read_bytes(name, warn, MAX_BYTES), one_line(name), warn)
    title = decoded(Path(name).name.encode("utf-8", "surrogateescape"), "A file name", warn)
    return quoted(title, text)
