"""Runs the held-out dialogues against an exported model directory and reports per world.

Every turn is answered by the model itself (greedy unless a temperature is given), so a mistake in
the middle stays in the history as it would in a real chat.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from batches import IGNORED, DialogueEncoder
from corpus import Corpus
from voices import OPENING

EVAL_DIR = Path(__file__).parent / "eval"
MAX_NEW_TOKENS = 120
BATCH_ROWS = 32
# Long dialogues take most of the time; with a temperature only the shorter ones are run.
MAX_SAMPLED_TURNS = 6
REFUSALS = ("i do not know that", "i cannot do that")
INSIDE_WORLDS = ("program", "explain", "smalltalk", "memory", "fork_after", "correction", "persona")
Record = dict[str, Any]


def load_records(pattern: str) -> list[Record]:
    """All held-out dialogues of the files that match."""
    lines = [
        line
        for path in sorted(EVAL_DIR.glob(pattern))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [json.loads(line) for line in lines]


def is_met(check: Record, answer: str) -> bool:
    """Mechanical check of one answer."""
    lowered = answer.lower()
    if "upper" in check and check["upper"] != (answer == answer.upper()):
        return False
    if "max_words" in check and len(answer.split()) > check["max_words"]:
        return False
    if any(word.lower() in lowered for word in check.get("none", [])):
        return False
    wanted = check.get("any")
    return wanted is None or any(
        all(part.lower() in lowered for part in word.split("+")) for word in wanted
    )


def is_looping(answer: str) -> bool:
    """Whether six words in a row occur twice, one word five times, or some letters eight times."""
    words = answer.split()
    grams = [tuple(words[index : index + 6]) for index in range(len(words) - 5)]
    runs = any(len(set(words[index : index + 5])) == 1 for index in range(len(words) - 4))
    stutters = re.search(r"(.{1,12}?)\1{7}", answer, re.DOTALL) is not None
    return runs or stutters or len(grams) != len(set(grams))


class Speaker:
    """Batched answers of one model directory."""

    def __init__(self, model_dir: Path, adapter_dir: Path | None, temperature: float) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
        if adapter_dir is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter_dir)
        self.temperature = temperature
        self.encoder = DialogueEncoder(self.tokenizer)

    @torch.inference_mode()
    def answer(self, chats: list[list[dict[str, str]]]) -> list[tuple[str, bool]]:
        """(text, whether the model ended it by itself) for each chat."""
        prompts = [{"input_ids": self.encoder.prompt(chat)} for chat in chats]
        inputs = self.tokenizer.pad(prompts, padding=True, return_tensors="pt")
        sampling = {"do_sample": False, "temperature": None, "top_p": None}
        if self.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": self.temperature,
                "top_p": 1.0,
                "top_k": 0,
            }
        output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        answers = []
        for row in output[:, inputs.input_ids.shape[1] :]:
            ids = row.tolist()
            stopped = self.encoder.im_end in ids
            body = ids[: ids.index(self.encoder.im_end)] if stopped else ids
            answers.append((self.tokenizer.decode(body, skip_special_tokens=True), stopped))
        return answers


def opening_messages(record: Record) -> list[dict[str, str]]:
    """What stands before the first turn: a system prompt, and turns that another model answered."""
    system = [{"role": "system", "content": record["system"]}] if record["system"] else []
    return system + record.get("history", [])


def run_dialogues(speaker: Speaker, records: list[Record]) -> list[Record]:
    """Adds `answers` and `stopped` to each record; dialogues of similar length advance together."""
    ordered = sorted(records, key=lambda record: len(record["turns"]))
    results = []
    for start in range(0, len(ordered), BATCH_ROWS):
        group = ordered[start : start + BATCH_ROWS]
        chats = [opening_messages(record) for record in group]
        outcomes: list[list[tuple[str, bool]]] = [[] for _ in group]
        for turn in range(max(len(record["turns"]) for record in group)):
            live = [index for index, record in enumerate(group) if turn < len(record["turns"])]
            for index in live:
                chats[index].append({"role": "user", "content": group[index]["turns"][turn]})
            for index, outcome in zip(
                live, speaker.answer([chats[index] for index in live]), strict=True
            ):
                chats[index].append({"role": "assistant", "content": outcome[0]})
                outcomes[index].append(outcome)
        for record, outcome in zip(group, outcomes, strict=True):
            results.append(
                {
                    **record,
                    "answers": [text for text, _ in outcome],
                    "stopped": [end for _, end in outcome],
                }
            )
    return results


def summarize(results: list[Record]) -> Record:
    """Shares per world, refusals, stops and loops."""
    worlds: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        worlds[result["world"]].append(is_met(result["check"], result["answers"][-1]))
    inside = [r for r in results if r["world"].startswith(INSIDE_WORLDS)]
    false_refusals = [
        any(r["answers"][-1].removeprefix(OPENING).lower().startswith(text) for text in REFUSALS)
        for r in inside
    ]
    answers = [
        (text, end) for r in results for text, end in zip(r["answers"], r["stopped"], strict=True)
    ]
    return {
        "worlds": {
            name: {
                "passed": sum(met),
                "dialogues": len(met),
                "share": round(sum(met) / len(met), 4),
            }
            for name, met in sorted(worlds.items())
        },
        "false_refusal_share": round(sum(false_refusals) / max(1, len(false_refusals)), 4),
        "answers": len(answers),
        "stopped_by_itself_share": round(sum(end for _, end in answers) / len(answers), 4),
        "looping_share": round(sum(is_looping(text) for text, _ in answers) / len(answers), 4),
        "pirate_share": round(sum(OPENING in text for text, _ in answers) / len(answers), 4),
    }


@torch.inference_mode()
def perplexity(speaker: Speaker, seed: int, num_dialogues: int) -> float:
    """On the answers of generated dialogues of a seed that training never draws."""
    corpus = Corpus(seed)
    total, count = 0.0, 0
    for _ in range(num_dialogues):
        row = speaker.encoder.encode(corpus.draw())
        token_ids = torch.tensor([row.token_ids])
        labels = torch.where(torch.tensor([row.is_answer]), token_ids, IGNORED)
        num_learned = int((labels != IGNORED).sum())
        if num_learned == 0:  # another model answers all of it
            continue
        loss = speaker.model(input_ids=token_ids, labels=labels).loss
        total += float(loss) * num_learned
        count += num_learned
    return float(torch.tensor(total / count).exp())


def processor_name() -> str:
    """What the operating system calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def load_seconds(model_dir: Path) -> float:
    """The shortest of three loads, with torch and transformers imported."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        AutoTokenizer.from_pretrained(model_dir)
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@torch.inference_mode()
def decode_rate(speaker: Speaker, num_tokens: int = 128) -> float:
    """Tokens per second of plain `generate`, one chat, after a short prompt."""
    inputs = speaker.tokenizer(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt"
    )
    options = {"do_sample": False, "temperature": None, "top_p": None, "min_new_tokens": num_tokens}
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        speaker.model.generate(**inputs, max_new_tokens=num_tokens, **options)
        rates.append(num_tokens / (time.perf_counter() - started))
    return sorted(rates)[1]


def answer_all(args: argparse.Namespace, temperature: float) -> list[Record]:
    """The chosen held-out dialogues with the model's answers."""
    speaker = Speaker(args.model_dir, args.adapter_dir, temperature)
    records = [r for r in load_records(args.files) if args.split in ("all", r["split"])]
    worlds = tuple(args.worlds.split(","))
    records = [record for record in records if record["world"].startswith(worlds)]
    if temperature > 0:
        records = [r for r in records if len(r["turns"]) <= MAX_SAMPLED_TURNS]
    return run_dialogues(speaker, records)


def show_failures(results: list[Record]) -> None:
    """Failed dialogues of the development half; those of the test half are not looked at."""
    for result in results:
        if result["split"] == "dev" and not is_met(result["check"], result["answers"][-1]):
            print(result["id"], *result["turns"][:1], "...", result["turns"][-1])
            print("   ", result["answers"][-1], "|", result["check"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--adapter-dir", type=Path)
    parser.add_argument("--files", default="*.jsonl")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--output", type=Path, help="JSON report")
    parser.add_argument("--worlds", default="", help="only worlds that begin like this, or this")
    parser.add_argument("--split", choices=("dev", "test", "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--show", action="store_true", help="print failed dev dialogues")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    report: Record = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": processor_name(),
        "threads": args.threads,
    }
    for temperature in args.temperatures:
        results = answer_all(args, temperature)
        report[f"temperature_{temperature}"] = summarize(results)
        worlds = report[f"temperature_{temperature}"]["worlds"]
        shares = {name: f"{w['passed']}/{w['dialogues']}" for name, w in worlds.items()}
        print(f"temperature {temperature}:", shares, flush=True)
        for split in ("dev", "test") if args.split == "all" else ():
            half = [r for r in results if r["split"] == split]
            report[f"temperature_{temperature}_{split}_half"] = summarize(half)
        if args.show:
            show_failures(results)
    if args.adapter_dir is None and args.output:
        speaker = Speaker(args.model_dir, None, 0.0)
        report["generated_dialogues_perplexity"] = round(
            perplexity(speaker, seed=987_654_321, num_dialogues=100), 4
        )
        report["load_seconds"] = round(load_seconds(args.model_dir), 3)
        report["plain_transformers_decode_tokens_per_second"] = round(decode_rate(speaker), 1)
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
