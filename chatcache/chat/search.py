"""Full-text search over session names and messages (SQLite FTS5).

What a person types is taken as words, never as query syntax; the last word may be unfinished.
"""

from __future__ import annotations

import re

from chatcache.chat.conversation import one_line
from chatcache.chat.database import Database
from chatcache.chat.views import SearchHit

MAX_HITS = 100
SNIPPET_WORDS = 16

_NAMES = """
    SELECT s.session_id, s.name FROM session_words w JOIN sessions s ON s.number = w.rowid
    WHERE session_words MATCH ? ORDER BY s.updated_us DESC LIMIT ?
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


def match_query(text: str) -> str:
    """An FTS5 query for all words of `text`; "" when it has none."""
    words = re.findall(r"\w+", text)
    return " ".join(f'"{word}"' for word in words) + "*" if words else ""


def search(database: Database, text: str, limit: int = MAX_HITS) -> list[SearchHit]:
    """Sessions by name first, then messages, best first."""
    query = match_query(text)
    if not query:
        return []
    with database.reading() as connection:
        hits = [
            SearchHit(session_id, name, 0, None, None, name)
            for session_id, name in connection.execute(_NAMES, (query, limit))
        ]
        hits += [
            SearchHit(session_id, name, turn, node_id, role, one_line(snippet))
            for session_id, name, turn, node_id, role, snippet in connection.execute(
                _MESSAGES, (query, limit)
            )
        ]
    return hits[:limit]
