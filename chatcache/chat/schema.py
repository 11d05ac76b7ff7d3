"""The tables of the conversation database, and how an older one becomes the newest.

Each migration runs in one transaction together with its `user_version`, so a database is always
at exactly one version. It knows SQL only; what the rows mean is the store's business.
"""

from __future__ import annotations

import sqlite3

from chatcache.errors import StorageError

APPLICATION_ID = 0x43484341  # "CHCA": tells our database from any other SQLite file
SEARCH_INDEXES = ("node_words", "session_words", "node_parts", "session_parts")

_VERSION_1 = (
    # Nodes refer to each other by integers: walking a path costs a rowid look-up per step.
    # `jump` is an ancestor further up (skew-binary), so that any turn is found in O(log n) steps.
    """
    CREATE TABLE nodes (
        seq           INTEGER PRIMARY KEY,
        parent        INTEGER REFERENCES nodes(seq),
        jump          INTEGER,
        depth         INTEGER NOT NULL,
        turn          INTEGER NOT NULL,
        num_tokens    INTEGER NOT NULL DEFAULT 0,
        session_id    TEXT REFERENCES sessions(session_id) ON DELETE SET NULL,
        created_ms    INTEGER NOT NULL,
        role          TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        finish_reason TEXT,
        model         TEXT,
        path_model    TEXT,
        node_id       TEXT NOT NULL UNIQUE,
        text          TEXT NOT NULL,
        reasoning     TEXT
    )
    """,
    "CREATE INDEX nodes_by_parent ON nodes(parent)",
    "CREATE INDEX nodes_by_session ON nodes(session_id)",
    """
    CREATE TABLE sessions (
        number       INTEGER PRIMARY KEY,
        session_id   TEXT NOT NULL UNIQUE,
        name         TEXT NOT NULL,
        is_auto_name INTEGER NOT NULL DEFAULT 0,
        tip          INTEGER REFERENCES nodes(seq),
        forked_from  TEXT,
        left_tip     INTEGER REFERENCES nodes(seq) ON DELETE SET NULL,
        left_cause   TEXT,
        is_other     INTEGER NOT NULL DEFAULT 0,
        created_ms   INTEGER NOT NULL,
        updated_us   INTEGER NOT NULL
    )
    """,
    "CREATE INDEX sessions_by_use ON sessions(updated_us DESC, number DESC)",
    "CREATE INDEX sessions_by_name ON sessions(name)",
    "CREATE INDEX sessions_by_tip ON sessions(tip)",
    "CREATE INDEX sessions_by_left_tip ON sessions(left_tip)",
    """
    CREATE TABLE journals (
        node         INTEGER NOT NULL REFERENCES nodes(seq) ON DELETE CASCADE,
        tokenizer_id TEXT NOT NULL,
        keep         INTEGER NOT NULL CHECK (keep >= 0),
        num_new      INTEGER NOT NULL CHECK (num_new >= 0),
        checksum     INTEGER NOT NULL,
        new_ids      BLOB NOT NULL,
        PRIMARY KEY (node, tokenizer_id)
    )
    """,
    """
    CREATE TABLE namespaces (
        namespace_id TEXT PRIMARY KEY,
        tokenizer_id TEXT NOT NULL,
        fields       TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE answers (
        node         INTEGER PRIMARY KEY REFERENCES nodes(seq) ON DELETE CASCADE,
        namespace_id TEXT REFERENCES namespaces(namespace_id),
        backend      TEXT NOT NULL,
        result       TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE partials (
        node         INTEGER NOT NULL REFERENCES nodes(seq) ON DELETE CASCADE,
        session_id   TEXT NOT NULL REFERENCES sessions(session_id) ON DELETE CASCADE,
        text         TEXT NOT NULL,
        reasoning    TEXT,
        model        TEXT,
        num_tokens   INTEGER NOT NULL,
        created_ms   INTEGER NOT NULL,
        updated_ms   INTEGER NOT NULL,
        owner        TEXT NOT NULL,
        PRIMARY KEY (node, owner)
    )
    """,
    "CREATE VIRTUAL TABLE node_words USING fts5(text, content='nodes', content_rowid='seq')",
    """
    CREATE TRIGGER node_words_insert AFTER INSERT ON nodes BEGIN
        INSERT INTO node_words(rowid, text) VALUES (new.seq, new.text);
    END
    """,
    """
    CREATE TRIGGER node_words_delete AFTER DELETE ON nodes BEGIN
        INSERT INTO node_words(node_words, rowid, text) VALUES ('delete', old.seq, old.text);
    END
    """,
    """
    CREATE VIRTUAL TABLE session_words
    USING fts5(name, content='sessions', content_rowid='number')
    """,
    """
    CREATE TRIGGER session_words_insert AFTER INSERT ON sessions BEGIN
        INSERT INTO session_words(rowid, name) VALUES (new.number, new.name);
    END
    """,
    """
    CREATE TRIGGER session_words_delete AFTER DELETE ON sessions BEGIN
        INSERT INTO session_words(session_words, rowid, name)
        VALUES ('delete', old.number, old.name);
    END
    """,
    """
    CREATE TRIGGER session_words_rename AFTER UPDATE OF name ON sessions BEGIN
        INSERT INTO session_words(session_words, rowid, name)
        VALUES ('delete', old.number, old.name);
        INSERT INTO session_words(rowid, name) VALUES (new.number, new.name);
    END
    """,
)

# How the prompts of a session are made of what was read: see `HistoryMode`.
_VERSION_2 = (
    """
    ALTER TABLE sessions ADD COLUMN history_mode TEXT NOT NULL DEFAULT 'canonical'
        CHECK (history_mode IN ('canonical', 'append'))
    """,
)

# What is to stay at the top of lists of sessions.
_VERSION_3 = ("ALTER TABLE sessions ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0",)


def _beginning(row: str, column: str) -> str:
    return f"substr({row}.{column}, 1, 100000)"


def _parts_index(name: str, table: str, column: str, key: str) -> tuple[str, ...]:
    """An index of all runs of three characters, and what keeps it up to date. Of a book that was
    pasted, only the beginning is in it: it takes more time and room than the words themselves."""
    add = f"INSERT INTO {name}(rowid, part) VALUES (new.{key}, {_beginning('new', column)});"
    remove = (
        f"INSERT INTO {name}({name}, rowid, part)"
        f" VALUES ('delete', old.{key}, {_beginning('old', column)});"
    )
    whole = _beginning(table, column)
    return (
        f"CREATE VIEW {name}_text AS SELECT {key}, {whole} AS part FROM {table}",
        f"CREATE VIRTUAL TABLE {name} USING fts5(part, content='{name}_text',"
        f" content_rowid='{key}', tokenize='trigram', columnsize=0)",
        f"INSERT INTO {name}({name}) VALUES ('rebuild')",
        f"CREATE TRIGGER {name}_insert AFTER INSERT ON {table} BEGIN {add} END",
        f"CREATE TRIGGER {name}_delete AFTER DELETE ON {table} BEGIN {remove} END",
        f"CREATE TRIGGER {name}_update AFTER UPDATE OF {column} ON {table}"
        f" BEGIN {remove} {add} END",
    )


def _words_index(name: str, table: str, column: str, key: str) -> tuple[str, ...]:
    """An index of words made anew: without any of the marks that letters of some languages have
    two of. The triggers that keep it up to date stay."""
    return (
        f"DROP TABLE {name}",
        f"CREATE VIRTUAL TABLE {name} USING fts5({column}, content='{table}',"
        f" content_rowid='{key}', tokenize='unicode61 remove_diacritics 2')",
        f"INSERT INTO {name}({name}) VALUES ('rebuild')",
    )


# Parts of words, for search; and what a person is told once.
_VERSION_4 = (
    *_words_index("node_words", "nodes", "text", "seq"),
    *_words_index("session_words", "sessions", "name", "number"),
    *_parts_index("node_parts", "nodes", "text", "seq"),
    *_parts_index("session_parts", "sessions", "name", "number"),
    "CREATE TABLE told (note TEXT PRIMARY KEY)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4)
VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the database to `VERSION`, in one transaction. Raises what `check_version` raises."""
    if check_version(connection, path) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have migrated while we waited for the lock.
        for number in range(check_version(connection, path), VERSION):
            for statement in MIGRATIONS[number]:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """The version of a database that is ours, 0 for an empty one; changes nothing.

    Raises StorageError for a database of another program, or of a newer chatcache.
    """
    # One statement sees one snapshot: another process may be creating the tables right now.
    version, owner, num_objects = connection.execute(
        "SELECT (SELECT user_version FROM pragma_user_version),"
        " (SELECT application_id FROM pragma_application_id),"
        " (SELECT count(*) FROM sqlite_master)"
    ).fetchone()
    if owner != APPLICATION_ID and (owner or version or num_objects):
        raise StorageError(
            f"{path} is a database of another program.",
            "Nothing was changed. Choose another directory with --data-dir.",
        )
    if version > VERSION:
        raise StorageError(
            f"{path} was written by a newer chatcache: it has format {version}, this is {VERSION}.",
            "Nothing was changed. Install the newer chatcache, or choose another --data-dir.",
        )
    return int(version)
