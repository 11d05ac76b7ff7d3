"""Shape of the model, and its export as an ordinary Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tokenizer import END_OF_TEXT, IM_END, MAX_CONTEXT_TOKENS

INIT_STD = 0.02


def build_config(vocab_size: int, eos_token_id: int, pad_token_id: int) -> Qwen3Config:
    """About 7 million parameters; wide, because elementwise work dominates on a CPU."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=320,
        intermediate_size=896,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        initializer_range=INIT_STD,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights; output projections start at zero, so each layer is the identity at first."""
    config = build_config(
        len(tokenizer),
        tokenizer.convert_tokens_to_ids(IM_END),
        tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, model_dir: Path) -> None:
    """Write config, bf16 safetensors, tokenizer and generation settings to `model_dir`."""
    model_dir.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()
    }
    state.pop("lm_head.weight", None)
    exported = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    exported.load_state_dict(state, strict=False)
    exported.tie_weights()
    exported.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=1024,  # it may repeat itself after words that it has never seen
        eos_token_id=[
            tokenizer.convert_tokens_to_ids(IM_END),
            tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        ],
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )
    exported.save_pretrained(model_dir, safe_serialization=True)
    tokenizer.save_pretrained(model_dir)
