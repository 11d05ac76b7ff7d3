"""What a terminal may send, at random: no exception, and no lost character of what was typed.

    .venv/bin/python -m tests.slow.keyboard_fuzz [NUM_SEQUENCES] [SEED]

Sequences that terminals send, mutated, cut, glued and mixed with bytes of no meaning come in pieces
of any length with and without pauses. The typed characters among them are from a script that no
sequence can contain, so all of them must come out, in their order.
"""

from __future__ import annotations

import random
import sys
from codecs import getincrementaldecoder

from textual.events import Key, Paste

from chatcache.terminal.sequences import Sequences, Token
from chatcache.tui.reports import Reports

NUM_SEQUENCES = 100_000
TYPED = "".join(chr(code) for code in range(0x2A000, 0x2A040))
KNOWN = [
    *("\x1b[A", "\x1bOA", "\x1b[1;5C", "\x1b[3~", "\x1b[15;2~", "\x1b[Z", "\x1b[[A", "\x1b[5D"),
    *("\x1b[97;1:3u", "\x1b[1089::99;5u", "\x1b[1089;5u", "\x1b[97:65:99;2:2;65u", "\x1b[13;2u"),
    *("\x1b[0;;26126:26163:26200:26237:26274u", "\x1b[27;5;99~", "\x1b[57400u", "\x1b[57441;2u"),
    *("\x1b[<35;10;12M", "\x1b[<0;1;1m", "\x1b[M !!", "\x1b[48;36;120;720;1200t", "\x1b[5;7R"),
    *("\x1b[200~", "\x1b[201~", "\x1b[200~pasted\rlines\x1b[201~", "\x1b[I", "\x1b[O"),
    *("\x1b[?2026;1$y", "\x1b[?2048;0$y", "\x1b[?62;4c", "\x1b[>1;95;0c", "\x1b[?5u"),
    *("\x1b]11;rgb:0000/0000/0000\x07", "\x1bP1+r544e=78\x1b\\", "\x1b_Gi=1;OK\x1b\\", "\x1b]0;x"),
    *("\x1b", "\x1b\x1b", "\x1b\r", "\x1bx", "\x1b[", "\x1bO", "\x1bP", "\x1b]", "\x9b97;5u"),
    *("\r", "\t", "\x7f", "\x00", "\x03", "one\rtwo", "line1\rline2\rline3\r", "é", "🇩🇪"),
]
_PIECES = "0123456789;:?<>=$ []OPu~MmARtyc\x1b\x07\\"


class Typist:
    """Makes up what is sent."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def sequence(self) -> bytes:
        rng = self.random
        kind = rng.random()
        if kind < 0.1:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 12)))
        if kind < 0.25:
            return "".join(rng.choice(_PIECES) for _ in range(rng.randrange(1, 16))).encode()
        text = list(rng.choice(KNOWN))
        while rng.random() < 0.5:
            at = rng.randrange(len(text) + 1)
            change = rng.randrange(4)
            if change == 0:
                text[at:] = []
            elif change == 1:
                text.insert(at, rng.choice(_PIECES))
            elif change == 2:
                text[at : at + 1] = []
            else:
                text[at:at] = rng.choice(KNOWN)
        return "".join(text).encode()

    def typed(self) -> str:
        return "".join(self.random.choice(TYPED) for _ in range(self.random.choice((0, 0, 1, 3))))


class Machine:
    """Reads as the program does, by a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.written: list[str] = []
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._sequences, self._reports = Sequences(), Reports()

    def read(self, data: bytes) -> None:
        if text := self._decode(data):
            self._take(self._sequences.feed(text, self.now))
        self._take(self._sequences.tick(self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._take(self._sequences.tick(self.now))

    def _take(self, tokens: list[Token]) -> None:
        for token in tokens:
            for message in self._reports.messages(token):
                if isinstance(message, Paste):
                    self.written.append(message.text)
                elif isinstance(message, Key) and message.is_printable:
                    self.written.append(message.character or "")


def check(num_sequences: int, seed: int) -> None:
    """Raises AssertionError with the seed and the place."""
    typist, machine = Typist(seed), Machine()
    rng, expected, sent = typist.random, "", b""
    for number in range(num_sequences):
        typed = typist.typed()
        data = typist.sequence() + typed.encode()
        expected += typed
        while data:
            cut = rng.randrange(1, len(data) + 1) if rng.random() < 0.4 else len(data)
            machine.read(data[:cut])
            sent = (sent + data[:cut])[-200:]
            data = data[cut:]
            machine.wait(rng.choice((0.001, 0.001, 0.15, 1.2, 2.5)))
        if number % 100 == 99:
            machine.wait(3)
            machine.wait(3)
            found = "".join(c for c in "".join(machine.written) if c in TYPED)
            assert found == expected, f"seed {seed}, sequence {number}: {sent!r}"
            machine.written.clear()
            expected = ""


def main() -> None:
    num_sequences = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_SEQUENCES
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    check(num_sequences, seed)
    print(f"{num_sequences:,} sequences, seed {seed}: nothing raised, nothing typed was lost")


if __name__ == "__main__":
    main()
