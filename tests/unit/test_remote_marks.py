"""Thoughts of a server's model, in whatever marks: never in the answer, and never sent back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.base import CacheEvent, ChatMessage, TextDelta, TurnFinished, TurnRequest
from chatcache.backends.local.prompt.reasoning import KNOWN
from chatcache.backends.remote.answer import ServerAnswer
from chatcache.backends.remote.dialect import Dialect
from chatcache.remotes import RemoteModel, RemoteProfile
from tests.fake_server import FakeServer, Raw, Stream
from tests.unit.test_remote_backend import PARTIAL, Remote, request


@pytest.fixture
def remote() -> Iterator[Remote]:
    with FakeServer() as server:
        remote = Remote(server)
        yield remote
        remote.backend.close()


def in_steps(text: str, step: int) -> Stream:
    return Stream([text[at : at + step] for at in range(0, len(text), step)])


CASES = [
    ("<think>hm</think>Yes.", "hm", "Yes."),
    ("<thinking>\nhm\n</thinking>\n\nYes.", "hm", "Yes."),
    ("<think>hm</think>\n<think> so</think>\n\nYes.", "hm so", "Yes."),
    ("<seed:think>hm</seed:think>Yes.", "hm", "Yes."),
    ("[THINK]hm[/THINK]Yes.", "hm", "Yes."),
    ("<thought>hm</thought>Yes.", "hm", "Yes."),
    ("<reasoning>hm</reasoning>Yes.", "hm", "Yes."),
    ("◁think▷hm◁/think▷Yes.", "hm", "Yes."),
    ("<|START_THINKING|>hm<|END_THINKING|>Yes.", "hm", "Yes."),
    ("\n\n<think>\n\n</think>\n\nYes.", None, "Yes."),
    ("hm, let me see</think>Yes.", "hm, let me see", "Yes."),
    ("hm\n</think>\n\nYes.", "hm", "Yes."),
    ("hm\n</thinking>\n\nYes.", "hm", "Yes."),
    ("hm</seed:think>Yes.", "hm", "Yes."),
    ("hm[/THINK]Yes.", "hm", "Yes."),
    ("</think>\n\nYes.", None, "Yes."),
    ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     "hm", "Yes."),
    ("<|channel|>plan<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     "hm", "Yes."),
    ("<|channel|>reply<|message|>Yes.", None, "Yes."),
    ("analysisThey want it.assistantfinalYes.", "They want it.", "Yes."),
    ("analysis of it: assistantfinal", None, "analysis of it: assistantfinal"),
    ("analysis", None, "analysis"),
    ("analysts say so", None, "analysts say so"),
    # These are about marks, and have none.
    ("Write `</think>` to close it.", None, "Write `</think>` to close it."),
    ('It ends with "</think>", always.', None, 'It ends with "</think>", always.'),
    ("```\n</think>\n```\nis how.", None, "```\n</think>\n```\nis how."),
    ("A <think>thought</think> is text here.", None, "A <think>thought</think> is text here."),
    ("a < b and <th", None, "a < b and <th"),
    ("<b>bold</b>", None, "<b>bold</b>"),
    ("<thinking", None, "<thinking"),
    ("<|chan", None, "<|chan"),
    ("  indented", None, "  indented"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "reasoning", "text"), CASES)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_thoughts_are_told_apart(
    remote: Remote, sent: str, reasoning: str | None, text: str, step: int
) -> None:
    remote.server.plan(in_steps(sent, step))
    result = remote.result()
    assert (result.reasoning, result.text) == (reasoning, text)


def test_thoughts_that_nothing_opened_are_known_from_the_next_answer_on(remote: Remote) -> None:
    remote.server.plan(*[in_steps("hm, so\n</think>\n\nYes.", 4)] * 2)
    first = remote.turn()
    assert [event.text for event in remote.heard if isinstance(event, CacheEvent)] == [
        f"{remote.profile.host} sends thoughts without a mark in front of them; from the next"
        " answer on they are told apart at once."
    ]
    deltas = [event for event in remote.turn() if isinstance(event, TextDelta)]
    assert isinstance(first[-1], TurnFinished)
    assert (first[-1].result.reasoning, first[-1].result.text) == ("hm, so", "Yes.")
    assert "".join(delta.text for delta in deltas if not delta.is_reasoning) == "Yes."
    assert "".join(delta.text for delta in deltas if delta.is_reasoning) == "hm, so"


def test_an_answer_without_any_mark_is_an_answer_all_the_same(remote: Remote) -> None:
    remote.server.plan(Stream("hm</think>Yes."), Stream("A plain answer."), Stream("Another."))
    remote.result()
    plain = remote.result()
    assert (plain.reasoning, plain.text) == (None, "A plain answer.")
    assert remote.result().reasoning is None
    remote.server.plan(Stream("hm</think>Yes."), Stream("Cut off in its thou", finish="length"))
    remote.result()
    cut = remote.result()
    assert (cut.reasoning, cut.text) == ("Cut off in its thou", "")


@pytest.mark.parametrize(
    ("sent", "is_mark"), [("Like </think> so", False), ("a\n</think>\nb", True)]
)
def test_where_marks_are_talked_about_only_one_that_stands_alone_counts(
    remote: Remote, sent: str, is_mark: bool
) -> None:
    remote.server.plan(Stream([sent]))
    result = remote.result(request(ChatMessage("user", "What does </think> mean?")))
    assert (result.reasoning is not None) is is_mark


def test_marks_beside_a_field_for_reasoning_are_nothing_new(remote: Remote) -> None:
    remote.server.plan(
        Stream(["</think>\n\nYes."], reasoning="hm"),
        Stream(["Say </think> again."], reasoning="hm"),
    )
    first, second = remote.result(), remote.result()
    assert (first.reasoning, first.text) == ("hm", "Yes.")
    assert (second.reasoning, second.text) == ("hm", "Say </think> again.")


def test_an_answer_that_goes_on_has_no_marks(remote: Remote) -> None:
    remote.server.plan(Stream([" and </think> <think>more"]))
    result = remote.result(request(*PARTIAL, continue_answer=True))
    assert (result.reasoning, result.text) == (None, " and </think> <think>more")


def test_thoughts_in_parts_and_in_other_fields_are_kept(remote: Remote) -> None:
    deltas = [
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "b"}]},
        {"thinking": "c"},
        {"content": [{"type": "text", "text": "Yes."}]},
    ]
    lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
    remote.server.plan(Raw(["".join(lines).encode() + b"data: [DONE]\n\n"]))
    result = remote.result()
    assert (result.reasoning, result.text) == ("abc", "Yes.")


def test_thoughts_are_not_sent_back(remote: Remote) -> None:
    path = [ChatMessage("user", "one")]
    for sent in ("hm</think>Yes.", "<seed:think>hm</seed:think>No."):
        remote.server.plan(Stream([sent]))
        result = remote.result(request(*path))
        path += [ChatMessage("assistant", result.text, result.reasoning), ChatMessage("user", "so")]
    remote.result(request(*path))
    sent_back = [said["content"] for said in remote.server.chats[-1].body["messages"]]
    assert sent_back == ["one", "Yes.", "so", "No.", "so"]


MARKS = [mark for style in KNOWN for mark in (style.open, style.close)]
SCRAPS = [
    "<",
    "</",
    "think",
    ">",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "final",
    "\n",
    "`",
    "a ",
]


@given(
    st.lists(st.sampled_from([*MARKS, *SCRAPS]), max_size=14),
    st.lists(st.integers(0, 80)),
    st.booleans(),
)
def test_how_text_is_cut_makes_no_difference(
    told: list[str], cuts: list[int], is_assumed: bool
) -> None:
    dialect = Dialect(thinks_unopened=is_assumed)

    def read(parts: list[str]) -> tuple[str | None, str]:
        asked = TurnRequest("t", (ChatMessage("user", "hi"),))
        answer = ServerAnswer(asked, RemoteModel(RemoteProfile("p", "http://h"), "m"), 0.0, dialect)
        for part in parts:
            list(answer.take(1.0, {"choices": [{"delta": {"content": part}}]}))
        list(answer.finish())
        result = answer.result()
        return result.reasoning, result.text

    text = "".join(told)
    edges = sorted({0, len(text), *(at % (len(text) + 1) for at in cuts)})
    assert read([text[a:b] for a, b in pairwise(edges)]) == read([text])
    if not any(mark in text for mark in (*MARKS, "<|")):
        assert read([text]) == (None, text)
