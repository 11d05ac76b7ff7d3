"""The branches of a conversation: how they are drawn, and what goes with one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.chat.branches import Branch, BranchTree, LightNode, NodeTree
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.errors import NotFoundError
from tests.fakes import FakeBackend


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ChatService]:
    backend = FakeBackend(starts_ready=True)
    backend.start()
    with ChatService(SessionStore(tmp_path / "chats.db"), backend) as service:
        yield service


def say(service: ChatService, session_id: str, *texts: str) -> None:
    for text in texts:
        list(service.send(session_id, text))


def drawn(tree: BranchTree) -> list[tuple[int, str, list[str]]]:
    """Depth, turns and first words, and the sessions that end there."""
    return [
        (
            row.depth,
            f"{row.branch.first_turn}-{row.branch.last_turn} {row.branch.text}",
            [session.name for session in row.branch.sessions],
        )
        for row in tree.rows()
    ]


def branch(service: ChatService, session_id: str, text: str) -> Branch:
    rows = service.tree.branches(session_id).rows()
    return next(row.branch for row in rows if row.branch.text == text)


def names(service: ChatService) -> set[str]:
    return {session.name for session in service.list_sessions()}


def said(service: ChatService, name: str) -> list[str]:
    path = service.transcript(service.find_session(name).session_id)
    return [message.text for message in path if message.role == "user"]


@pytest.fixture
def forked(service: ChatService) -> tuple[ChatService, str, str]:
    """`main` of three turns, `side` leaves it after the first one."""
    main = service.create_session("main").session_id
    say(service, main, "one", "two", "three")
    side = service.fork(main, at_turn=1, name="side").session_id
    say(service, side, "zwei", "drei")
    return service, main, side


def test_runs_of_turns_are_drawn_with_the_main_line_straight(
    forked: tuple[ChatService, str, str],
) -> None:
    service, main, side = forked
    expected = [(0, "1-1 one", []), (1, "2-3 zwei", ["side"]), (0, "2-3 two", ["main"])]
    for one in (main, side):
        tree = service.tree.branches(one)
        assert drawn(tree) == expected
        assert tree.main_id == main


def test_tokens_add_up_along_a_path(forked: tuple[ChatService, str, str]) -> None:
    service, main, _ = forked
    (root,) = service.tree.branches(main).roots
    for leaf in root.children:
        assert root.own_tokens + leaf.own_tokens == leaf.num_tokens
    costs = service.tree.costs([root, *root.children])
    assert [cost.recompute_tokens for cost in costs if cost] == [0, 0, 0]


def test_a_fork_that_said_nothing_ends_inside_a_run(service: ChatService) -> None:
    main = service.create_session("main").session_id
    say(service, main, "one", "two")
    service.fork(main, at_turn=1, name="early")
    assert drawn(service.tree.branches(main)) == [
        (0, "1-1 one", ["early"]),
        (0, "2-2 two", ["main"]),
    ]


def test_another_answer_is_a_branch_that_no_session_ends_with(service: ChatService) -> None:
    main = service.create_session("main").session_id
    say(service, main, "one")
    list(service.regenerate(main))
    tree = service.tree.branches(main)
    assert [(row.depth, row.branch.role, len(row.branch.sessions)) for row in tree.rows()] == [
        (0, "user", 0),
        (1, "assistant", 0),
        (0, "assistant", 1),
    ]
    older = tree.rows()[1].branch
    assert service.tree.follow(older) == main
    assert service.find_session(main).tip == older.node_id


def test_following_a_branch_opens_the_session_that_ends_with_it(
    forked: tuple[ChatService, str, str],
) -> None:
    service, main, side = forked
    assert service.tree.follow(branch(service, main, "zwei")) == side
    gone = branch(service, main, "zwei")
    service.tree.delete(main, gone.first_id)
    assert service.tree.follow(gone) == side  # nobody looks the id of a session up
    with pytest.raises(NotFoundError):
        service.tree.plan_delete(main, gone.first_id)


def test_deleting_a_branch_takes_its_sessions_and_leaves_the_rest(
    forked: tuple[ChatService, str, str],
) -> None:
    service, main, _ = forked
    planned = service.tree.plan_delete(main, branch(service, main, "zwei").first_id)
    assert (planned.num_turns, len(planned.deleted), planned.moved) == (2, 1, {})
    assert names(service) == {"main", "side"}
    assert service.tree.delete(main, branch(service, main, "zwei").first_id) == planned
    assert names(service) == {"main"}
    assert said(service, "main") == ["one", "two", "three"]
    assert service.verify() == []


def test_the_last_session_moves_to_what_is_left(service: ChatService) -> None:
    main = service.create_session("main").session_id
    say(service, main, "one")
    list(service.regenerate(main))
    newer = service.tree.branches(main).rows()[2].branch
    removal = service.tree.delete(main, newer.first_id)
    assert removal.deleted == ()
    assert len(service.transcript(main)) == 2
    say(service, main, "two")
    assert said(service, "main") == ["one", "two"]
    assert service.verify() == []


def test_words_that_only_a_deleted_session_owned_get_another_owner(
    forked: tuple[ChatService, str, str],
) -> None:
    service, main, _ = forked
    service.tree.delete(main, branch(service, main, "two").first_id)
    assert names(service) == {"side"}
    hits = service.search("one")
    assert [hit.session_name for hit in hits if hit.node_id] == ["side"] * len(hits)
    assert service.verify() == []


def test_deleting_the_root_deletes_every_session(forked: tuple[ChatService, str, str]) -> None:
    service, main, _ = forked
    service.tree.delete(main, branch(service, main, "one").first_id)
    assert names(service) == set()
    assert service.search("zwei") == []


def test_only_one_path_is_kept(forked: tuple[ChatService, str, str]) -> None:
    service, main, side = forked
    say(service, main, "four")
    list(service.regenerate(main))
    removal = service.tree.keep_only(main, branch(service, main, "zwei").node_id)
    assert names(service) == {"side"}
    assert removal.num_turns == 3
    assert said(service, "side") == ["one", "zwei", "drei"]
    assert drawn(service.tree.branches(side)) == [(0, "1-3 one", ["side"])]
    assert service.verify() == []


def test_keeping_the_path_to_a_fork_moves_the_open_session(
    forked: tuple[ChatService, str, str],
) -> None:
    service, main, _ = forked
    service.tree.keep_only(main, branch(service, main, "one").node_id)
    assert names(service) == {"main"}
    assert said(service, "main") == ["one"]


def test_another_system_prompt_is_another_root(service: ChatService) -> None:
    main = service.create_session("main", "Be brief.").session_id
    say(service, main, "one")
    service.set_system(main, "Be long.")
    assert [row[0] for row in drawn(service.tree.branches(main))] == [0, 0]
    old = next(row.branch for row in service.tree.branches(main).rows() if not row.branch.sessions)
    service.tree.delete(main, old.first_id)
    assert len(service.tree.branches(main).rows()) == 1


def test_the_k_and_v_of_a_deleted_branch_are_forgotten(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    backend = FakeBackend(starts_ready=True)
    backend.start()
    with ChatService(
        SessionStore(tmp_path / "chats.db"),
        backend,
        forget_kv=lambda namespace, gone, kept: told.append((len(gone), len(kept))),
    ) as service:
        main = service.create_session("main").session_id
        say(service, main, "one", "two")
        side = service.fork(main, at_turn=1).session_id
        say(service, side, "zwei")
        service.tree.delete(main, branch(service, main, "zwei").first_id)
    assert told == [(1, 1)]


def test_a_thousand_turns_are_one_row() -> None:
    nodes = [
        LightNode(n, n - 1 or None, f"n{n}", (n + 1) // 2, "user", n, 0, "s", None, f"{n}")
        for n in range(1, 2001)
    ]
    tree = NodeTree(nodes, {"s": 2000}).branches([], "s", "s")
    assert [(row.branch.first_turn, row.branch.last_turn) for row in tree.rows()] == [(1, 1000)]


def test_what_no_session_goes_on_from_can_be_left_out(service: ChatService) -> None:
    main = service.create_session("main").session_id
    say(service, main, "one")
    for _ in service.regenerate(main):
        pass
    say(service, main, "two")
    assert len(service.tree.branches(main).rows()) == 3
    assert drawn(service.tree.branches(main, is_reached=True)) == [(0, "1-2 one", ["main"])]
