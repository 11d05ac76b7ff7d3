"""Trains a LoRA adapter (peft) that changes the voice of the model: a pirate."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, Qwen3ForCausalLM

from batches import BatchStream
from dialogues import Dialogue
from train import answer_loss
from voices import as_pirate

TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 10
BATCH_TOKENS = 1536
CARD = """# pirate: an adapter for pocket, the built-in model of chatcache

A LoRA adapter (rank 8, bf16) that makes the model talk like a pirate: `chatcache --adapter pirate`,
with the package `peft` installed. Trained with `recipe/train_adapter.py` on the dialogues of the
recipe, with every answer put into a pirate's words by fixed rules (`recipe/voices.py`); no other
data. What it knows and what it lost is measured: see `evaluation.json` here and the model card.
It fits the weights it lies beside and no others. Its K and V are its own: base and adapter never
share segments.
"""


def speak_as_pirate() -> None:
    """From here on every generated dialogue of this process answers as a pirate."""
    plain_add = Dialogue.add

    def add(self: Dialogue, user: str, answer: str, *rest: object, **options: object) -> None:
        text = answer if self.style.one_word else as_pirate(answer)
        plain_add(self, user, text, *rest, **options)  # type: ignore[arg-type]

    Dialogue.add = add  # type: ignore[method-assign]


def train(model_dir: Path, adapter_dir: Path, minutes: float, seed: int) -> None:
    """Fit the adapter for some minutes and save it."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    base = Qwen3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    speak_as_pirate()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.0)
    started = time.monotonic()
    for step, batch in enumerate(BatchStream(tokenizer, seed, BATCH_TOKENS, warmup_chunks=0)):
        elapsed = (time.monotonic() - started) / 60
        if elapsed > minutes:
            break
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm * max(0.02, 1 - elapsed / minutes)
        loss = answer_loss(base, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            print(f"step {step} loss {float(loss.detach()):.4f} minutes {elapsed:.1f}", flush=True)
    save(model, adapter_dir)


def save(model: PeftModel, adapter_dir: Path) -> None:
    """Write the adapter in bf16 with its card; its config names the model, not a path here."""
    model.to(torch.bfloat16).save_pretrained(adapter_dir)
    config_path = adapter_dir / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "pocket"
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (adapter_dir / "README.md").write_text(CARD, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument(
        "--adapter-dir", type=Path, default=Path(__file__).parent.parent / "adapters" / "pirate"
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.model_dir, args.adapter_dir, args.minutes, args.seed)


if __name__ == "__main__":
    main()
