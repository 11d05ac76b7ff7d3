"""`chatcache models probe`: what a model will cost in a chat, before anyone pays for it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from chatcache.chat import unstable
from chatcache.commands import models_remote
from chatcache.commands.parser import MODEL_HELP, Parser, settings_of
from chatcache.commands.prompt import read_system
from chatcache.formatting import one_line, plural, rate, size, table
from chatcache.frontend.shell_output import Narrator, print_json, print_line
from chatcache.remotes import remote_model

if TYPE_CHECKING:
    from chatcache.backends.local.study.probe import ModelProbe, TemplateReport
    from chatcache.backends.local.study.rehearsal import Rehearsed, RehearsedTurn

CAUSE_WORDS = {
    "changes_by_itself": "the template writes the date, and it is another one",
    "system_prompt_moved": "the system prompt moves on to the newest message",
    "reasoning_removed": "reasoning is left out of the history",
    "generation_prompt_not_kept": "what a prompt ends with is left out of the history",
    "answer_changed": "an answer is written differently in the history",
    "end_token_changed": "the end of an answer is written differently in the history",
    "history_changed": "earlier messages are written differently",
}
SYSTEM_WORDS = {
    "first": "in front of the conversation",
    "moved": "in the newest message: it moves with each turn",
    "folded": "in the first message of the user; the template has no place for it",
    "refused": "not at all: the template refuses it",
}
CUT_WORDS = {
    "any_token": "at any token",
    "turn_boundary": "at the ends of messages",
    "none": "none",
}
ORDINALS = ("2ND", "3RD", "4TH", "5TH")


def configure(parser: Parser) -> None:
    parser.description = (
        "Tell from the config and the tokenizer of a model, without its weights, what K and V\n"
        "take, and how much of a conversation its chat template makes it read again in each turn.\n"
        "A server is asked which models it has; no message is sent."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--system", metavar="TEXT|@FILE", help="the system prompt to try; it is looked at, too"
    )
    parser.add_device()
    parser.add_json()


def run(arguments: Namespace) -> int:
    from chatcache.backends.local.study.probe import probe_model

    narrator = Narrator()
    settings = settings_of(arguments, {"model.default": arguments.model})
    model = settings.config.model
    if (remote := remote_model(model.default, settings.config.remotes)) is not None:
        return models_remote.probe(remote, settings, arguments)
    system = None if arguments.system is None else read_system(arguments.system, narrator.warn)
    narrator.progress(f"looking at {model.default}")
    probe = probe_model(
        model.default,
        device=model.device,
        dtype=model.dtype,
        is_offline=model.offline,
        cache_dir=settings.paths.cache_dir,
        system=system,
    )
    narrator.release()
    warnings = list(_warnings(probe, system))
    if arguments.json:
        print_json(_as_json(probe, warnings))
        return 0
    print_line(f"{_title(probe)}\n")
    print_line(table(("", ""), list(_rows(probe))).lstrip("\n"))
    print_line(f"\n{_conversations(probe.template)}")
    for warning in warnings:
        print_line(f"\n{one_line(warning)}")
    return 0


# for people


def _title(probe: ModelProbe) -> str:
    count = "" if probe.num_parameters is None else f"{probe.num_parameters:,} parameters, "
    return f"{probe.model}: {probe.architecture}, {count}{probe.dtype} on {probe.device}"


def _rows(probe: ModelProbe) -> Iterator[tuple[str, str]]:
    template = probe.template
    per_token = probe.kv_bytes_per_token
    kinds = ", ".join(
        f"{number} {kind.replace('_', ' ')}" for kind, number in probe.layer_kinds.items()
    )
    yield "context", f"{probe.max_context_tokens:,} tokens at most"
    yield (
        "K and V",
        f"{per_token:,} bytes per token, {size(1000 * per_token)} per 1,000 tokens"
        f" ({plural(probe.num_layers, 'layer')}: {kinds})",
    )
    yield "reuse", f"{CUT_WORDS[probe.cut.kind]}: {probe.cut.detail}"
    why = probe.why_eager
    yield "on a GPU", f"decodes step by step: {why}" if why else "decodes by captured graphs"
    speed = "not measured on this machine yet"
    if probe.prefill_tokens_per_second is not None:
        speed = f"reads {rate(probe.prefill_tokens_per_second)} tokens/s"
        if probe.restore_tokens_per_second is not None:
            speed += f", restores {rate(probe.restore_tokens_per_second)} tokens/s from disk"
    yield "speed", speed
    yield "template", _template_words(template)
    yield "system prompt", SYSTEM_WORDS[template.system_role]
    controls = f"{plural(template.num_controls, 'control token')}; typed ones stay text"
    if template.leaked:
        controls = f"typed text becomes a control token: {', '.join(template.leaked[:4])}"
    yield "control tokens", controls


def _template_words(template: TemplateReport) -> str:
    if not template.has_own_template:
        return "the model has none: it was not made for chats, and gets plain text"
    parts = ["does not change by itself"]
    if template.change is not None:
        change = template.change
        parts = [
            f"changes by itself each {change.interval}: {change.text!r} at token {change.position}"
        ]
    if template.has_thinking_switch:
        parts.append("thinking can be switched")
    elif template.knows_reasoning:
        parts.append("knows reasoning")
    return "; ".join(parts)


def _conversations(template: TemplateReport) -> str:
    rows = [_conversation_row(rehearsed) for rehearsed in template.rehearsed]
    header = ("TOKENS READ AGAIN", *ORDINALS[: len(rows[0]) - 3], "OF", "WHY")
    return table(header, rows, " ".join((*ORDINALS, "OF")))


def _conversation_row(rehearsed: Rehearsed) -> tuple[str, ...]:
    turns = rehearsed.turns
    if rehearsed.problem is not None or not turns:
        blanks = [""] * 4
        return (rehearsed.rehearsal.title, *blanks, f"not possible: {rehearsed.problem}")
    counts = [f"{turn.reread:,}" for turn in turns]
    last = turns[-1]
    why = ""
    if last.cause is not None:
        why = f"{CAUSE_WORDS[last.cause]}, from token {last.position:,} on"
    return (rehearsed.rehearsal.title, *counts, f"{last.prompt:,}", why)


def _warnings(probe: ModelProbe, system: str | None) -> Iterator[str]:
    """What somebody who is about to use the model should know, the worst first."""
    template = probe.template
    yield from probe.remarks
    if template.leaked:
        yield (
            "Text that people type or paste can act as a control token with this model:"
            f" {', '.join(template.leaked)}."
        )
    if not probe.cut.is_cuttable:
        yield f"Nothing will be reused: {probe.cut.detail}."
    if template.change is not None:
        yield (
            f"The template writes {template.change.text!r} at token {template.change.position}:"
            f" after each new {template.change.interval} everything behind it is read again."
            " `chatcache sessions mode SESSION append` keeps the old one."
        )
    worst = template.worst
    if worst.reread_per_turn and worst.turns[-1].cause is not None:
        yield (
            f"Each turn of a chat such as {worst.rehearsal.title!r} reads"
            f" {worst.reread_per_turn:,} of {worst.turns[-1].prompt:,} tokens again:"
            f" {CAUSE_WORDS[worst.turns[-1].cause]}."
            " `chatcache sessions mode SESSION append` reads nothing again, but leaves what the"
            " model was trained on."
        )
    told = unstable.warning(system, datetime.now())
    if told is not None:
        yield told


# for programs


def _as_json(probe: ModelProbe, warnings: list[str]) -> dict[str, Any]:
    template = probe.template
    change, worst = template.change, template.worst
    return {
        "model": probe.model,
        "path": str(probe.path),
        "architecture": probe.architecture,
        "parameters": probe.num_parameters,
        "dtype": probe.dtype,
        "device": probe.device,
        "layers": probe.num_layers,
        "layer_kinds": probe.layer_kinds,
        "kv_bytes_per_token": probe.kv_bytes_per_token,
        "cut": probe.cut.kind,
        "cut_detail": probe.cut.detail,
        "gpu_steps": "eager" if probe.why_eager else "captured",
        "gpu_steps_detail": probe.why_eager,
        "max_context_tokens": probe.max_context_tokens,
        "namespace": probe.namespace,
        "template": {
            "stable": change is None,
            "first_unstable": change and f"token {change.position}: {change.text}",
            "changes_every": change and change.interval,
            "tokens_lost_per_turn": worst.reread_per_turn,
            "reason": worst.turns[-1].cause if worst.reread_per_turn else None,
            "system_prompt": template.system_role,
            "knows_reasoning": template.knows_reasoning,
            "has_thinking_switch": template.has_thinking_switch,
            "control_tokens": template.num_controls,
            "control_tokens_from_text": list(template.leaked),
            "conversations": [_conversation_json(rehearsed) for rehearsed in template.rehearsed],
        },
        "restore_tokens_per_second": probe.restore_tokens_per_second,
        "prefill_tokens_per_second": probe.prefill_tokens_per_second,
        "warnings": warnings,
    }


def _conversation_json(rehearsed: Rehearsed) -> dict[str, Any]:
    return {
        "name": rehearsed.rehearsal.name,
        "problem": rehearsed.problem,
        "turns": [_turn_json(turn) for turn in rehearsed.turns],
    }


def _turn_json(turn: RehearsedTurn) -> dict[str, Any]:
    return {
        "turn": turn.turn,
        "prompt_tokens": turn.prompt,
        "history_tokens": turn.history,
        "reused_tokens": turn.reused,
        "lost_tokens": turn.lost,
        "read_again_tokens": turn.reread,
        "cause": turn.cause,
        "position": turn.position,
        "detail": turn.detail,
    }
