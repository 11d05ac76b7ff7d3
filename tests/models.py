"""Tiny random models and tokenizers, made in milliseconds; nothing is downloaded.

Owns: directories that `AutoModelForCausalLM` and `AutoTokenizer` load like any other model. Speed
and text mean nothing here, the code paths are the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
THINK_TOKENS = ("<think>", "</think>")

CHATML_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

TRAINING_TEXT = (
    "The key and the value of every token are kept, so that a chat which was closed can go on.",
    "A fork shares what came before it; the system prompt is read once and used by all.",
    "user system assistant\nYou are a helpful assistant. What is the answer? Is it there?\n",
    "Yes, it is: one, two, three, four, five. No, it is not. Why? Because of this and that.\n\n",
    "def add(left, right):\n    return left + right\n",
)


def build_tokenizer(
    *,
    vocab_size: int = 400,
    chat_template: str | None = CHATML_TEMPLATE,
    control_tokens: tuple[str, ...] = CONTROL_TOKENS,
    plain_added_tokens: tuple[str, ...] = THINK_TOKENS,
) -> Any:
    """A byte-level BPE tokenizer in the manner of Qwen's: any text goes in and comes out.

    `control_tokens` are special; `plain_added_tokens` are added but not special, as `<think>` is.
    The first control token is the padding, the last one the end token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(TRAINING_TEXT * 3, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in control_tokens])
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain_added_tokens])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=control_tokens[0],
        eos_token=control_tokens[-1],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def build_model(
    model_type: str = "qwen3",
    *,
    vocab_size: int,
    eos_token_id: int,
    seed: int = 0,
    **overrides: Any,
) -> Any:
    """A random float32 model with tied embeddings; any `model_type` that `AutoConfig` knows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    config = AutoConfig.for_model(model_type, **(sizes | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # wide enough that greedy choices have no near-ties
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def build_model_dir(
    path: Path,
    model_type: str = "qwen3",
    *,
    seed: int = 0,
    vocab_size: int = 400,
    chat_template: str | None = CHATML_TEMPLATE,
    tokenizer: Any = None,
    **overrides: Any,
) -> Path:
    """Write a model and its tokenizer to `path` as `save_pretrained` does; returns `path`.

    The same arguments give the same bytes; another `seed` gives other weights of equal shape.
    `overrides` are fields of the config, e.g. `num_hidden_layers=3`.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or build_tokenizer(vocab_size=vocab_size, chat_template=chat_template)
    model = build_model(
        model_type,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        seed=seed,
        **overrides,
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def build_metaspace_tokenizer(
    *,
    vocab_size: int = 400,
    chat_template: str | None = CHATML_TEMPLATE,
    control_tokens: tuple[str, ...] = CONTROL_TOKENS,
    prepend_scheme: str = "first",
) -> Any:
    """A BPE tokenizer in the manner of Llama-2's: metaspace words, unknown characters as bytes.

    `prepend_scheme` "first" puts a space before the first word only, "always" after each control
    token too, "never" nowhere.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False)
    trained.train_from_iterator(TRAINING_TEXT * 3, trainer)
    learnt = json.loads(trained.to_str())["model"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    vocab = {token: index for index, token in enumerate(["<unk>", *byte_tokens, *words])}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    strip = [] if prepend_scheme == "never" else [decoders.Strip(content=" ", left=1)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control_tokens]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=control_tokens[0],
        eos_token=control_tokens[-1],
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer
