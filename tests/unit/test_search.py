"""Search: what people look for in their languages is found, in old databases too."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache.chat import schema, search, verify
from chatcache.chat.conversation import Message
from chatcache.chat.store import SessionStore
from chatcache.config import DATABASE_NAME


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


@pytest.fixture
def store(path: Path) -> Iterator[SessionStore]:
    made = SessionStore(path)
    yield made
    made.close()


def say(store: SessionStore, text: str, name: str = "a chat") -> str:
    session_id = store.create(name).session_id
    return store.add_user(session_id, None, Message("user", text), None).node.node_id


def found(store: SessionStore, text: str) -> list[str]:
    """The snippets of the messages."""
    return [hit.snippet for hit in search.search(store.database, text) if hit.node_id]


LOOKED_FOR = [
    ("杭州", "后天早上从上海坐火车去杭州，提醒我带雨伞"),
    ("火车", "后天早上从上海坐火车去杭州，提醒我带雨伞"),
    ("坐火车去", "后天早上从上海坐火车去杭州，提醒我带雨伞"),
    ("伞", "后天早上从上海坐火车去杭州，提醒我带雨伞"),
    ("紅葉", "来週は京都の紅葉を見に行く"),
    ("もみじ", "来週は京都のもみじを見に行く"),
    ("서울", "내일서울에서만나요"),
    ("สวัสดี", "ชาวโลกสวัสดีครับ"),
    ("นม", "ซื้อนมด้วย"),
    ("हिन्दी", "मुझे हिन्दी आती है"),
    ("haltestelle", "Wo ist die Straßenbahnhaltestelle?"),
    ("HALTESTELLE", "Wo ist die Straßenbahnhaltestelle?"),
    ("straßenbahn", "Wo ist die STRAßENBAHNhaltestelle?"),
    ("СТАНЦИЯ", "метростанция рядом"),
    ("cafe", "im Café am Markt"),
    ("café", unicodedata.normalize("NFD", "im Großcafé am Markt")),
    (unicodedata.normalize("NFD", "café"), "im Großcafé am Markt"),
    ("pho", "một tô phở ngon"),
    ("🦉", "eine Eule 🦉 im Wald"),
    ("→ b", "a → b"),
    ("config", "see load_config_file()"),
    ("load_config", "see load_config_file()"),
    ("fig load", "see load_config_file()"),
    ("京都 紅葉", "来週は京都の紅葉を見に行く"),
    ("gpt-4", "a gpt-4 model"),
    ("%", "only 5 % of it"),
    ("::", "see std::vector"),
    ('"""', 'a """docstring"""'),
    ("__", "the __init__ of it"),
]


@pytest.mark.parametrize(("looked_for", "text"), LOOKED_FOR)
def test_words_are_found_wherever_they_begin(
    store: SessionStore, looked_for: str, text: str
) -> None:
    say(store, "something else entirely, 東京 ok")
    say(store, text)
    assert found(store, looked_for) == [text]
    assert search.search(store.database, looked_for + " missing") == []


@pytest.mark.parametrize(("looked_for", "text"), LOOKED_FOR)
def test_names_are_found_so_too(store: SessionStore, looked_for: str, text: str) -> None:
    store.create("other")
    session_id = store.create(text).session_id
    hits = search.search(store.database, looked_for)
    assert [(hit.session_id, hit.node_id) for hit in hits] == [(session_id, None)]
    store.sessions.rename(session_id, "renamed")
    assert search.search(store.database, looked_for) == []
    assert len(search.search(store.database, "ename")) == 1


def test_whole_words_come_before_parts(store: SessionStore) -> None:
    for text in ("the way", "gateway", "a long way"):
        say(store, text)
    assert set(found(store, "way")[:2]) == {"the way", "a long way"}
    assert found(store, "way")[2:] == ["gateway"]


def test_two_letters_are_looked_for_where_words_begin(store: SessionStore) -> None:
    say(store, "this is it")
    say(store, "hi there")
    assert found(store, "hi") == ["hi there"]


def test_what_is_found_is_shown_with_what_is_around_it(store: SessionStore) -> None:
    say(store, "很长的话。" * 400 + "去杭州旅行" + "，然后回家。" * 400)
    (snippet,) = found(store, "杭州")
    assert "去杭州旅行" in snippet
    assert len(snippet) < 200
    assert snippet[0] == snippet[-1] == "…"


def test_an_old_database_is_indexed_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as then:
        then.setattr(schema, "VERSION", 3)
        then.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        old = SessionStore(path)
        say(old, "后天早上从上海坐火车去杭州, phở", name="Straßenbahnhaltestelle")
        old.close()
    store = SessionStore(path)
    assert len(found(store, "坐火车")) == 1
    assert len(found(store, "pho")) == 1
    assert len(search.search(store.database, "haltestelle")) == 1
    assert verify.problems(store.database) == []
    store.close()


def test_a_book_is_found_by_its_words(store: SessionStore) -> None:
    """And only its beginning by parts of words: their index is larger than the words."""
    book = "einmalig " + "Wörter und noch mehr. " * 10_000 + "Straßenbahnhaltestelle"
    say(store, book)
    assert len(found(store, "malig")) == 1
    assert len(found(store, "straßenbahnhalte")) == 1
    assert found(store, "haltestelle") == []
    assert verify.problems(store.database) == []
    store.delete(store.list()[0].session_id)
    assert found(store, "malig") == []
    assert verify.problems(store.database) == []


def test_deleted_words_are_in_no_index(store: SessionStore, path: Path) -> None:
    session_id = store.create("streng geheim").session_id
    store.add_user(session_id, None, Message("user", "das Kennwort lautet xylophon"), None)
    say(store, "was bleibt")
    store.delete(session_id)
    store.close()
    content = path.read_bytes().lower()
    assert b"xyl" not in content
    assert b"geh" not in content


def test_an_index_that_does_not_match_the_words_is_named(store: SessionStore, path: Path) -> None:
    say(store, "words")
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO node_parts(node_parts) VALUES ('delete-all')")
    connection.commit()
    connection.close()
    again = SessionStore(path)
    assert any("search index node_parts" in problem for problem in verify.problems(again.database))
    again.close()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_whatever_is_typed_is_no_syntax(store_of_module: SessionStore, text: str) -> None:
    search.search(store_of_module.database, text)


@pytest.fixture(scope="module")
def store_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionStore]:
    made = SessionStore(tmp_path_factory.mktemp("data") / DATABASE_NAME)
    say(made, "one two three 杭州")
    yield made
    made.close()
