"""Trains the model and exports it. Resumable: run the same command again."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from batches import IGNORED, Batch, BatchStream
from corpus import Corpus
from model import build_model, export
from tokenizer import as_chat_tokenizer, load_chat_tokenizer, train_tokenizer

MUON_LR = 0.02
ADAMW_LR = 3e-3
WARMUP_STEPS = 60
LOG_EVERY_STEPS = 20
SAVE_EVERY_SECONDS = 300.0
TOKENIZER_DIALOGUES = 6000


def tokenizer_texts(seed: int) -> list[str]:
    """Mostly dialogues without told names, so that names stay in small pieces."""
    corpus = Corpus(seed)
    shares = {"knowledge": 0.75, "styled": 0.2, "dense": 0.05}
    messages = [message for _ in range(TOKENIZER_DIALOGUES) for message in corpus.draw(shares)]
    return [message["content"] for message in messages]


def hidden_states(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """The decoder with plain causal attention, `[num_rows, num_tokens, hidden_size]`.

    `Qwen3Model.forward` reads jumps in the positions as borders between packed documents and
    masks across them; here a jump only means distance.
    """
    decoder = model.model
    hidden = decoder.embed_tokens(batch.token_ids)
    position_embeddings = decoder.rotary_emb(hidden, batch.positions)
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=position_embeddings)
    return decoder.norm(hidden)


def answer_loss(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Cross entropy on the answer tokens only; the vocabulary is projected for these alone."""
    learned = batch.labels != IGNORED
    with torch.autocast(batch.token_ids.device.type, torch.bfloat16):
        logits = model.lm_head(hidden_states(model, batch)[learned])
    return cross_entropy(logits.float(), batch.labels[learned])


def build_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def learning_rate_scale(step: int, progress: float, decay_share: float) -> float:
    """Warmup, stable, then linear decay to nearly zero (WSD). `progress` goes from 0 to 1.

    `step` counts from the start of this call: a decayed checkpoint needs a warmup as well.
    """
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * max(0.01, min(1.0, (1.0 - progress) / decay_share))


class Trainer:
    """Owns weights, optimizers, the batch stream and the checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run_dir: Path = args.run_dir
        self.run_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        random.seed(args.seed)
        self.tokenizer = self._tokenizer()
        if args.start_from is None:
            self.model = build_model(self.tokenizer)
        else:
            self.model = Qwen3ForCausalLM.from_pretrained(args.start_from, dtype=torch.float32)
        self.optimizers = build_optimizers(self.model)
        self.stream = BatchStream(self.tokenizer, args.seed, args.batch_tokens, args.warmup_chunks)
        self.step, self.num_tokens, self.seconds = 0, 0, 0.0
        self.started = time.monotonic()
        self._resume()
        self.first_step = self.step
        if args.compile:
            torch._dynamo.config.cache_size_limit = 64
            for layer in self.model.model.layers:
                layer.compile(dynamic=True)

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        if self.args.start_from is not None:
            return load_chat_tokenizer(self.args.start_from)
        path = self.run_dir / "tokenizer"
        if not path.exists():
            as_chat_tokenizer(train_tokenizer(tokenizer_texts(self.args.seed))).save_pretrained(
                path
            )
        return load_chat_tokenizer(path)

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.run_dir / "checkpoint.pt"

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stream.chunk_index = state["chunk_index"]
        self.step, self.num_tokens, self.seconds = (
            state["step"],
            state["num_tokens"],
            state["seconds"],
        )
        print(f"resumed at step {self.step}, {self.num_tokens:,} tokens", flush=True)

    def save(self) -> None:
        """Write the checkpoint and a loadable model directory beside it."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "chunk_index": self.stream.chunk_index,
            "step": self.step,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        export(self.model, self.tokenizer, self.run_dir / "export")

    def run(self) -> None:
        """Train until the budget of tokens or minutes is spent."""
        saved_at = started = time.monotonic()
        stopping: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
        for batch in self.stream:
            progress = self._progress()
            if stopping or progress >= 1.0:
                break
            loss = self._train_step(batch, progress)
            now = time.monotonic()
            self.seconds += now - started
            started = now
            if self.step % LOG_EVERY_STEPS == 0:
                self._log(loss)
            if now - saved_at > SAVE_EVERY_SECONDS:
                self.save()
                saved_at = now
        self.save()

    def _progress(self) -> float:
        if self.args.minutes is None:
            return self.num_tokens / self.args.tokens
        return (time.monotonic() - self.started) / (60.0 * self.args.minutes)

    def _train_step(self, batch: Batch, progress: float) -> float:
        step = self.step - self.first_step
        scale = self.args.peak * learning_rate_scale(step, progress, self.args.decay_share)
        for optimizer, base in zip(self.optimizers, (MUON_LR, ADAMW_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * scale
        loss = answer_loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += int((batch.token_ids != self.stream.pad_id).sum())
        return float(loss.detach())

    def _log(self, loss: float) -> None:
        entry = {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "loss": round(loss, 4),
            "tokens_per_second": round(self.num_tokens / max(self.seconds, 1e-9)),
            "seconds": round(self.seconds),
            "clock": time.strftime("%H:%M:%S"),
        }
        with (self.run_dir / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path("run"))
    parser.add_argument(
        "--start-from",
        type=Path,
        help="weights and tokenizer of an exported model; the optimizers begin anew",
    )
    parser.add_argument(
        "--tokens", type=int, default=20_000_000, help="token budget, padding not counted"
    )
    parser.add_argument("--minutes", type=float, help="end by the clock of this call instead")
    parser.add_argument("--decay-share", type=float, default=0.3)
    parser.add_argument(
        "--peak", type=float, default=1.0, help="share of the learning rates, to go on gently"
    )
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--warmup-chunks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
