"""Who computed what: a model that changes while it runs, adapters of one name, 8-bit integers, a
question that was not read to its end. Real engines on tiny models."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatcache.backends.base import (
    PrefillProgress,
    PreviousTurn,
    RestoreBegan,
    TurnFinished,
    TurnPlanned,
)
from chatcache.backends.local.model.identity import FileWatch, OriginWatch
from chatcache.cache.book.policy import TierPolicy
from chatcache.errors import UnavailableError
from tests.models import build_model_dir
from tests.talks import Engine, Talk

LONG = "What is the answer? " + "The key and the value of every token are kept. " * 12
Open = Callable[..., Engine]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_model_dir(tmp_path / "model")


@pytest.fixture
def open_engine(model: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens engines on one cache directory, one after the other, as restarts do."""
    opened: list[Engine] = []

    def open_(**settings: Any) -> Engine:
        for engine in opened:
            engine.close()
        opened.append(Engine(model, tmp_path, **settings))
        return opened[-1]

    yield open_
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("how", ["written to", "replaced", "removed", "another template"])
def test_a_model_that_is_another_one_by_now_is_seen(
    model: Path, open_engine: Open, how: str
) -> None:
    """An engine that stays would answer with what it has long after."""
    runner = open_engine().runner
    assert not runner.is_outdated()
    weights = model / "model.safetensors"
    if how == "written to":
        weights.touch()
    elif how == "replaced":
        shutil.copy(weights, model / "new.safetensors")
        (model / "new.safetensors").rename(weights)
    elif how == "removed":
        shutil.rmtree(model)
    else:
        (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert runner.is_outdated()


def test_a_new_revision_of_a_hub_model_and_a_retrained_adapter_are_seen(tmp_path: Path) -> None:
    snapshot, refs, adapter = (
        tmp_path / "snapshots" / "1234",
        tmp_path / "refs",
        tmp_path / "adapter",
    )
    for directory in (snapshot, refs, adapter):
        directory.mkdir(parents=True)
    (refs / "main").write_text("1234")
    watch = OriginWatch(snapshot, adapter)
    (refs / "main").write_text("567890")
    assert watch.is_changed()
    watch = OriginWatch(snapshot, adapter)
    assert not watch.is_changed()
    (adapter / "adapter_model.safetensors").write_bytes(b"new")
    assert watch.is_changed()


def test_a_new_revision_and_another_file_of_a_gguf_model_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "snapshots" / "1234" / "Q4_0" / "tiny-Q4_0.gguf"
    refs = tmp_path / "refs"
    for directory in (file.parent, refs):
        directory.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    (refs / "main").write_text("1234")
    watch = OriginWatch(file, None)
    assert not watch.is_changed()
    (refs / "main").write_text("567890")
    assert watch.is_changed()
    watch = OriginWatch(file, None)
    file.write_bytes(b"GGUF, but another")
    assert watch.is_changed()


def namespace_of(engine: Engine) -> str:
    return engine.runner.info.namespace


def num_segments(tmp_path: Path, namespace: str) -> int:
    return len(list((tmp_path / "cache" / "segments" / namespace).glob("*.safetensors")))


def test_what_the_front_end_is_told_brings_no_torch_along(open_engine: Open) -> None:
    told = pickle.dumps(open_engine().runner.info)
    code = f"import pickle, sys; pickle.loads({told!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# a model directory that changes while it is in use


def overwrite(model: Path, other: Path) -> None:
    """Write other weights of the same shape into the file, as a copying program does."""
    with (model / "model.safetensors").open("r+b") as file:
        file.write((other / "model.safetensors").read_bytes())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_overwritten_answers_no_more_and_keeps_nothing(
    open_engine: Open, model: Path, tmp_path: Path, dtype: str
) -> None:
    engine, talk = open_engine(dtype=dtype), Talk()
    talk.say(engine, LONG)
    first = namespace_of(engine)
    engine.runner.drain()  # type: ignore[attr-defined]
    kept = num_segments(tmp_path, first)
    assert kept > 0
    overwrite(model, build_model_dir(tmp_path / "other", seed=1))
    error = talk.fail(engine, "And then?")
    assert isinstance(error, UnavailableError)
    assert "was written to while" in error.message
    again = open_engine(dtype=dtype)
    assert namespace_of(again) != first
    assert num_segments(tmp_path, first) == kept
    talk.options["previous"] = PreviousTurn(engine.runner.info.namespace_fields)
    result = talk.say(again, "And then?")
    assert (result.usage.cached_tokens, result.cache.reason) == (0, "model_changed")


def test_what_was_computed_while_the_model_changed_is_not_kept(
    open_engine: Open, model: Path, tmp_path: Path
) -> None:
    engine, talk = open_engine(), Talk()
    other = build_model_dir(tmp_path / "other", seed=1)
    last = None
    for event in engine.runner.run(talk.request(LONG), threading.Event()):
        if isinstance(event, TurnPlanned):
            overwrite(model, other)
        last = event
    assert isinstance(last, TurnFinished)
    assert last.result.cache.bytes_written == 0
    assert num_segments(tmp_path, namespace_of(engine)) == 0
    assert isinstance(talk.fail(engine, "And then?"), UnavailableError)


def test_a_model_that_is_replaced_or_deleted_goes_on_as_it_was(
    open_engine: Open, model: Path, tmp_path: Path
) -> None:
    engine, talk = open_engine(), Talk()
    first = talk.say(engine, LONG)
    weights = model / "model.safetensors"
    (build_model_dir(tmp_path / "other", seed=1) / "model.safetensors").replace(weights)
    assert talk.say(engine, "And then?").usage.cached_tokens >= first.usage.prompt_tokens
    weights.unlink()
    assert talk.say(engine, "Why?").usage.cached_tokens > first.usage.prompt_tokens


def test_a_watch_tells_writing_from_replacing(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    link = tmp_path / "link"
    link.symlink_to(file)
    watch = FileWatch([link])
    assert watch.changed() is None
    (tmp_path / "new").write_bytes(b"two")
    (tmp_path / "new").replace(file)
    assert watch.changed() is None
    watch = FileWatch([link])
    file.write_bytes(b"three")
    assert watch.changed() == file
    file.unlink()
    assert watch.changed() is None


# adapters


def adapter_dir(model: Path, place: Path, seed: int) -> Path:
    """A small random adapter of the name `pirate`."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft.get_peft_model(base, config).save_pretrained(str(place / "pirate"))
    return place / "pirate"


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_of_one_name_are_two(open_engine: Open, model: Path, tmp_path: Path) -> None:
    one = adapter_dir(model, tmp_path / "one", 1)
    other = adapter_dir(model, tmp_path / "other", 2)
    first, talk = open_engine(adapter=one), Talk()
    talk.say(first, LONG)
    second = open_engine(adapter=other)
    assert namespace_of(first) != namespace_of(second)
    talk.options["previous"] = PreviousTurn(first.runner.info.namespace_fields)
    result = talk.say(second, "And then?")
    assert (result.usage.cached_tokens, result.cache.reason) == (0, "adapter_changed")
    # The files of the first under the name of the second: now it is the first.
    for file in one.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert namespace_of(open_engine(adapter=other)) == namespace_of(first)


# 8-bit integers

INT8 = TierPolicy(precision="int8")


def test_integers_are_told_and_never_mixed(open_engine: Open, tmp_path: Path) -> None:
    exact, talk = open_engine(), Talk()
    first = talk.say(exact, LONG)
    talk.options["previous"] = PreviousTurn(exact.runner.info.namespace_fields)
    engine = open_engine(policy=INT8)
    told = talk.say(engine, "And then?")
    assert namespace_of(engine) != namespace_of(exact)
    assert (told.usage.cached_tokens, told.cache.reason) == (0, "settings_changed")
    assert "(exact before, int8 now)" in told.cache.detail
    assert not told.cache.is_approximate
    del talk.options["previous"]
    resumed = talk.say(open_engine(policy=INT8), "And then?")
    assert resumed.usage.cached_disk_tokens > first.usage.prompt_tokens
    assert resumed.cache.is_approximate
    assert "approximate (int8)" in resumed.cache.detail


def test_integers_take_about_half_of_bfloat16(open_engine: Open, tmp_path: Path) -> None:
    sizes = []
    for policy in (TierPolicy(), INT8):
        engine, talk = open_engine(policy=policy, dtype="bfloat16"), Talk()
        talk.say(engine, LONG)
        engine.runner.drain()  # type: ignore[attr-defined]
        files = (tmp_path / "cache" / "segments" / namespace_of(engine)).glob("*.safetensors")
        sizes.append(sum(file.stat().st_size for file in files))
    assert sizes[1] < 0.7 * sizes[0]  # with headers, and heads of 16 numbers


# a question that was not read to its end


def test_a_question_that_was_stopped_is_no_eviction_after_a_restart(open_engine: Open) -> None:
    engine, talk = open_engine(), Talk()
    talk.say(engine, "What is kept?")
    events = talk.events(engine, LONG * 3, PrefillProgress)
    last = events[-1]
    assert isinstance(last, TurnFinished)
    assert not last.result.answer_ids
    assert talk.num_answered < len(talk.journal)
    result = talk.say(open_engine(), "Go on.")
    assert result.cache.reason == "new_user_turn"
    assert "stopped" in result.cache.detail


def test_what_was_answered_and_is_gone_is_evicted(open_engine: Open, tmp_path: Path) -> None:
    engine, talk = open_engine(), Talk()
    talk.say(engine, "What is kept?")
    talk.events(engine, LONG * 3, PrefillProgress)
    again = open_engine()
    for file in (tmp_path / "cache" / "segments" / namespace_of(again)).glob("*.safetensors"):
        file.unlink()
    assert talk.say(open_engine(), "Go on.").cache.reason == "evicted"


def test_what_is_read_from_disk_is_told_before_it_is_read(open_engine: Open) -> None:
    talk = Talk()
    first = talk.say(open_engine(), LONG)
    engine = open_engine()
    usage = talk.say(engine, "And then?").usage
    (began,) = [event for event in engine.events if isinstance(event, RestoreBegan)]
    assert began.num_tokens == usage.cached_disk_tokens >= first.usage.prompt_tokens
    assert began.num_bytes > 0
