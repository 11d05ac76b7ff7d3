"""`chatcache models perplexity`: what a text tells of a model, and what fewer bits cost it."""

from __future__ import annotations

import gc
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatcache.assets import dialogues_file
from chatcache.checks import whole
from chatcache.commands.parser import MODEL_HELP, Parser, number_option, settings_of
from chatcache.config import Settings
from chatcache.errors import UnavailableError
from chatcache.formatting import model_label, plural, size, table
from chatcache.frontend.shell_output import Narrator, print_result
from chatcache.remotes import remote_model
from chatcache.sections import EXACT_WEIGHTS

if TYPE_CHECKING:
    from chatcache.backends.base import ModelLoading
    from chatcache.backends.local.model.loader import LoadedModel
    from chatcache.backends.local.study.perplexity import Chunk

_CHUNK_TOKENS = 512
_MAX_TOKENS = 8192


def configure(parser: Parser) -> None:
    parser.description = (
        "Read a text with a model and say how well it foretells the next token: perplexity, the\n"
        "lower the better. With --quantize the exact weights are measured beside.\n"
        "A text is UTF-8, or dialogues (JSON lines with `messages`), of which answers are scored."
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--text", metavar="FILE", type=Path, help="default: dialogues that come with chatcache"
    )
    count = number_option(whole(2), int)
    words = f"tokens read together (default: {_CHUNK_TOKENS})"
    parser.add_argument("--chunk", metavar="N", type=count, default=_CHUNK_TOKENS, help=words)
    words = f"of the text (default: {_MAX_TOKENS:,})"
    parser.add_argument("--tokens", metavar="N", type=count, default=_MAX_TOKENS, help=words)
    parser.add_device()
    parser.add_json()


def run(arguments: Namespace) -> int:
    narrator = Narrator()
    settings = settings_of(arguments, {"model.default": arguments.model})
    name = settings.config.model.default
    if remote_model(name, settings.config.remotes) is not None:
        raise UnavailableError(
            "A server does not tell how probable the tokens of a text are.",
            "Name a model of this machine.",
        )
    text = arguments.text or dialogues_file()
    forms = list(dict.fromkeys((settings.config.model.quantize, EXACT_WEIGHTS)))
    rows = [_measured(settings, name, form, text, arguments, narrator) for form in forms]
    narrator.release()
    exact = rows[-1]["perplexity"]
    for row in rows:
        row["ratio"] = round(row["perplexity"] / exact, 6) if exact else None
    header = ("WEIGHTS", "PERPLEXITY", "RATIO", "SIZE", "BYTES PER WEIGHT")
    lines = [
        (
            row["quantization"] or row["dtype"],
            f"{row['perplexity']:.4f}",
            f"{row['ratio']:.4f}",
            size(row["weight_bytes"]),
            f"{row['bytes_per_weight']:.3f}",
        )
        for row in rows
    ]
    first = rows[0]
    title = (
        f"{model_label(name, '')}: {first['scored_tokens']:,} tokens scored in "
        f"{plural(first['chunks'], 'chunk')} of {text.name}"
    )
    shown = f"{title}\n\n{table(header, lines, 'PERPLEXITY RATIO SIZE BYTES')}"
    data = {"model": name, "text": str(text), "measured": rows}
    return print_result(data, shown, as_json=arguments.json)


def _measured(
    settings: Settings,
    name: str,
    form: str,
    text: Path,
    arguments: Namespace,
    narrator: Narrator,
) -> dict[str, Any]:
    """One row. The model is let go afterwards."""
    from chatcache.backends.local.study.perplexity import (
        chunks_of,
        perplexity_of,
        read_text,
        weight_bytes,
    )

    content = read_text(text)
    loaded = _loaded(settings, name, form, narrator)
    label = loaded.quantization or str(loaded.dtype).removeprefix("torch.")
    chunks: list[Chunk] = chunks_of(content, loaded.tokenizer, arguments.chunk, arguments.tokens)
    found = perplexity_of(
        loaded,
        chunks,
        lambda done, total: narrator.progress(f"{label}: chunk {done + 1:,} of {total:,}"),
    )
    num_bytes = weight_bytes(loaded)
    row = {
        "quantization": loaded.quantization or None,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "perplexity": found.perplexity,
        "scored_tokens": found.num_scored,
        "chunks": found.num_chunks,
        "parameters": loaded.num_parameters,
        "weight_bytes": num_bytes,
        "bytes_per_weight": round(num_bytes / loaded.num_parameters, 4),
    }
    del loaded
    gc.collect()
    return row


def _loaded(settings: Settings, name: str, form: str, narrator: Narrator) -> LoadedModel:
    from chatcache.backends.local.model.loader import load_model

    model = settings.config.model

    def tell(event: ModelLoading) -> None:
        share = f" {event.done / event.total:.0%}" if event.total else ""
        narrator.progress(f"{event.stage}{share}")

    return load_model(
        name,
        device=model.device,
        dtype=model.dtype,
        quantize=form,
        offline=model.offline,
        cache_dir=settings.paths.cache_dir,
        progress=tell,
    )
