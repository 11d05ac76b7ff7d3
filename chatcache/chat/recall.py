"""What was said and used before, over all conversations: earlier messages, and models."""

from __future__ import annotations

from chatcache.chat.database import Database

MAX_MESSAGES = 2000
MAX_LENGTH = 20_000


class Recall:
    """Looks over all conversations of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def user_messages(self, limit: int = MAX_MESSAGES) -> list[str]:
        """The messages of the user in all conversations, the newest first, each once."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT text FROM nodes WHERE role = 'user' AND length(text) <= ?"
                " GROUP BY text ORDER BY max(created_ms) DESC, max(seq) DESC LIMIT ?",
                (MAX_LENGTH, limit),
            ).fetchall()
        return [text for (text,) in rows]

    def models_used(self) -> list[str]:
        """The names of the models that have answered, the last one first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT model FROM nodes WHERE model IS NOT NULL"
                " GROUP BY model ORDER BY max(seq) DESC"
            ).fetchall()
        return [model for (model,) in rows]
