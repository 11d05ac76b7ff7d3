"""Search over session names and messages: whole words and beginnings first, then parts of words.

What a person types is taken as words, never as query syntax. Many languages put no spaces between
words, or put words together: every three characters in a row are indexed too (SQLite's trigrams),
and what is shorter is looked for in the text itself.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from chatcache.chat.conversation import one_line
from chatcache.chat.database import Database
from chatcache.chat.views import SearchHit

MAX_HITS = 100
SNIPPET_WORDS = 16
_SNIPPET_LENGTH, _BEFORE = 100, 30  # characters; before what was found
_TRIGRAM = 3
# Thai, Lao, Myanmar, Khmer, kana, Han, Hangul: a word may begin anywhere in a run of letters.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)

_NAMES = """
    SELECT s.session_id, s.name FROM session_words w JOIN sessions s ON s.number = w.rowid
    WHERE session_words MATCH ? ORDER BY s.updated_us DESC LIMIT ?
"""
_NAMES_BY_PARTS = """
    SELECT s.session_id, s.name FROM sessions s WHERE {conditions}
    ORDER BY s.updated_us DESC LIMIT ?
"""

# A message is shown in the session that owns it.
_MESSAGES = f"""
    WITH hits AS (
        SELECT rowid AS seq, rank, snippet(node_words, 0, '', '', '…', {SNIPPET_WORDS}) AS snippet
        FROM node_words WHERE node_words MATCH ? ORDER BY rank LIMIT ?
    )
    SELECT s.session_id, s.name, n.turn, n.node_id, n.role, hits.snippet
    FROM hits JOIN nodes n ON n.seq = hits.seq JOIN sessions s ON s.session_id = n.session_id
    ORDER BY hits.rank, n.seq DESC
"""
_MESSAGES_BY_PARTS = """
    SELECT s.session_id, s.name, n.turn, n.node_id, n.role, n.text
    FROM nodes n JOIN sessions s ON s.session_id = n.session_id WHERE {conditions}
    ORDER BY n.seq DESC LIMIT ?
"""


def match_query(text: str) -> str:
    """An FTS5 query for all words of `text`, the last of which may be unfinished; "" for none."""
    words = re.findall(r"\w+", text)
    return " ".join(f'"{word}"' for word in words) + "*" if words else ""


def search(database: Database, text: str, limit: int = MAX_HITS) -> list[SearchHit]:
    """Sessions by name first, then messages; of each, whole words and the best first."""
    query, parts = match_query(text), parts_of(text)
    if not parts:
        return []
    with database.reading() as connection:
        names = _names(connection, query, parts, limit)
        return [*names, *_messages(connection, query, parts, limit)][:limit]


def parts_of(text: str) -> list[str]:
    """What must occur: runs of letters, digits and marks, and symbols beyond ASCII. Where there is
    none of these, the signs as they stand."""
    parts = [""]
    for character in unicodedata.normalize("NFC", text):
        is_letter = character.isalnum() or unicodedata.category(character).startswith("M")
        if is_letter:
            parts[-1] += character
        elif ord(character) > 127 and not character.isspace():
            parts += [character, ""]
        else:
            parts.append("")
    return [part for part in dict.fromkeys(parts) if part] or text.split()


def _names(
    connection: sqlite3.Connection, query: str, parts: Sequence[str], limit: int
) -> list[SearchHit]:
    rows = connection.execute(_NAMES, (query, limit)).fetchall() if query else []
    conditions, values = _conditions("session", "s.number", "s.name", parts)
    sql = _NAMES_BY_PARTS.format(conditions=conditions)
    rows += connection.execute(sql, (*values, limit)).fetchall()
    unique = dict.fromkeys(rows)
    return [SearchHit(session_id, name, 0, None, None, name) for session_id, name in unique]


def _messages(
    connection: sqlite3.Connection, query: str, parts: Sequence[str], limit: int
) -> list[SearchHit]:
    rows = connection.execute(_MESSAGES, (query, limit)).fetchall() if query else []
    hits = {
        node_id: SearchHit(session_id, name, turn, node_id, role, one_line(snippet or ""))
        for session_id, name, turn, node_id, role, snippet in rows
    }
    if len(hits) < limit:
        conditions, values = _conditions("node", "n.seq", "n.text", parts)
        sql = _MESSAGES_BY_PARTS.format(conditions=conditions)
        for session_id, name, turn, node_id, role, text in connection.execute(
            sql, (*values, limit)
        ):
            hit = SearchHit(session_id, name, turn, node_id, role, _snippet(text, parts))
            hits.setdefault(node_id, hit)
    return list(hits.values())


def _conditions(
    index: str, key: str, column: str, parts: Iterable[str]
) -> tuple[str, tuple[Any, ...]]:
    """SQL that is true where every part occurs, and its values."""
    conditions: list[str] = []
    values: list[str] = []
    for part in parts:
        forms = dict.fromkeys((part, unicodedata.normalize("NFD", part)))
        is_word = any(map(str.isalnum, part))
        if is_word and len(part) >= _TRIGRAM:
            conditions.append(
                f"{key} IN (SELECT rowid FROM {index}_words WHERE {index}_words MATCH ?"
                f" UNION SELECT rowid FROM {index}_parts WHERE {index}_parts MATCH ?)"
            )
            quoted = [f'"{form}"' for form in forms]
            values += [quoted[0], " OR ".join(quoted)]
        elif not is_word or _WITHOUT_SPACES.search(part) or not part.isalnum():
            either = " OR ".join(f"instr({column}, ?)" for _ in forms)
            conditions.append(f"({either})")
            values += forms
        else:  # two letters are in every second word: only where one begins so
            conditions.append(
                f"{key} IN (SELECT rowid FROM {index}_words WHERE {index}_words MATCH ?)"
            )
            values.append(f'"{part}"*')
    return " AND ".join(conditions), tuple(values)


def _snippet(text: str, parts: Sequence[str]) -> str:
    """The words around what is found first."""
    folded = text.casefold()
    found = [at for part in parts if (at := folded.find(part.casefold())) >= 0]
    begin = max(0, min(found, default=0) - _BEFORE)
    shown = one_line(text[begin : begin + _SNIPPET_LENGTH])
    end = "…" if begin + _SNIPPET_LENGTH < len(text) else ""
    return f"{'…' if begin else ''}{shown}{end}"
