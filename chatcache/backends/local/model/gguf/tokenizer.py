"""The tokenizer of a GGUF model, as transformers reads it from a file, mended where that is known.

Owns: what the file says of control tokens and of the ends of a turn, and the sentences on whatever
may make other ids than the tokenizer that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chatcache.backends.local.model.gguf.header import GgufHeader
from chatcache.errors import ModelLoadError

_CONTROL, _USER_DEFINED = 3, 4
# How llama.cpp splits text before merging, where transformers' reader does nothing special about it
# and the splits of GPT-2 are right.
_LIKE_GPT2 = frozenset(
    {"gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jina-es", "jina-de", "roberta-bpe"}
)
# The same, with each digit by itself.
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
# Families that compose characters first, which neither the reader nor llama.cpp does.
_COMPOSING = frozenset({"qwen2", "deepseek-r1-qwen", "qwen35", "megrez"})
# Ends of a turn, by how they are spelled; files name one or two of them by id.
_TURN_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|eom_id|>"),
        *("<end_of_turn>", "<turn|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>"),
        *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|eot|>"),
    }
)
_NOT_ENDS = {"gpt-oss": frozenset({"<|end|>"})}  # there it ends a message, and the turn goes on
_NAMED_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def build_tokenizer(header: GgufHeader) -> tuple[Any, list[str]]:
    """The tokenizer, and what is to be said of it. Raises ModelLoadError."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    check_tokenizer(header)
    try:
        architecture, content, settings = get_gguf_tokenizer(str(header.path))
        backend, _ = convert_gguf_tokenizer(architecture, content)
    except Exception as error:
        raise ModelLoadError(
            f"The tokenizer in {header.path} cannot be read: {error}.".replace("..", "."),
            "Choose another copy of the model, or one as safetensors.",
        ) from error
    _mend(backend, content)
    special = {name: settings.get(name) for name in ("bos_token", "eos_token", "unk_token")}
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=backend,
        **{name: token for name, token in special.items() if token is not None},
        pad_token=settings.get("pad_token") or settings.get("eos_token"),
        chat_template=_template(header, settings),
        clean_up_tokenization_spaces=False,
        model_max_length=header.context_length or int(1e9),
    )
    return tokenizer, list(_remarks(header, content, backend))


def check_tokenizer(header: GgufHeader) -> None:
    """Raises ModelLoadError for a file without one, as those that are made for measuring."""
    if not header.has_tokenizer:
        raise ModelLoadError(
            f"{header.path} has no tokenizer in it, so nobody can talk to its model.",
            "Choose a copy of the model that was made for chats.",
        )


def _mend(backend: Any, content: Mapping[str, Any]) -> None:
    """Put right what the file says and transformers does not heed."""
    from tokenizers import normalizers, pre_tokenizers

    pre = content.get("pre_tokenizer_type")
    if content.get("tokenizer_type") == "gpt2" and pre in _DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if pre in _COMPOSING:
        backend.normalizer = normalizers.NFC()
    is_unprefixed = (
        content.get("tokenizer_type") == "llama" and content.get("add_prefix_space") is False
    )
    if is_unprefixed and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)


def _template(header: GgufHeader, settings: Mapping[str, Any]) -> str | None:
    """The chat template, with BOS before it where the file wants that and the template lacks it."""
    template = header.text("tokenizer.chat_template")
    bos = settings.get("bos_token")
    if template is None or not settings.get("add_bos_token") or not bos:
        return template
    is_written = "bos_token" in template or bos in template
    return template if is_written else "{{ bos_token }}" + template


def _remarks(header: GgufHeader, content: Mapping[str, Any], backend: Any) -> Iterator[str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, pre = content.get("tokenizer_type"), content.get("pre_tokenizer_type")
    known = GGUF_PRE_TOKENIZER_SPLITS.keys() | _LIKE_GPT2 | _DIGITS_APART
    consequence = "so it may read some words in other pieces than the model was trained on"
    if kind == "gpt2" and pre in (None, "default"):
        yield f"The file does not say how its tokenizer splits text, {consequence}."
    elif kind == "gpt2" and pre not in known:
        yield f"Its tokenizer splits text by {pre!r:.40}, which is not known here, {consequence}."
    elif kind == "t5":
        yield f"Its tokenizer was made anew from the scores in the file, {consequence}."
    num_different = sum(
        backend.token_to_id(token) not in (index, None)
        for index, token in enumerate(content["tokens"])
    )
    if num_different:
        tokens = f"{num_different:,} token{'s' if num_different > 1 else ''}"
        yield f"Its tokenizer gives {tokens} another number than the file, {consequence}."


def generation_fields(header: GgufHeader) -> dict[str, Any]:
    """What goes into generation_config.json: every token that ends an answer, and how to sample."""
    fields: dict[str, Any] = {"eos_token_id": sorted(end_ids(header))}
    for key, name in (("bos_token_id", "bos_token_id"), ("padding_token_id", "pad_token_id")):
        token_id = header.integer(f"tokenizer.ggml.{key}")
        if token_id is not None:
            fields[name] = token_id
    sampling = {name: header.number(key) for key, name in _SAMPLING.items()}
    found = {name: value for name, value in sampling.items() if value is not None}
    if "top_k" in found:
        found["top_k"] = int(found["top_k"])
    if found.get("temperature"):
        found["do_sample"] = True
    return fields | found


def end_ids(header: GgufHeader) -> set[int]:
    """The tokens that end an answer: by id, and the control tokens that are spelled like one."""
    tokens, kinds = header.array("tokenizer.ggml.tokens"), header.array("tokenizer.ggml.token_type")
    num_tokens = 0 if tokens is None else len(tokens)
    named = (header.integer(f"tokenizer.ggml.{key}") for key in _NAMED_ENDS)
    found = {token_id for token_id in named if token_id is not None and token_id < num_tokens}
    if tokens is None or kinds is None:
        return found
    spelled = _TURN_ENDS - _NOT_ENDS.get(header.architecture, frozenset())
    return found | {
        index
        for index, (token, kind) in enumerate(zip(tokens.strings(), kinds.numbers(), strict=False))
        if kind in (_CONTROL, _USER_DEFINED) and token in spelled
    }
