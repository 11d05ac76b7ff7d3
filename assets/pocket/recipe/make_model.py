"""One command for the whole model: tokenizer, training, export, adapter, evaluation."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

RECIPE_DIR = Path(__file__).parent
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def run(script: str, *arguments: object) -> None:
    """Run one step in a process of its own, with the interpreter of this one."""
    command = [sys.executable, str(RECIPE_DIR / script), *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, default=Path("pocket-run"), help="checkpoints; run again to resume"
    )
    parser.add_argument("--model-dir", type=Path, default=RECIPE_DIR.parent)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--minutes", type=float, help="train by the clock instead")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument(
        "--with-adapter", action="store_true", help="also train the pirate (needs peft)"
    )
    parser.add_argument("--adapter-minutes", type=float, default=8.0)
    parser.add_argument("--eval-files", default="*.jsonl", help="held-out files to be answered")
    args = parser.parse_args()
    run("build_eval.py")
    budget = ("--tokens", args.tokens) if args.minutes is None else ("--minutes", args.minutes)
    run("train.py", "--run-dir", args.run_dir, *budget, "--threads", args.threads)
    args.model_dir.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(args.run_dir / "export" / name, args.model_dir / name)
    files = ("--files", args.eval_files, "--threads", args.threads)
    report = args.model_dir / "evaluation.json"
    run("evaluate.py", "--model-dir", args.model_dir, *files, "--output", report)
    if args.with_adapter:
        adapter_dir = args.model_dir / "adapters" / "pirate"
        places = ("--model-dir", args.model_dir, "--adapter-dir", adapter_dir)
        budget = ("--minutes", args.adapter_minutes, "--threads", args.threads)
        run("train_adapter.py", *places, *budget)
        report = adapter_dir / "evaluation.json"
        run("evaluate.py", *places, *files, "--temperatures", 0, "--output", report)


if __name__ == "__main__":
    main()
