"""Checks of single settings: each takes a value and returns it as it is kept, or raises ValueError.

The message of the ValueError goes on after the name of the setting: "must be true or false".
Knows no section and no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from chatcache.errors import UsageError, did_you_mean

Check = Callable[[Any], Any]

BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
MAX_BYTES = 1 << 60
TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
TIME_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
SPILL_MODES = ("turn", "pressure", "exit", "never")
INT8 = "int8"
BYTE_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*|%)\s*")


def setting(default: Any, check: Check, *, example: Any = None) -> Any:
    """A dataclass field with its check; `example` is shown where the default is nothing."""
    return field(default=default, metadata={"check": check, "example": example})


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {described(value)}")
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {described(value)}")
    return value


def typed_number(word: str) -> int | None:
    """A whole number as somebody types it; None: it is none, or longer than any that can count."""
    return int(word) if word.isdecimal() and len(word) < 20 else None


def whole(low: int, high: int | None = None) -> Check:
    """A whole number that is at least `low`, and at most `high` if there is a limit."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {described(value)}")
        if value < low:
            raise ValueError(f"must be at least {low}, not {value}")
        if high is not None and value > high:
            raise ValueError(f"must be at most {high}, not {value}")
        return value

    return check


def decimal(low: float, high: float, *, excludes_low: bool = False) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {described(value)}")
        is_above = value > low if excludes_low else value >= low
        if not (is_above and value <= high):  # so written, NaN is refused too
            bound = f"above {low:g}" if excludes_low else f"at least {low:g}"
            raise ValueError(f"must be {bound} and at most {high:g}, not {value:g}")
        return float(value)

    return check


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value in choices:
            return str(value)
        raise ValueError(f"must be one of {', '.join(choices)}, not {described(value)}")

    return check


def byte_size(value: Any) -> int | str:
    """Bytes, or text that `num_bytes` understands."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES:
        return value
    if isinstance(value, str):
        num_bytes(value, lambda: 0)
        return value
    raise ValueError(f'must be bytes, "2 GB" or "25%", not {described(value)}')


def time_to_live(value: Any) -> str:
    """Text that `num_seconds` understands."""
    if not isinstance(value, str):
        raise ValueError(f'must be "5m", "1h", "7d" or "none", not {described(value)}')
    num_seconds(value)
    return value


def num_seconds(value: str) -> float | None:
    """A time span in seconds; None for "none"."""
    if value.strip().lower() == "none":
        return None
    match = TIME_SPAN.fullmatch(value)
    if match is None or match[2].lower() not in TIME_UNITS or float(match[1]) == 0:
        raise ValueError(f'must be "5m", "1h", "7d" or "none", not {value!r}')
    return float(match[1]) * TIME_UNITS[match[2].lower()]


KEEP_ALIVE_FOREVER, OWN_ENGINE = "forever", "none"


def keep_alive(value: Any) -> str:
    """Text that `keep_alive_seconds` understands, or "none"."""
    if value == 0 and not isinstance(value, bool):
        return "0"
    if not isinstance(value, str):
        raise ValueError(f'must be "5m", "1h", "0", "forever" or "none", not {described(value)}')
    wanted: str = value.strip().lower()
    if wanted not in (OWN_ENGINE, KEEP_ALIVE_FOREVER):
        keep_alive_seconds(wanted)
    return wanted


def keep_alive_seconds(value: str) -> float | None:
    """A time in seconds; None for "forever"."""
    if value == KEEP_ALIVE_FOREVER:
        return None
    match = TIME_SPAN.fullmatch(f"{value}s" if value.replace(".", "", 1).isdecimal() else value)
    if match is None or match[2].lower() not in TIME_UNITS:
        raise ValueError(f'must be "5m", "1h", "0", "forever" or "none", not {value!r}')
    return float(match[1]) * TIME_UNITS[match[2].lower()]


def spill_mode(value: Any) -> str:
    """When segments are written, and "int8" if with fewer bits: "turn", "int8", "exit, int8".

    True and false are the two ends."""
    if isinstance(value, bool):
        return "turn" if value else "never"
    wanted = f'must be one of {", ".join(SPILL_MODES)}, or with int8: "int8", "exit, int8"'
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, not {described(value)}")
    mode, is_int8 = spill_parts(value)
    if mode not in SPILL_MODES or (is_int8 and mode == "never"):
        raise ValueError(f"{wanted}, not {value!r}")
    return f"{mode}, {INT8}" if is_int8 else mode


def spill_parts(value: str) -> tuple[str, bool]:
    """When segments are written ("turn" if only "int8" is said), and whether as 8-bit integers."""
    words = [word for word in re.split(r"[\s,]+", value) if word]
    modes = [word for word in words if word != INT8]
    is_int8 = len(modes) < len(words)
    return " ".join(modes) or ("turn" if is_int8 else ""), is_int8


def num_bytes(value: int | str, total: Callable[[], int]) -> int:
    """A size in bytes; `total` is asked only when it is a percentage."""
    if isinstance(value, int):
        return value
    match = BYTE_SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f'must be bytes, "2 GB" or "25%", not {value!r}')
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if number > 100:
            raise ValueError(f"must be at most 100%, not {value!r}")
        return int(total() * number / 100)
    if unit not in BYTE_UNITS:
        raise ValueError(f"has an unknown unit {match[2]!r}: use MB, GB, TB, MiB, GiB or TiB")
    size = number * BYTE_UNITS[unit]
    if size > MAX_BYTES:
        raise ValueError("is more than any disk has")
    return int(size)


def key_names(value: Any) -> str:
    """Keys of one binding, separated by commas."""
    if isinstance(value, list) and all(isinstance(key, str) for key in value):
        value = ",".join(value)
    if not isinstance(value, str) or not value.strip(" ,"):
        raise ValueError(f"must be keys in quotes, not {described(value)}")
    return value


def checked_table(
    table: Mapping[str, Any], checks: Mapping[str, Check], place: str
) -> dict[str, Any]:
    """The settings of a table of config.toml as they are kept; `place` is what messages call it.

    Raises UsageError for an unknown key and for a wrong value.
    """
    values = {}
    for key, value in table.items():
        if key not in checks:
            hint = did_you_mean(key, checks) or f"The settings are {', '.join(checks)}."
            raise UsageError(f"{place} has no setting {key!r}.", hint)
        try:
            values[key] = checks[key](value)
        except ValueError as error:
            hint = "Mend it with `chatcache config edit`."
            raise UsageError(f"{place}.{key} {error}.", hint) from error
    return values


def described(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
