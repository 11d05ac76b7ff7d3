"""The reason of each turn: which one, and that its sentence has the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chatcache.backends.base import PreviousTurn
from chatcache.backends.local.run.reasons import TurnFacts, explain
from chatcache.cache.book.namespace import chain_digest, explain_change, namespace_id
from chatcache.cache.files.store import LostSegment
from chatcache.token_ids import TokenIds

NAMESPACE = "ns"
FIELDS = {"weights": "one", "dtype": "float32", "adapter": "none", "soft.device": "cpu"}
IDS = TokenIds(range(100))
FACTS = TurnFacts(prompt_ids=IDS, reused=80, keep=80, num_journal=80)


def reason(facts: TurnFacts, damaged: tuple[LostSegment, ...] = ()) -> tuple[str, str]:
    found = explain(facts, NAMESPACE, FIELDS, damaged)
    assert found.detail
    return found.outcome, found.reason


def test_all_of_the_history_is_a_hit() -> None:
    assert reason(FACTS) == ("hit", "new_user_turn")
    assert "80" in explain(FACTS, NAMESPACE, FIELDS).detail


def test_a_first_turn_is_cold_or_shared_or_too_little_to_pay() -> None:
    first = replace(FACTS, keep=0, num_journal=0)
    assert reason(replace(first, reused=0)) == ("miss", "cold_start")
    assert reason(replace(first, reused=70)) == ("hit", "new_user_turn")
    assert reason(replace(first, reused=0, num_matched=40)) == ("miss", "below_minimum")
    assert reason(replace(first, reused=1, num_matched=1)) == ("partial", "below_minimum")


def test_the_cache_can_be_off_or_impossible() -> None:
    assert reason(replace(FACTS, reused=0, use_cache=False)) == ("off", "disabled")
    assert reason(replace(FACTS, reused=0, cut_problem="mamba")) == ("miss", "not_cuttable")


def test_what_is_no_longer_held_was_evicted() -> None:
    facts = replace(FACTS, reused=30)
    assert reason(facts) == ("partial", "evicted")
    assert "50" in explain(facts, NAMESPACE, FIELDS).detail


def test_what_was_never_read_was_not_evicted() -> None:
    facts = replace(FACTS, reused=30, stopped_at=30)
    assert reason(facts) == ("partial", "new_user_turn")
    detail = explain(facts, NAMESPACE, FIELDS).detail
    assert "stopped" in detail
    assert "30" in detail
    assert reason(replace(facts, stopped_at=40)) == ("partial", "evicted")


def test_damage_is_told_apart_from_eviction() -> None:
    segment_id = chain_digest(NAMESPACE, 30, IDS[:60])
    damaged = LostSegment(segment_id, 30, 60, "flipped")
    facts = replace(FACTS, reused=30)
    assert reason(facts, (damaged,)) == ("partial", "corrupt")
    assert reason(facts, (replace(damaged, segment_id="0" * 32),)) == ("partial", "evicted")
    assert reason(replace(facts, is_damage=True, restore_problem="bad")) == ("partial", "corrupt")


def test_what_was_not_used_in_time_has_expired() -> None:
    segment_id = chain_digest(NAMESPACE, 30, IDS[:60])
    late = LostSegment(segment_id, 30, 60, "was not used within its time to live")
    found = explain(replace(FACTS, reused=30), NAMESPACE, FIELDS, expired=[late])
    assert (found.outcome, found.reason) == ("partial", "expired")


def test_the_template_is_named_with_what_it_did() -> None:
    facts = replace(FACTS, keep=40, reused=40, divergence=("template_rewrote_history", "think"))
    assert reason(facts) == ("partial", "template_rewrote_history")


@pytest.mark.parametrize("cause", ["system_prompt_changed", "turn_edited"])
def test_what_the_user_changed_is_named_with_its_position(cause: str) -> None:
    before = TokenIds((*range(50), 7, 7, 7))
    previous = PreviousTurn(FIELDS, cause, before)  # type: ignore[arg-type]
    facts = replace(FACTS, keep=0, num_journal=0, reused=0, previous=previous)
    assert reason(facts) == ("miss", cause)
    assert "50" in explain(facts, NAMESPACE, FIELDS).detail


@pytest.mark.parametrize(
    ("field", "expected"),
    [("weights", "model_changed"), ("adapter", "adapter_changed"), ("dtype", "settings_changed")],
)
def test_another_namespace_is_named_by_the_field_that_changed(field: str, expected: str) -> None:
    before = {**FIELDS, field: "other", "parameters": "differ too"}
    facts = replace(FACTS, reused=0, previous=PreviousTurn(before))
    assert reason(facts) == ("miss", expected)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"weights": "e" * 64, "soft.name": "/models/smollm2"},
            "the model's weights changed (builtin before, smollm2 now)",
        ),
        (
            {"weights_form": "4bit/1", "soft.quantization": "4bit"},
            "how the weights are packed changed (exact before, 4bit now)",
        ),
        ({"weights": "e" * 64}, f"the model's weights changed (w before, {'e' * 12}… now)"),
    ],
)
def test_another_model_is_named_as_people_call_it(changed: dict[str, str], sentence: str) -> None:
    before = {**FIELDS, "weights": "w", "soft.name": "builtin"}
    found = explain_change(before, {**before, **changed, "parameters": "others"})
    assert found == ("model_changed", sentence)


def test_soft_fields_do_not_make_another_namespace() -> None:
    other = {**FIELDS, "soft.device": "cuda"}
    assert namespace_id(other) == namespace_id(FIELDS)
    assert explain_change(FIELDS, other) is None
    assert namespace_id({**FIELDS, "dtype": "bfloat16"}) != namespace_id(FIELDS)


def test_a_cut_that_does_not_pay_is_not_called_an_eviction() -> None:
    facts = replace(FACTS, reused=79, num_matched=80)
    assert reason(facts) == ("partial", "cheaper_to_recompute")
    assert "(1 token)" in explain(facts, NAMESPACE, FIELDS).detail
    assert reason(replace(facts, reused=30, num_matched=60)) == ("partial", "evicted")
    gone = replace(facts, reused=30, restore_problem="it is gone")
    assert reason(gone) == ("partial", "evicted")


def test_what_was_declined_is_said_also_where_nothing_was_promised() -> None:
    """Another conversation has read the document; reading its keys and values is slower."""
    facts = replace(FACTS, keep=0, num_journal=0, reused=0, num_matched=80, declined="slow disk")
    assert reason(facts) == ("miss", "cheaper_to_recompute")
    assert explain(facts, NAMESPACE, FIELDS).detail.startswith("slow disk: 100 of 100")


def test_what_was_read_is_said_with_what_it_spared() -> None:
    detail = explain(replace(FACTS, read="reading took 1 ms"), NAMESPACE, FIELDS).detail
    assert detail == "all 80 tokens read before were reused, 20 are new; reading took 1 ms"
