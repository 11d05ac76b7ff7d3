"""A process that talks on a cache directory, together with others: `kv_talker.py DIR NAME TURNS`.

Every turn proves that what was reused is what these very ids would give (tests/kvfakes.py), and
that the book-keeping is sound. Prints the number of tokens reused and of files set aside.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.kvfakes import Bench

SYSTEM = "You are helpful. "
RAM_BUDGET, DISK_BUDGET = 4_000, 24_000


def main(directory: Path, name: str, num_turns: int) -> None:
    chooser = random.Random(name)
    bench = Bench(directory, ram_budget=RAM_BUDGET, disk_budget=DISK_BUDGET)
    chats = [[SYSTEM, f"{who} asks. ", "Answer. "] for who in (name, "anybody", "somebody")]
    num_reused = 0
    for turn in range(num_turns):
        chat = chooser.choice(chats)
        num_reused += bench.turn(*chat)
        chat += [f"More {turn}? ", "Yes. "]
        if len(chat) > 12:
            del chat[3:]
        if chooser.random() < 0.1:
            bench.close()
            bench.reopen()
    bench.close()
    print(num_reused, len(bench.cache.damaged))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
