"""Texts that commands show or write: totals, the model, sampling, a chat as Markdown. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from chatcache import formatting as fmt
from chatcache.backends.base import ModelInfo
from chatcache.chat.views import TranscriptMessage
from chatcache.errors import NotFoundError, UsageError
from chatcache.frontend.figures import Figures

_CODE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)


def totals(answers: Sequence[Figures]) -> str:
    """What the cache did over a whole chat."""
    if not answers:
        return "Nothing has been answered yet."
    prompt = sum(answer.prompt_tokens for answer in answers)
    cached = sum(answer.cached_tokens for answer in answers)
    saved = sum(answer.saved_ms or 0.0 for answer in answers)
    produced = sum(answer.completion_tokens for answer in answers)
    lines = [
        f"{fmt.plural(len(answers), 'answer')}, {produced:,} tokens written",
        f"{prompt:,} prompt tokens, {cached:,} of them reused ({fmt.percent(cached, prompt)})",
        f"{fmt.duration(saved)} of prefill saved" if saved > 0 else "no prefill saved yet",
    ]
    return "\n  ".join(lines)


def model(info: ModelInfo) -> str:
    lines = [
        f"{fmt.one_line(info.model)}: {info.architecture}, {fmt.parameters(info.num_parameters)}"
        f" parameters, {info.num_layers} layers, {info.dtype} on {info.device}",
        f"{fmt.size(info.kv_bytes_per_token)} of KV per token,"
        f" context of {info.max_context_tokens:,} tokens",
        f"reuse: {fmt.one_line(info.cut_detail)}",
    ]
    if info.description:
        lines.insert(0, fmt.one_line(info.description))
    return "\n  ".join(lines)


def system_change_cost(figures: Figures | None) -> str:
    """What another system prompt costs, from the figures of the last turn."""
    if figures is None or not figures.prompt_tokens:
        return "It is the first thing the model reads."
    tokens = figures.prompt_tokens + figures.completion_tokens
    text = f"This changes the prefix: {tokens:,} tokens to recompute"
    if figures.prefill_tokens_per_second:
        text += f", about {fmt.duration(1000 * tokens / figures.prefill_tokens_per_second)}"
    return text + ". The old path stays stored."


def last_code_block(text: str) -> str:
    """The content of the last fenced block, or the empty string."""
    blocks = _CODE.findall(text)
    return blocks[-1][1].rstrip("\n") if blocks else ""


def as_markdown(name: str, messages: Sequence[TranscriptMessage]) -> str:
    parts = [f"# {fmt.one_line(name)}"]
    for message in messages:
        who = {"user": "You", "system": "System prompt"}.get(
            message.role, message.model or "Answer"
        )
        parts.append(f"## {who}\n\n{message.text}")
    return "\n\n".join(parts) + "\n"


def file_name(session_name: str) -> str:
    return (re.sub(r"[^\w.-]+", "-", session_name).strip("-.") or "chat") + ".md"


def read_export(name: str) -> object:
    """The document in a file that `/export X.json` or `sessions export` has written."""
    try:
        return json.loads(Path(name).expanduser().read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{fmt.one_line(name)} is not JSON.", "Export it to a .json file."
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotFoundError(f"{fmt.one_line(name)} cannot be read: {reason}.", "") from error


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet. Raises UsageError naming what is in the way."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already.", "Say /export with another name.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{path} cannot be written: {reason}.", "Say /export FILE.") from None
