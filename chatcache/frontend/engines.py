"""What a person is told of engines that chats share: who is waited for, and how it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from chatcache.formatting import model_label, plural, size

if TYPE_CHECKING:
    from chatcache.backends.base import EngineStatus, TurnWaiting
    from chatcache.backends.local.engine.control import RunningEngine


def waiting_words(waiting: TurnWaiting) -> str:
    """Why a turn has not begun; "" once it is its turn."""
    if waiting.num_ahead == 0:
        return ""
    where = f" ({waiting.front_end})" if waiting.front_end else ""
    if waiting.num_ahead == 1:
        return f"another chat is being answered{where}"
    return f"{waiting.num_ahead:,} other turns come first{where}"


def summary(status: EngineStatus) -> str:
    """An engine in a few words: model, memory, how long it stays."""
    parts = [model_label(status.model, status.quantization)]
    if status.memory_bytes:
        parts.append(size(status.memory_bytes))
    parts.append("loading" if status.state == "loading" else stay_words(status))
    return f"{parts[0]} ({', '.join(parts[1:])})"


def stay_words(status: EngineStatus) -> str:
    """How long an engine stays."""
    if status.state == "ending":
        return "about to end"
    if status.front_ends:
        return "in use"
    if status.seconds_left is None:
        return "for ever"
    return time_words(status.seconds_left)


def time_words(seconds: float) -> str:
    """A time for people, as they say it: `5 min`, `40 s`, `1 h`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def panel_words(status: EngineStatus) -> str:
    """For the panel: its memory, who else uses it, and how long it will stay."""
    parts = [size(status.memory_bytes)] if status.memory_bytes else []
    others = len(status.front_ends) - 1
    parts.append(f"shared with {plural(others, 'other')}" if others > 0 else "this chat alone")
    keep_alive = status.keep_alive_seconds
    if keep_alive is None:
        parts.append("stays for ever")
    elif keep_alive > 0:
        parts.append(f"stays {time_words(keep_alive)} after its last chat")
    return " · ".join(parts)


def state_of(
    look: Callable[[], Sequence[RunningEngine]],
) -> tuple[Literal["ok", "problem"], str, str]:
    """Which engines `look` finds, as a doctor says it: a status, a sentence, and what to do."""
    try:
        engines = look()
    except OSError as error:
        advice = "Remove it, or set XDG_RUNTIME_DIR to a directory of your own."
        return "problem", f"{error.filename} cannot be used: {error.strerror}", advice
    if hung := [str(engine.pid) for engine in engines if engine.status is None]:
        advice = "`chatcache engine stop --all` ends it."
        return "problem", f"process {', '.join(hung)} does not answer", advice
    told = [summary(engine.status) for engine in engines if engine.status is not None]
    return "ok", "; ".join(told) or "none is running", ""
