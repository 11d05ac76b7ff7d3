"""Reasoning and answer are told apart however the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.local.prompt.reasoning import (
    HARMONY,
    MAGISTRAL,
    THINK,
    ReasoningFormat,
    ReasoningSplitter,
    reasoning_format,
    shown_tokens,
)

CHANNEL, SAID, NEXT = "<|channel|>", "<|message|>", "<|end|><|start|>assistant"
CASES = [
    (THINK, False, "Hello <b>there</b>", None, "Hello <b>there</b>"),
    (THINK, False, "<think>\nfirst\nthen\n</think>\n\nYes.", "first\nthen", "Yes."),
    (THINK, False, "\n<think>a</think>b", "a", "b"),
    (THINK, True, "because\n</think>\n\nYes.", "because", "Yes."),
    (THINK, True, "\nnever closed\n", "never closed\n", ""),
    (THINK, True, "half a tag </thi", "half a tag </thi", ""),
    (THINK, False, "<think>\n\n</think>\n\nYes.", None, "Yes."),
    (
        THINK,
        False,
        "the tag <think> is text here </think>",
        None,
        "the tag <think> is text here </think>",
    ),
    (THINK, False, "<think>a</think>say </think> again", "a", "say </think> again"),
    (THINK, False, "<thin", None, "<thin"),
    (THINK, False, "  indented", None, "  indented"),
    (MAGISTRAL, False, "[THINK]why[/THINK]so", "why", "so"),
    (
        HARMONY,
        False,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        "hm",
        "Yes.",
    ),
    (HARMONY, False, "<|channel|>final<|message|>Yes.", None, "Yes."),
    (HARMONY, False, f"{CHANNEL}plan{SAID}hm{NEXT}{CHANNEL}final{SAID}Yes.", "hm", "Yes."),
    (HARMONY, False, f"{CHANNEL}reply{SAID}Yes.", None, "Yes."),
    (HARMONY, False, f"{CHANNEL}plan{SAID}Yes.<|end|>", None, "Yes."),
    (HARMONY, False, f"{CHANNEL}commentary to=tool <|constrain|>json{SAID}hm<|call|>", "hm", ""),
    (
        HARMONY,
        False,
        f"{CHANNEL}analysis{SAID}hm{NEXT}{CHANNEL}commentary{SAID}so{NEXT}{CHANNEL}final{SAID}Yes.",
        "hm\n\nso",
        "Yes.",
    ),
    (HARMONY, False, f"<|start|>assistant{CHANNEL}final{SAID}Yes.<|return|>", None, "Yes."),
    (HARMONY, False, f"{CHANNEL}final <|constrain|>JSON{SAID}Yes.", None, "Yes."),
    (HARMONY, False, f"{SAID}Yes.", None, "Yes."),
    (HARMONY, False, "Yes, plainly.", None, "Yes, plainly."),
    (HARMONY, False, "Yes <| no", None, "Yes <| no"),
    (HARMONY, False, f"{CHANNEL}analysis{SAID}hm", "hm", ""),
    (HARMONY, False, f"{CHANNEL}analysis", None, ""),
    (HARMONY, True, f"hm{NEXT}{CHANNEL}final{SAID}Yes.", "hm", "Yes."),
]


def split(style: ReasoningFormat, is_open: bool, chunks: list[str]) -> tuple[str | None, str]:
    splitter = ReasoningSplitter(style, is_open=is_open)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)] + splitter.finish()
    reasoning = "".join(piece.text for piece in pieces if piece.is_reasoning)
    return reasoning or None, "".join(piece.text for piece in pieces if not piece.is_reasoning)


@pytest.mark.parametrize(("style", "is_open", "stream", "reasoning", "answer"), CASES)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_splits_alike_in_any_chunks(
    style: ReasoningFormat,
    is_open: bool,
    stream: str,
    reasoning: str | None,
    answer: str,
    step: int,
) -> None:
    chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert split(style, is_open, chunks) == (reasoning, answer)


@given(
    text=st.text(alphabet="<think>/\n a", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    is_open=st.booleans(),
)
def test_chunking_never_matters(text: str, cuts: list[int], is_open: bool) -> None:
    edges = [0, *sorted(cuts), len(text)]
    chunks = [text[start:stop] for start, stop in pairwise(edges)]
    assert split(THINK, is_open, chunks) == split(THINK, is_open, [text])


@given(text=st.text(alphabet="think<>/ ab", max_size=40))
def test_text_without_tags_is_untouched(text: str) -> None:
    if "<think>" not in text:
        assert split(THINK, False, [text]) == (None, text)


def test_text_is_not_held_back_without_need() -> None:
    splitter = ReasoningSplitter()
    assert [piece.text for piece in splitter.push("Hello")] == ["Hello"]
    assert [piece.text for piece in splitter.push(" <")] == [" <"]


@pytest.mark.parametrize(
    ("tokens", "style"),
    [
        (["<think>", "</think>"], THINK),
        (["<|im_end|>"], THINK),
        (["[THINK]", "[/THINK]"], MAGISTRAL),
        (["<|channel|>", "<|message|>"], HARMONY),
        (["[THINK]", "[/THINK]", "<think>", "</think>"], MAGISTRAL),
    ],
)
def test_format_follows_the_tokenizer(tokens: list[str], style: ReasoningFormat) -> None:
    assert reasoning_format(tokens) is style


@pytest.mark.parametrize(
    ("tokens", "template", "marks"),
    [
        (["<seed:think>", "</seed:think>"], "", ("<seed:think>", "</seed:think>")),
        ([], "{{ '<seed:think>' }}{{ '</seed:think>' }}", ("<seed:think>", "</seed:think>")),
        (["[THINK]", "[/THINK]"], "'<think>' '</think>'", ("<think>", "</think>")),
        (["[THINK]", "[/THINK]"], "'[/THINK]' '[THINK]' <think>", ("[THINK]", "[/THINK]")),
        (["<a:think>", "</a:think>"], "<think></think><a:think></a:think>",
         ("<a:think>", "</a:think>")),
        (["<thinking>", "</thinking>"], "</thinking>", ("<thinking>", "</thinking>")),
        (["<|think_start|>", "<|think_end|>"], "", ("<|think_start|>", "<|think_end|>")),
        (["<|START_THINKING|>", "<|END_THINKING|>"], "",
         ("<|START_THINKING|>", "<|END_THINKING|>")),
        (["◁think▷", "◁/think▷"], "", ("◁think▷", "◁/think▷")),
        (["<|channel>", "<channel|>"], "", ("<|channel>thought", "<channel|>")),
        (["<think>"], "enable_thinking <thinker> [think] <|im_start|>", ("<think>", "</think>")),
        (["</think>"], "", ("<think>", "</think>")),
    ],
)  # fmt: skip
def test_template_and_tokens_tell_the_marks(
    tokens: list[str], template: str, marks: tuple[str, str]
) -> None:
    style = reasoning_format(tokens, template)
    assert (style.open, style.close) == marks
    assert set(tokens) & set(marks) <= shown_tokens(style)


@given(
    told=st.lists(
        st.sampled_from(
            [CHANNEL, SAID, NEXT, "<|end|>", "final", "analysis", "plan", "a", "<", "\n"]
        )
    ),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    is_open=st.booleans(),
)
def test_channels_are_told_apart_however_the_text_is_cut(
    told: list[str], cuts: list[int], is_open: bool
) -> None:
    text = "".join(told)
    edges = [0, *sorted(cuts), max(len(text), *cuts, 0)]
    chunks = [text[start:stop] for start, stop in pairwise(edges)]
    assert split(HARMONY, is_open, chunks) == split(HARMONY, is_open, [text])
    for part in split(HARMONY, is_open, [text]):
        assert not part or "<|" not in part


@pytest.mark.parametrize("is_open", [True, False])
def test_what_is_continued_begins_where_it_stopped(is_open: bool) -> None:
    splitter = ReasoningSplitter(is_open=is_open, is_continued=True)
    pieces = [*splitter.push("\nthen <think>"), *splitter.finish()]
    assert "".join(piece.text for piece in pieces) == "\nthen <think>"
    assert {piece.is_reasoning for piece in pieces} == {is_open}
