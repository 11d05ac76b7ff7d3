"""Whether a model can be told to think is asked of its template, and said where it cannot."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chatcache import cli, compose
from chatcache.backends.base import ChatMessage, ThinkSwitch
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.frontend.sampling import Sampling
from tests.fakes import FakeBackend
from tests.models import CHATML_TEMPLATE, build_model_dir, build_tokenizer
from tests.talks import Engine
from tests.toymodel import fake_model_info

ASKED = [ChatMessage("user", "Why?")]
_EFFORT = (
    "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
)
TEMPLATES: dict[str, tuple[str, ThinkSwitch, str]] = {
    "chatml": (CHATML_TEMPLATE, "none", ""),
    "enable_thinking": (
        CHATML_TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}",
        "flag",
        "<think></think>",
    ),
    "thinking, off unless asked for": (
        CHATML_TEMPLATE + "{% if thinking %}<think>{% else %}</think>{% endif %}",
        "flag",
        "</think>",
    ),
    "three efforts": (
        _EFFORT + "Reasoning: {{ reasoning_effort }}\n" + CHATML_TEMPLATE,
        "effort",
        "Reasoning: low",
    ),
    "an effort of none": (
        "{%- if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] %}"
        "{{- raise_exception('no such effort') }}{%- endif %}"
        "[{{ reasoning_effort }}]" + CHATML_TEMPLATE,
        "flag",
        "[none]",
    ),
    "only mentioned": (
        "{# enable_thinking, reasoning_effort #}" + CHATML_TEMPLATE,
        "none",
        "",
    ),
    "refuses": ("{{ raise_exception('no') }}", "none", ""),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_is_asked(name: str) -> None:
    source, switch, written = TEMPLATES[name]
    template = ChatTemplate(build_tokenizer(chat_template=source))
    assert template.think_switch == switch
    if name != "refuses":
        assert written in template.render(ASKED, think=False).text
        is_same = template.render(ASKED, think=False) == template.render(ASKED, think=True)
        assert is_same == (switch == "none")


def test_an_engine_tells_it(tmp_path: Path) -> None:
    for switch, source in (("none", CHATML_TEMPLATE), ("flag", TEMPLATES["enable_thinking"][0])):
        engine = Engine(build_model_dir(tmp_path / switch, chat_template=source), tmp_path)
        engine.close()
        assert engine.runner.info.think_switch == switch


@pytest.mark.parametrize(
    ("switch", "think", "words"),
    [
        ("none", False, "no switch, so not thinking changes nothing"),
        ("none", True, "no switch, so thinking changes nothing"),
        ("none", None, ""),
        ("effort", False, "told to think little"),
        ("effort", True, ""),
        ("flag", False, ""),
        ("", False, ""),
    ],
)
def test_a_choice_that_changes_nothing_is_said(
    switch: ThinkSwitch, think: bool | None, words: str
) -> None:
    info = replace(fake_model_info("/models/tiny"), think_switch=switch)
    remark = Sampling(think=think).remark(info)
    assert words in remark
    assert bool(remark) == bool(words)
    assert Sampling(think=think).remark(None) == ""


def test_the_shell_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_backend(settings: object, model: str | None = None, **options: object) -> FakeBackend:
        return FakeBackend(info=replace(fake_model_info(), think_switch="none"))

    monkeypatch.setattr(compose, "open_backend", open_backend)
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["ask", "hi", "--new", "--no-think"]) == 0
    assert "not thinking changes nothing" in capsys.readouterr().err
    assert cli.main(["ask", "hi", "--new"]) == 0
    assert "changes nothing" not in capsys.readouterr().err
