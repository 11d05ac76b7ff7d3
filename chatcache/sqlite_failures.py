"""How SQLite fails, as Python's `sqlite3` tells it.

Knows what a caller has to expect, and which failures mean that a file is damaged. What to say and
what to do then is the caller's business.
"""

from __future__ import annotations

import sqlite3

# Of a damaged file even the message, which quotes it, may be no text that Python can decode; and a
# number in it may ask for more memory than there is.
SQLITE_FAILURES = (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError)

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Without the kind of the constraint: the tables of a search index contradict each other.
_DAMAGED_INDEX = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_CONSTRAINT_VTAB)


def is_damage(error: BaseException) -> bool:
    """Whether the file is not what was written."""
    return (
        isinstance(error, UnicodeDecodeError)
        or is_undecodable_column(error)
        or primary_code(error) in _DAMAGE
        or getattr(error, "sqlite_errorcode", 0) in _DAMAGED_INDEX
    )


def is_undecodable_column(error: BaseException) -> bool:
    """Whether a column of text is no UTF-8. This one comes from Python, without a code."""
    return isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode")


def primary_code(error: BaseException) -> int:
    """SQLite's result code without what an extended one adds; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
