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

# A message is shown in the session it was said in; when that is gone, in the last used one of
# those that have it on their path.
_MESSAGES = f"""
    WITH hits AS (
        SELECT rowid AS seq, rank, snippet(node_words, 0, '', '', '…', {SNIPPET_WORDS}) AS snippet
        FROM node_words WHERE node_words MATCH :query ORDER BY rank LIMIT :limit
    )
    SELECT n.turn, n.node_id, n.role, hits.snippet, n.seq, n.session_id
    FROM hits JOIN nodes n ON n.seq = hits.seq ORDER BY hits.rank, n.seq DESC
"""

_REACHED_FROM = """
    WITH RECURSIVE down(seq) AS (
        SELECT ? UNION ALL SELECT n.seq FROM nodes n JOIN down ON n.parent = down.seq
    )
    SELECT s.session_id FROM down JOIN sessions s ON s.tip = down.seq
    ORDER BY s.updated_us DESC LIMIT 1
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
        rows = connection.execute(_MESSAGES, {"query": query, "limit": limit}).fetchall()
        for turn, node_id, role, snippet, seq, session_id in rows:
            if session_id is None:
                reached = connection.execute(_REACHED_FROM, (seq,)).fetchone()
                session_id = reached[0] if reached else None
            name = connection.execute(
                "SELECT name FROM sessions WHERE session_id = ?", (session_id,)
            ).fetchone()
            if name is not None:
                hits.append(SearchHit(session_id, name[0], turn, node_id, role, one_line(snippet)))
    return hits[:limit]
