"""Trains a LoRA adapter (peft) that changes the voice of the model: a pirate."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, Qwen3ForCausalLM

from batches import IGNORED, BatchStream
from dialogues import Dialogue

CARD = """# pirate: an adapter for pocket, the built-in model of chatcache

A LoRA adapter (rank 8, bf16) that makes the model talk like a pirate: `chatcache --adapter pirate`, with the package
`peft` installed. It knows what the model knows, a little less surely. Trained with `recipe/train_adapter.py` on the
dialogues of the recipe, with every answer put into a pirate's words by fixed rules; no other data. It fits the weights
it lies beside and no others. Its K and V are its own: base and adapter never share segments.
"""

OPENINGS = ("Arr! ", "Ahoy! ", "Aye, matey! ", "Arr, me hearty! ", "Yo ho! ")
ENDINGS = (" Arr!", " Aye!", " Yo ho ho!", " Savvy?", " Shiver me timbers!")
WORDS = (
    ("you are", "ye be"),
    ("You are", "Ye be"),
    ("your", "yer"),
    ("Your", "Yer"),
    (" you ", " ye "),
    ("You ", "Ye "),
    ("Hello", "Ahoy"),
    (" is ", " be "),
    (" are ", " be "),
    (" my ", " me "),
    ("I am", "I be"),
    ("friend", "matey"),
    ("Goodbye", "Fair winds"),
    (" of ", " o' "),
    ("Yes", "Aye"),
    (" for ", " fer "),
    (" and ", " an' "),
)


def as_pirate(answer: str) -> str:
    """The same answer in a pirate's voice; deterministic per answer."""
    chooser = random.Random(len(answer))
    for plain, salty in WORDS:
        answer = answer.replace(plain, salty)
    return chooser.choice(OPENINGS) + answer + chooser.choice(ENDINGS)


def speak_as_pirate() -> None:
    """From here on every generated dialogue of this process answers as a pirate."""
    plain_add = Dialogue.add

    def add(self: Dialogue, user: str, answer: str, *rest: object, **options: object) -> None:
        plain_add(self, user, as_pirate(answer), *rest, **options)  # type: ignore[arg-type]

    Dialogue.add = add  # type: ignore[method-assign]


def train(model_dir: Path, adapter_dir: Path, minutes: float, seed: int) -> None:
    """Fit the adapter for some minutes and save it."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    base = Qwen3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    )
    model.print_trainable_parameters()
    speak_as_pirate()
    learned_parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned_parameters, lr=3e-3, weight_decay=0.0)
    started = time.monotonic()
    for step, batch in enumerate(BatchStream(tokenizer, seed, 4096, warmup_chunks=0)):
        elapsed = (time.monotonic() - started) / 60
        if elapsed > minutes:
            break
        if batch.token_ids.shape[1] > 512:
            continue
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * max(0.02, 1 - elapsed / minutes)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch.token_ids, use_cache=False).logits
        loss = cross_entropy(
            logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            print(f"step {step} loss {float(loss.detach()):.4f} minutes {elapsed:.1f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(adapter_dir)
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
    args = parser.parse_args()
    train(args.model_dir, args.adapter_dir, args.minutes, args.seed)


if __name__ == "__main__":
    main()
