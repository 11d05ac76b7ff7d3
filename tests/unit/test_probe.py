"""What a chat template costs is told from short conversations that nobody had."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from chatcache import cli
from chatcache.backends.local.prompt.symbols import SymbolCodec
from chatcache.backends.local.study.probe import TemplateReport, probe_template
from chatcache.backends.local.study.rehearsal import NUM_TURNS, Rehearsed
from chatcache.errors import UnavailableError
from tests.models import CHATML_TEMPLATE, build_model_dir, build_tokenizer
from tests.templates import BY_NAME, SHAPES, Shape


def report_on(tokenizer: Any) -> TemplateReport:
    return probe_template(tokenizer, frozenset({tokenizer.eos_token_id}))


def report_of(name: str) -> TemplateReport:
    return report_on(BY_NAME[name].tokenizer())


def with_template(template: str) -> TemplateReport:
    return report_on(build_tokenizer(chat_template=template))


def conversation(report: TemplateReport, name: str) -> Rehearsed:
    return next(one for one in report.rehearsed if one.rehearsal.name == name)


# conversations


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_counts_of_every_conversation_add_up(shape: Shape) -> None:
    for rehearsed in report_of(shape.name).rehearsed:
        assert rehearsed.problem is None
        assert [turn.turn for turn in rehearsed.turns] == list(range(2, NUM_TURNS + 1))
        for turn in rehearsed.turns:
            assert 0 <= turn.reused <= turn.history
            assert turn.reread <= turn.prompt - turn.reused
            assert (turn.cause is None) == (turn.lost == 0)
            assert turn.position == (turn.reused if turn.lost else None)


@pytest.mark.parametrize(
    ("name", "talk", "cause"),
    [
        ("chatml", "system", None),
        ("qwen2.5", "plain", None),
        ("deepseek", "system", None),
        ("llama3", "system", None),
        ("gemma", "system", None),
        ("smollm3-thinking", "reasoning", None),
        ("qwen3", "reasoning", "reasoning_removed"),
        ("qwen3", "no_thinking", "generation_prompt_not_kept"),
        ("qwq", "reasoning", "generation_prompt_not_kept"),
        ("r1", "plain", "generation_prompt_not_kept"),
        ("gpt-oss", "reasoning", "reasoning_removed"),
        ("gpt-oss", "system", "end_token_changed"),
        ("mistral", "system", "system_prompt_moved"),
        ("mistral", "plain", None),
        ("llama3", "spaces", "answer_changed"),
        ("llama3.2", "next_day", "changes_by_itself"),
        ("gpt-oss", "next_day", "changes_by_itself"),
    ],
)
def test_the_cause_of_what_is_read_again(name: str, talk: str, cause: str | None) -> None:
    turns = conversation(report_of(name), talk).turns
    assert {turn.cause for turn in turns} == {cause}
    if cause is None:
        assert {turn.reread for turn in turns} == {0}


def test_reasoning_that_is_left_out_costs_the_answer_in_each_turn() -> None:
    last = conversation(report_of("qwen3"), "reasoning").turns[-1]
    assert 0 < last.reread < last.lost < last.prompt / 2


def test_a_new_date_costs_all_of_it_and_more_in_each_turn() -> None:
    turns = conversation(report_of("llama3.2"), "next_day").turns
    assert [turn.reread for turn in turns] == sorted({turn.reread for turn in turns})
    assert turns[-1].reread > turns[-1].history / 2


def test_unusual_tokens_are_kept() -> None:
    drifted = conversation(report_of("chatml"), "drift").turns[-1]
    plain = conversation(report_of("chatml"), "system").turns[-1]
    assert drifted.history > plain.history
    assert drifted.lost == 0


def test_the_worst_common_conversation_is_named() -> None:
    assert report_of("qwen3").worst.rehearsal.name == "reasoning"
    assert report_of("mistral").worst.rehearsal.name == "system"
    assert report_of("chatml").worst.reread_per_turn == 0


@pytest.mark.parametrize(
    ("name", "role"), [("chatml", "first"), ("mistral", "moved"), ("gemma", "folded")]
)
def test_where_the_system_prompt_goes(name: str, role: str) -> None:
    assert report_of(name).system_role == role


def test_thinking_is_tried_where_it_can_be_switched() -> None:
    names = [one.rehearsal.name for one in report_of("qwen3").rehearsed]
    assert {"reasoning", "thinking", "no_thinking"} <= set(names)
    names = [one.rehearsal.name for one in report_of("chatml").rehearsed]
    assert not {"reasoning", "thinking", "no_thinking"} & set(names)


def test_a_template_that_takes_nothing_is_refused() -> None:
    with pytest.raises(UnavailableError, match="No cats here"):
        with_template("{{ raise_exception('No cats here') }}")


# templates that change by themselves


@pytest.mark.parametrize(
    ("written", "interval"),
    [
        ("strftime_now('%Y')", None),
        ("strftime_now('%d %b %Y')", "day"),
        ("strftime_now('%Y-%m-%d %H h')", "hour"),
        ("strftime_now('%H:%M')", "minute"),
        ("strftime_now('%H:%M:%S')", "second"),
        ("range(100000) | random", "render"),
    ],
)
def test_how_often_a_template_changes(written: str, interval: str | None) -> None:
    change = with_template("{{ 'Now: ' ~ (" + written + ") }}" + CHATML_TEMPLATE).change
    assert (change and change.interval) == interval
    if change is not None and interval != "render":
        assert change.position > 0
        assert change.text in datetime(2026, 3, 4, 10, 11, 12).strftime(
            "04 Mar 2026 | %Y-%m-%d %H h | %H:%M:%S"
        )


def test_a_default_system_prompt_with_a_date_is_found() -> None:
    template = (
        "{%- if messages[0].role != 'system' %}{{ 'It is ' + strftime_now('%A') }}{% endif %}"
    )
    change = with_template(template + CHATML_TEMPLATE).change
    assert change is not None
    assert (change.interval, change.text) == ("day", "Wednesday")


def test_the_time_of_others_is_left_alone() -> None:
    """Templates ask transformers for the time; after a probe it is the time it is."""
    report_of("llama3.2")
    text = (
        BY_NAME["llama3.2"]
        .tokenizer()
        .apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    )
    assert f"Today Date: {datetime.now():%d %b %Y}" in text


# control tokens


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_typed_control_tokens_stay_text(shape: Shape) -> None:
    report = report_of(shape.name)
    assert report.leaked == ()
    assert report.num_controls >= len(shape.special)


def test_a_control_token_that_gets_through_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SymbolCodec, "mark", lambda self, text, marker: text)
    assert "<|im_end|>" in report_of("chatml").leaked


# the command


KEYS = {
    "model",
    "architecture",
    "parameters",
    "dtype",
    "device",
    "layers",
    "layer_kinds",
    "kv_bytes_per_token",
    "cut",
    "max_context_tokens",
    "namespace",
    "template",
    "restore_tokens_per_second",
    "prefill_tokens_per_second",
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    return build_model_dir(path, tokenizer=BY_NAME["qwen3"].tokenizer())


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["models", "probe", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_probe_as_json(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, str(model_dir), "--device", "cpu", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert set(found) >= KEYS
    assert found["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert (found["cut"], found["layers"], found["max_context_tokens"]) == ("any_token", 2, 4096)
    assert (found["gpu_steps"], found["gpu_steps_detail"]) == ("captured", None)
    assert (found["layer_kinds"], found["dtype"]) == ({"full_attention": 2}, "float32")
    assert found["namespace"] is found["prefill_tokens_per_second"] is None
    template = found["template"]
    assert (template["stable"], template["first_unstable"]) == (True, None)
    assert template["tokens_lost_per_turn"] > 0
    assert template["reason"] == "reasoning_removed"
    assert any("reasoning is left out" in warning for warning in found["warnings"])


def test_a_probe_for_people(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(model_dir), "--device", "cpu")
    assert code == 0
    assert "512 bytes per token, 512 kB per 1,000 tokens" in out
    assert "thinking switched off" in out
    assert "`chatcache sessions mode SESSION append`" in out


def test_no_weights_are_needed(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(model_dir, tmp_path / "copy")
    (path / "model.safetensors").unlink()
    code, out, _ = run(capsys, str(path), "--dtype", "bfloat16", "--device", "cpu", "--json")
    found = json.loads(out)
    assert (code, found["parameters"], found["dtype"]) == (0, None, "bfloat16")
    assert found["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2


def test_a_model_of_the_hub_cache_is_found_by_its_id(
    model_dir: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = home / "huggingface" / "hub"
    folder = cache / "models--someone--tiny"
    shutil.copytree(model_dir, folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    code, out, _ = run(capsys, "someone/tiny", "--device", "cpu", "--json")
    assert (code, json.loads(out)["model"]) == (0, "someone/tiny")


@pytest.mark.parametrize(("name", "code"), [("nothing", 3), ("./nowhere", 4)])
def test_a_model_that_is_not_there(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, name)
    assert (found, out) == (code, "")
    assert name in err or "nowhere" in err


def test_what_was_measured_before_is_told(
    model_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from chatcache.backends.local.model.loader import load_model
    from chatcache.cache.book.namespace import namespace_id
    from chatcache.cache.book.rates import RateBook
    from chatcache.cache.files.store import SegmentStore

    cache = home / "cache"
    loaded = load_model(str(model_dir), device="cpu", cache_dir=cache)
    fields = loaded.namespace_fields()
    store = SegmentStore(cache, namespace_id(fields))
    store.prepare(fields)
    rates = RateBook(store.directory / "rates.json")
    rates.note_prefill(512, 10.24)
    rates.note_restore(51_200_000, 100.0)
    rates.save()
    found = json.loads(run(capsys, str(model_dir), "--device", "cpu", "--json")[1])
    assert found["namespace"] == store.namespace
    assert found["prefill_tokens_per_second"] == pytest.approx(50.0)
    assert found["restore_tokens_per_second"] == pytest.approx(1000.0)
    other = json.loads(run(capsys, str(model_dir), "--dtype", "bfloat16", "--json")[1])
    assert other["namespace"] is None


def test_a_system_prompt_with_todays_date_is_warned_of(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    today = f"{datetime.now():%Y-%m-%d}"
    _, out, _ = run(capsys, str(model_dir), "--system", f"Today is {today}.", "--json")
    assert any(today in warning for warning in json.loads(out)["warnings"])
